# limit: 45, smoke: 30
"$PYTHON" benchmarks/gpu/environment.py --device "$DEVICE" >"$RESULTS/environment.json"
