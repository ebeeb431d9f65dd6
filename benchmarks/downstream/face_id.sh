#!/usr/bin/env bash
# Face identification by layer of faces64 on ORL and lfw_people: single layers and sets of layers, means and
# deltas, flat and pooled, with controls; test images touched once. Hours on two cores; HEADS=nearest-neighbor
# leaves the slow head out.
# DATA is the folder that holds orl_faces/ and lfw_people/; OUT receives stores and results.
#   DATA=... OUT=runs/face_id benchmarks/downstream/face_id.sh
set -euo pipefail
mkdir -p "$OUT"
features=(--feature mean --feature delta)
vdvae-repr extract --data "$DATA/orl_faces" "${features[@]}" --out "$OUT/orl.h5"
vdvae-repr extract --data "$DATA/lfw_people/labels.csv" --crop 128 "${features[@]}" --out "$OUT/lfw_people.h5"
sets=(--selection joint --layer '<=4x4' --layer '<=8x8' --layer '<=16x16' --layer '<=32x32')
heads=()
for head in ${HEADS:-nearest-neighbor linear-lbfgs}; do heads+=(--head "$head"); done
for data in orl lfw_people; do
  for feature in mean delta; do
    probe=(vdvae-repr probe --task face_id --latents "$OUT/$data.h5" --feature "$feature" "${heads[@]}")
    "${probe[@]}" --out "$OUT/$data-$feature"
    "${probe[@]}" --pool avg:4 --out "$OUT/$data-$feature-avg4"
    "${probe[@]}" "${sets[@]}" --out "$OUT/$data-$feature-sets"
  done
done
