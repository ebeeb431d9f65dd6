#!/usr/bin/env bash
# The answer of the probe for each of MODELS, on people (LFW, ORL), objects (CIFAR-10, Tiny ImageNet), pairs (LFW's View 1), episodes of
# Tiny ImageNet's novel classes, Omniglot's one-shot runs, and the factors of procedural faces: every layer singly and all up to each, means and
# deltas (FEATURES), by the heads that answer at once, with all controls. Test data are touched once. Of CIFAR-10 and Tiny ImageNet every image, or
# with EVERY=4 every fourth. LFW took four minutes a feature on two busy cores.
# DATA is the folder that holds lfw_people/, orl_faces/, cifar10.h5, tiny_imagenet/, lfw_pairs/ and omniglot/; OUT receives stores and results.
# Networks of another kind stand beside them: BESIDE is a list of NAME=MODEL (a name without a dash), of which every layer is scored on the same
# split by the same heads, without controls.
#   DATA=... OUT=runs/answers MODELS="faces64 natural64" benchmarks/downstream/answers.sh [NAME ...]
#   DATA=... OUT=runs/answers BESIDE="lite0=timm:tf_efficientnet_lite0@FILE lite0@random=timm:tf_efficientnet_lite0@random" benchmarks/downstream/answers.sh orl
#   python benchmarks/downstream/page.py runs/answers --rows benchmarks/results/answers.csv     # what stands below the page's head
set -euo pipefail
mkdir -p "$OUT"
asked="${*:-lfw orl cifar10 tiny-imagenet view1 few-shot omniglot factors}"
pairs=(--pairs "$DATA/lfw_pairs/pairsDevTest.txt" --pairs-train "$DATA/lfw_pairs/pairsDevTrain_subset.txt")
few=(--task few_shot --class-split "$DATA/tiny_imagenet/class_split.csv" --shots 1 --shots 5)
some() { seq 0 "${EVERY:-1}" "$(($1 - 1))" > "$OUT/rows.txt"; } # of so many images
run() { # name, source's options, task's options
  local store="$OUT/$model-$1.h5"
  [ -e "$store" ] || vdvae-repr extract --model "$model" "${source[@]}" --feature mean --feature delta --out "$store"
  for feature in ${FEATURES:-mean delta}; do
    vdvae-repr probe --latents "$store" --feature "$feature" "${task[@]}" --no-cache --out "$OUT/$model-$1-$feature" \
      | tee "$OUT/$model-$1-$feature.txt"
  done
  rm "$store"
}
beside() { # name, source's options, task's options
  local store="$OUT/$model-$1.h5" folder="$OUT/$model-$1-activation"
  vdvae-repr extract --model "$network" "${source[@]}" --out "$store" --overwrite
  vdvae-repr probe --latents "$store" "${task[@]}" --control none --no-cache --out "$folder" | tee "$folder.txt"
  rm "$store"
}
for each in ${MODELS:-} ${BESIDE:-}; do
  model="${each%%=*}" network="${each#*=}"
  for name in $asked; do
    case "$name" in
      lfw) source=(--data "$DATA/lfw_people/labels.csv" --crop 128) task=(--task face_id) ;;
      orl) source=(--data "$DATA/orl_faces") task=(--task face_id) ;;
      cifar10) some 5085; source=(--data "$DATA/cifar10.h5" --rows "$OUT/rows.txt") task=(--task classification) ;;
      tiny-imagenet) some 4000; source=(--data "$DATA/tiny_imagenet" --rows "$OUT/rows.txt") task=(--task classification) ;;
      view1) source=(--data "$DATA/lfw_pairs/images" --crop 128 --mirror) task=(--task face_verification "${pairs[@]}") ;;
      few-shot) some 4000; source=(--data "$DATA/tiny_imagenet" --rows "$OUT/rows.txt") task=("${few[@]}") ;;
      omniglot) source=(--data omniglot-runs --data-root "$DATA/omniglot") task=(--task omniglot_oneshot) ;;
      factors) source=(--data toy-faces:400x5) task=(--task factors) ;;
    esac
    case "$each" in *=*) beside "$name" ;; *) run "$name" ;; esac
  done
done
