# limit: 170, smoke: 230
# What takes long comes last: the rows before it are there, whatever the limit cuts off.
tiny=() failed=0
((SMOKE)) && tiny=(--smoke)
"$PYTHON" benchmarks/gpu/correct.py --device "$DEVICE" >"$RESULTS/correct.jsonl" || failed=1
"$PYTHON" benchmarks/gpu/brain.py --device "$DEVICE" "${tiny[@]}" >>"$RESULTS/correct.jsonl" || failed=1
exit $failed
