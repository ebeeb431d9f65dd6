#!/usr/bin/env bash
# What the layers of both packaged models hold: pruning to the latent dimensions of highest KL and what drawing costs, on LFW's
# people; factors of procedural faces, decoded from each layer; similarity between layers, and between the models.
# DATA is the folder that holds lfw_people/; OUT receives stores (10 GB) and results.
#   DATA=... OUT=runs/layers benchmarks/downstream/layers.sh
set -euo pipefail
mkdir -p "$OUT"
lfw=(--data "$DATA/lfw_people/labels.csv" --crop 128)
both=(--feature mean --feature delta)
heads=(--task face_id --head nearest-neighbor --head ridge)
for model in faces64 natural64; do
  vdvae-repr extract --model "$model" --data toy-faces:400x5 "${both[@]}" --out "$OUT/$model-toy.h5"
  vdvae-repr probe --task factors --latents "$OUT/$model-toy.h5" "${both[@]}" --out "$OUT/$model-factors"
  vdvae-repr extract --model "$model" "${lfw[@]}" "${both[@]}" --feature kl --out "$OUT/$model-lfw.h5"
  vdvae-repr probe "${heads[@]}" --atlas --latents "$OUT/$model-lfw.h5" "${both[@]}" --out "$OUT/$model-lfw-atlas"
  vdvae-repr extract --model "$model" "${lfw[@]}" --z sample --draws 8 --feature z --out "$OUT/$model-lfw-draws.h5"
  drawn=(--latents "$OUT/$model-lfw.h5" --drawn "$OUT/$model-lfw-draws.h5")
  vdvae-repr probe "${heads[@]}" "${drawn[@]}" --out "$OUT/$model-lfw-noise"
  vdvae-repr probe "${heads[@]}" "${drawn[@]}" --selection joint --layer '<=4x4' --layer '<=8x8' --layer '<=16x16' --layer '<=32x32' \
    --layer all --out "$OUT/$model-lfw-noise-sets"
  rm "$OUT/$model-lfw-draws.h5"
done
for feature in mean delta; do
  vdvae-repr compare "$OUT/faces64-lfw.h5" "$OUT/natural64-lfw.h5" --feature "$feature" --out "$OUT/compare-$feature"
done
