# limit: 110, smoke: 120
"$PYTHON" benchmarks/gpu/correct.py --device "$DEVICE" >"$RESULTS/correct.jsonl"
