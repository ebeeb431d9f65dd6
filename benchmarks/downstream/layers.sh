#!/usr/bin/env bash
# What layers hold, by selections that answers.sh leaves out: all layers pruned to the dimensions of highest KL, draws in place of means, the
# factors of procedural faces, and how alike the layers of two models are. On LFW's closed set, whose test images have been scored by answers.sh before.
# DATA is the folder that holds lfw_people/; OUT receives stores and results, MODELS are two.
#   DATA=... OUT=runs/layers MODELS="faces64 natural64" benchmarks/downstream/layers.sh
set -euo pipefail
mkdir -p "$OUT"
lfw=(--data "$DATA/lfw_people/labels.csv" --crop 128)
stores=()
for model in $MODELS; do
  stores+=("$OUT/$model.h5")
  vdvae-repr extract --model "$model" "${lfw[@]}" --feature mean --feature delta --feature kl --out "$OUT/$model.h5"
  vdvae-repr extract --model "$model" "${lfw[@]}" --z sample --draws 4 --feature z --no-images --out "$OUT/draws.h5"
  for feature in mean delta; do
    vdvae-repr probe --latents "$OUT/$model.h5" --feature "$feature" --selection joint --selection pruned --control none --no-cache \
      --out "$OUT/$model-pruned-$feature" | tee "$OUT/$model-pruned-$feature.txt"
  done
  vdvae-repr probe --latents "$OUT/$model.h5" --drawn "$OUT/draws.h5" --control none --no-cache --out "$OUT/$model-draws" | tee "$OUT/$model-draws.txt"
  rm "$OUT/draws.h5"
  vdvae-repr extract --model "$model" --data toy-faces:400x5 --out "$OUT/factors.h5"
  vdvae-repr probe --latents "$OUT/factors.h5" --task factors --no-cache --out "$OUT/$model-factors" | tee "$OUT/$model-factors.txt"
  rm "$OUT/factors.h5"
done
for feature in mean delta; do
  vdvae-repr compare "${stores[@]}" --feature "$feature" --out "$OUT/similarity-$feature" | tee "$OUT/similarity-$feature.txt"
done
