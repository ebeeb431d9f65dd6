# limit: 360, smoke: 150
# What matters most comes first: whatever the limit cuts off, the rows before it are there.
speed=benchmarks/speed out=$RESULTS/fast.jsonl
: >"$out"
failed=0
measure() { "$PYTHON" "$@" >>"$out" || failed=1; }
if ((SMOKE)); then
  measure benchmarks/gpu/extraction.py --device cpu --seconds 30 --smoke
  measure "$speed/extract.py" --cases photos --images 24 --batch-size 8 --rounds 1
  measure "$speed/probe.py" --ours --samples 200 --dims 512 --classes 5 --rounds 1
  measure "$speed/train.py" --width 8 --batch-size 2 --rounds 1 --warmup 1 --variants ours
  exit $failed
fi
published=${PUBLISHED:-scratch/gpu/openai-vdvae} beside=()
[[ -f $published/vae.py ]] && beside=(--published "$published")
measure benchmarks/gpu/extraction.py --device "$DEVICE" --seconds 150
measure "$speed/extract.py" --cases photos --device "$DEVICE" --model imagenet64@random --layers 0:31 \
  --batch-size 128 --rounds 1
measure "$speed/probe.py" --ours
for preset in cifar10 imagenet64; do
  measure "$speed/train.py" --preset $preset --device "$DEVICE" --batch-size 32 --rounds 10 "${beside[@]}" \
    --variants ${beside:+published} bf16+channels_last bf16+compile+channels_last
done
exit $failed
