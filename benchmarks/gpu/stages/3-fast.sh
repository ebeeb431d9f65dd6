# limit: 270, smoke: 200
# What matters most comes first: whatever the limit cuts off, the rows before it are there.
speed=benchmarks/speed out=$RESULTS/fast.jsonl
: >"$out"
failed=0
measure() { timeout "$1" "$PYTHON" "${@:2}" >>"$out" || failed=1; } # seconds at most, then the command
if ((SMOKE)); then
  measure 90 benchmarks/gpu/extraction.py --device cpu --seconds 30 --smoke
  measure 90 "$speed/extract.py" --cases photos --images 24 --batch-size 8 --rounds 1
  measure 90 benchmarks/gpu/step.py --device cpu --smoke
  measure 90 "$speed/probe.py" --ours --samples 200 --dims 512 --classes 5 --rounds 1
  measure 90 "$speed/train.py" --width 8 --batch-size 2 --rounds 1 --warmup 1 --variants ours
  exit $failed
fi
published=${PUBLISHED:-scratch/gpu/openai-vdvae} beside=()
[[ -f $published/vae.py ]] && beside=(--published "$published")
measure 95 benchmarks/gpu/extraction.py --device "$DEVICE" --seconds 65
measure 45 "$speed/extract.py" --cases photos --device "$DEVICE" --model imagenet64@random --layers 0:31 \
  --batch-size 128 --rounds 1
# What takes too long, compiling most of all, loses its own row alone.
for variants in "${beside:+published }bf16+channels_last" bf16+compile+channels_last; do
  for preset in cifar10 imagenet64; do
    measure 75 "$speed/train.py" --preset $preset --device "$DEVICE" --batch-size 32 --rounds 10 "${beside[@]}" \
      --variants $variants
  done
done
measure 30 benchmarks/gpu/step.py --device "$DEVICE"
measure 20 "$speed/probe.py" --ours --rounds 1
measure 75 "$speed/train.py" --preset imagenet64 --device "$DEVICE" --batch-size 32 --rounds 10 \
  --variants bf16+compile+channels_last+recompute
exit $failed
