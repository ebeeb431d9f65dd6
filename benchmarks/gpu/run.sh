#!/usr/bin/env bash
# Everything that needs a GPU, in stages that check, measure and train. README.md beside this file says how
# and when to run it.
#
#     benchmarks/gpu/run.sh [--smoke] [STAGE ...]
#
# Stages are the scripts of stages/ (or of the folder $STAGES), all of them in their order if none is named;
# `correct` names stages/2-correct.sh. Each has a limit in seconds, on its line `# limit: 90, smoke: 60`, and
# is ended when that is over. None can stop the next. Results go into the folder $OUT where that is set, else
# into benchmarks/results/gpu/: each stage writes its own as it finds them, its output goes to NAME.log, and
# stages.jsonl says how each ended, a line more a run. --smoke runs all on a CPU at tiny sizes, to try that it works.
# Exit 0 where every stage did what it should, 1 where one did not, 2 where nothing can be run.
set -u
[[ -n ${OUT:-} ]] && OUT=$(realpath -m "$OUT")
cd "$(dirname "$0")/../.." || exit 2
smoke=0 wanted=()
for argument in "$@"; do
  case $argument in
    --smoke) smoke=1 ;;
    -h | --help) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "run.sh: expected --smoke or the name of a stage, found $argument" >&2; exit 2 ;;
    *) wanted+=("$argument") ;;
  esac
done
folder=${STAGES:-benchmarks/gpu/stages}
stages=()
for script in "$folder"/[0-9]*.sh; do
  name=$(basename "$script" .sh) name=${name#*-}
  if ((${#wanted[@]} == 0)) || [[ " ${wanted[*]} " == *" $name "* ]]; then stages+=("$script"); fi
done
if ((${#stages[@]} == 0 || (${#wanted[@]} && ${#stages[@]} != ${#wanted[@]}))); then
  echo "run.sh: expected stages of $folder, found ${wanted[*]:-none there}" >&2
  exit 2
fi

if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  [[ -x .venv/bin/python ]] && PYTHON=$PWD/.venv/bin/python
fi
DEVICE=cuda RESULTS=${OUT:-benchmarks/results/gpu}
if ((smoke)); then
  DEVICE=cpu RESULTS=${OUT:-benchmarks/results/gpu/smoke}
elif ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  echo "run.sh: $PYTHON has no PyTorch that finds a CUDA device; --smoke runs on a CPU" >&2
  exit 2
fi
export PYTHON DEVICE RESULTS SMOKE=$smoke PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$RESULTS" && touch "$RESULTS/stages.jsonl" || exit 2

failed=0
for script in "${stages[@]}"; do
  name=$(basename "$script" .sh) name=${name#*-}
  limit=$(sed -n 's/^# limit: \([0-9]*\), smoke: \([0-9]*\).*/\1 \2/p' "$script" | head -n 1)
  read -r full tiny <<<"${limit:-60 60}"
  LIMIT=$((smoke ? tiny : full))
  export LIMIT
  began=$SECONDS
  timeout --kill-after=10 "$LIMIT" bash "$script" </dev/null >"$RESULTS/$name.log" 2>&1
  code=$?
  case $code in
    0) status=done ;;
    124 | 137) status="ended at its limit" failed=1 ;;
    *) status=failed failed=1 ;;
  esac
  took=$((SECONDS - began))
  printf '{"stage": "%s", "status": "%s", "exit": %d, "seconds": %d, "limit_seconds": %d}\n' \
    "$name" "$status" "$code" "$took" "$LIMIT" | tee -a "$RESULTS/stages.jsonl"
  ((code)) && tail -n 5 "$RESULTS/$name.log" | cut -c1-300
done
exit $failed
