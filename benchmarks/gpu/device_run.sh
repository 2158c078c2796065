#!/usr/bin/env bash
# On the GPU machine, in the repository's root:   bash .gpu/device_run.sh [--dry]
# README.md in benchmarks/gpu says what travels, what each stage does and what comes back.
#   STAGES  which, in this order          LIMIT  seconds of the whole call      PYTHON, OUT
#   SLOW    times each stage's own limit (a rehearsal on a loaded CPU)          VARIANTS_S  seconds
set -u
ROOT=$PWD
OUT=${OUT:-$ROOT/.gpu/out}
DRY=
[ "${1:-}" = --dry ] && DRY=1
LIMIT=${LIMIT:-560}
BEGAN=$(date +%s)
STAGES=${STAGES:-"env verify speed cells"} # `tests` only when asked for: see its note
PYTHON=${PYTHON:-python3}
DOLMA=$ROOT/.gpu/dolma
mkdir -p "$OUT"
export REPO=$ROOT RESULTS=$OUT/results.jsonl TMPDIR=${TMPDIR:-/tmp}
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 WANDB_MODE=offline
# The project first, then the copies: an image's own packages stay the ones that are used.
export PYTHONPATH=$ROOT:$ROOT/.gpu/site:$ROOT/.gpu PYTHONWARNINGS="ignore::UserWarning:omegaconf,ignore"
exec > >(tee -a "$OUT/log.txt") 2>&1

left() { echo $((LIMIT - ($(date +%s) - BEGAN))); }

stage() { # NAME SECONDS COMMAND...: its limit, and a line of how it ended
  local name=$1 want=$(($2 * ${SLOW:-1})) have began rc
  shift 2
  have=$(left)
  [ "$have" -lt "$want" ] && want=$have
  if [ "$want" -lt 15 ]; then
    echo "== $name: no time left"
    return
  fi
  echo "== $name: at most ${want} s, $(left) s left in all"
  began=$(date +%s)
  timeout -k 5 "$want" "$@"
  rc=$?
  echo "{\"stage\": \"stage\", \"name\": \"$name\", \"rc\": $rc, \"seconds\": $(($(date +%s) - began))}" | tee -a "$RESULTS"
}

python_stage() { # NAME SECONDS ARGUMENTS...
  local name=$1 seconds=$2
  shift 2
  stage "$name" "$seconds" "$PYTHON" ".gpu/stage_$name.py" "$DOLMA" ${DRY:+--dry} "$@"
}

# The project's own tests were written for the CPU: with CUDA seen, their helpers' CPU masks and
# two-rank runs fail by themselves. Without it they say whether this torch, numpy and transformers agree.
project_tests() {
  local files="-k splice -n 0 tests/data_injection/test_splice.py"
  [ -n "$DRY" ] || files="-n 8 tests/olmo_ext/callbacks/test_interference.py tests/olmo_ext/test_data.py
    tests/olmo_ext/test_train.py tests/olmo_ext/callbacks/test_retention.py tests/eval/scores/test_accuracy.py
    tests/eval/interference/test_gradients.py tests/eval/alignment/test_das.py"
  # shellcheck disable=SC2086
  stage tests 120 env CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 \
    "$PYTHON" -m pytest -q -p no:cacheprovider --timeout 100 $files
}

# Exactness, inertness and resume of tiny runs, on the card; without one each says why it is skipped.
gpu_tests() {
  stage gpu_tests 90 env OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider \
    tests/olmo_ext/callbacks/test_interference.py tests/olmo_ext/callbacks/test_loss_budget.py \
    tests/olmo_ext/test_train.py
}

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,power.limit --format=csv 2> /dev/null
for one in $STAGES; do
  case $one in
    env) python_stage env 90 ;;
    verify)
      stage verify 120 "$PYTHON" -m launch verify --json "$OUT/verify.json"
      [ -d tests ] && gpu_tests
      ;;
    speed) python_stage speed 170 ${DRY:+--workers 0 --rungs 4M:4:2:5,20M:4:2:5 --seconds 5} ;;
    variants)
      python_stage variants "${VARIANTS_S:-190}" --seconds "${VARIANTS_S:-180}" \
        ${DRY:+--workers 0 --rungs 4M:4:2,300M:4:2,20M:4:2,1B:4:2 --seconds $((100 * ${SLOW:-1})) --each 1}
      ;;
    cells)
      python_stage cells "$([ -n "$DRY" ] && echo 60 || left)" \
        --out "$OUT" --until $((BEGAN + LIMIT - 40))
      ;;
    tests) project_tests ;;
    *) echo "no stage $one" ;;
  esac
done
# 16 MiB a file comes back. The log is small unless something repeats; then its end is what matters.
if [ "$(stat -c %s "$OUT/log.txt")" -gt 15000000 ]; then
  tail -c 12000000 "$OUT/log.txt" > "$OUT/log_end.txt"
  rm "$OUT/log.txt"
fi
echo "== results"
cut -c1-300 "$RESULTS"
ls -la "$OUT"
