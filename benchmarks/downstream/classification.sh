#!/usr/bin/env bash
# Classification by layer on the CIFAR-10 part and on 40 classes of Tiny ImageNet, for each of MODELS: single layers and
# sets of layers, means and deltas, flat and pooled, with controls; test images touched once. CIFAR-10 images are
# scaled up to the models' 64x64. Hours on two cores; HEADS='knn ridge' leaves the slow head out.
# DATA is the folder that holds cifar10.h5 and tiny_imagenet/; OUT receives stores and results.
#   DATA=... OUT=runs/classification MODELS=faces64 benchmarks/downstream/classification.sh
set -euo pipefail
mkdir -p "$OUT"
sets=(--selection joint --layer '<=4x4' --layer '<=8x8' --layer '<=16x16' --layer '<=32x32')
heads=()
for head in ${HEADS:-}; do heads+=(--head "$head"); done
for model in $MODELS; do
  for data in cifar10.h5 tiny_imagenet; do
    name="$model-${data%.h5}"
    for feature in mean delta; do
      store="$OUT/$name-$feature.h5"
      vdvae-repr extract --model "$model" --data "$DATA/$data" --feature "$feature" --out "$store"
      probe=(vdvae-repr probe --task classification --latents "$store" --feature "$feature" "${heads[@]}")
      "${probe[@]}" --out "$OUT/$name-$feature"
      "${probe[@]}" --pool avg:4 --out "$OUT/$name-$feature-avg4"
      "${probe[@]}" "${sets[@]}" --out "$OUT/$name-$feature-sets"
    done
  done
done
