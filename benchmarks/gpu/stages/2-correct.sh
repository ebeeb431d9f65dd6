# limit: 110, smoke: 200
"$PYTHON" benchmarks/gpu/correct.py --device "$DEVICE" >"$RESULTS/correct.jsonl"
