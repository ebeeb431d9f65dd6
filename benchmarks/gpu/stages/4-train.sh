# limit: 360, smoke: 100
# Training tars lie in scratch/gpu/, or in the folder $TARS.
tiny=()
((SMOKE)) && tiny=(--smoke)
"$PYTHON" benchmarks/gpu/train.py --device "$DEVICE" --tars "${TARS:-scratch/gpu}" --seconds $((LIMIT - 30)) \
  --results "$RESULTS" "${tiny[@]}"
