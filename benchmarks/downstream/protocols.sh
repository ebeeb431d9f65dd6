#!/usr/bin/env bash
# The other protocols by layer of a model, with controls; test data touched once: LFW's View 1 (pairs of people), 5-way 1- and
# 5-shot episodes of Tiny ImageNet's novel classes, and the 20 one-shot runs of Omniglot.
# DATA is the folder that holds lfw_pairs/, tiny_imagenet/ and omniglot/; OUT receives stores and results.
#   DATA=... OUT=runs/protocols MODEL=faces64 benchmarks/downstream/protocols.sh
set -euo pipefail
mkdir -p "$OUT"
sets=(--selection joint --layer '<=4x4' --layer '<=8x8' --layer '<=16x16' --layer '<=32x32')
pairs=(--pairs "$DATA/lfw_pairs/pairsDevTest.txt" --pairs-train "$DATA/lfw_pairs/pairsDevTrain_subset.txt")
shots=(--ways 5 --shots 1 --shots 5 --class-split "$DATA/tiny_imagenet/class_split.csv")
shots+=(--head nearest-prototype --head simpleshot-cl2n --head ridge)
run() { # name, source's options, task's options
  vdvae-repr extract --model "$MODEL" "${source[@]}" --feature mean --feature delta --out "$OUT/$1.h5"
  for feature in mean delta; do
    probe=(vdvae-repr probe --latents "$OUT/$1.h5" --feature "$feature" "${task[@]}")
    "${probe[@]}" --out "$OUT/$1-$feature"
    "${probe[@]}" "${sets[@]}" --out "$OUT/$1-$feature-sets"
  done
}
source=(--data "$DATA/lfw_pairs/images" --crop 128 --mirror)
task=(--task face_verification "${pairs[@]}")
run lfw-view1
source=(--data "$DATA/tiny_imagenet")
task=(--task few_shot "${shots[@]}")
run tiny-few-shot
source=(--data omniglot-runs --data-root "$DATA/omniglot")
task=(--task omniglot_oneshot)
run omniglot-oneshot
