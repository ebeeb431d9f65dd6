#!/usr/bin/env bash
# Face identification by layer on ORL and lfw_people, test images touched once.
# DATA is the folder that holds orl_faces/ and lfw_people/; OUT receives stores and results.
#   DATA=... OUT=runs/face_id benchmarks/downstream/face_id.sh
set -euo pipefail
mkdir -p "$OUT"
vdvae-repr extract --data "$DATA/orl_faces" --out "$OUT/orl.h5"
vdvae-repr probe --task face_id --latents "$OUT/orl.h5" --out "$OUT/orl"
vdvae-repr extract --data "$DATA/lfw_people/labels.csv" --crop 128 --out "$OUT/lfw_people.h5"
vdvae-repr probe --task face_id --latents "$OUT/lfw_people.h5" --layer '<=16x16' --out "$OUT/lfw_people"
