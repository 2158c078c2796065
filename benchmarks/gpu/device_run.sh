#!/usr/bin/env bash
# On the GPU machine, in the repository's root:   bash .gpu/device_run.sh [--dry]
#   carry .gpu along with the work tree; allow it 590 s
# Each stage has its own limit and its results are on the disk as it goes: a cut keeps what was done.
# STAGES picks and orders them; LIMIT is the whole call's seconds. Comes back, of 8 files at most:
#   results.jsonl (a line a result), log.txt (all output), records.tar.gz (each cell's records, run.json, log)
set -u
ROOT=$PWD; OUT=${OUT:-$ROOT/.gpu/out}; mkdir -p "$OUT"
DRY=; [ "${1:-}" = --dry ] && DRY=1
LIMIT=${LIMIT:-560}; BEGAN=$(date +%s)
STAGES=${STAGES:-"env parity speed cells"}   # `tests` only when asked for: see its note
PYTHON=${PYTHON:-python3}
export REPO=$ROOT RESULTS=$OUT/results.jsonl PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 WANDB_MODE=offline
# The project first, then the copies: an image's own packages stay the ones that are used.
export PYTHONPATH=$ROOT:$ROOT/.gpu/site:$ROOT/.gpu PYTHONWARNINGS="ignore::UserWarning:omegaconf,ignore"
export TMPDIR=${TMPDIR:-/tmp}
DOLMA=$ROOT/.gpu/dolma MICRO=$ROOT/.gpu/corpus
exec > >(tee -a "$OUT/log.txt") 2>&1
left() { echo $((LIMIT - ($(date +%s) - BEGAN))); }
stage() {  # NAME SECONDS COMMAND...
  local name=$1 want=$2; shift 2
  want=$((want * ${SLOW:-1}))  # SLOW: for a rehearsal on a loaded CPU
  local have; have=$(left); [ "$have" -lt "$want" ] && want=$have
  if [ "$want" -lt 15 ]; then echo "== $name: no time left"; return; fi
  echo "== $name: at most ${want} s, $(left) s left in all"
  local began; began=$(date +%s)
  timeout -k 5 "$want" "$@"; local rc=$?
  echo "{\"stage\": \"stage\", \"name\": \"$name\", \"rc\": $rc, \"seconds\": $(( $(date +%s) - began ))}" | tee -a "$RESULTS"
}
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,power.limit --format=csv 2>/dev/null
for one in $STAGES; do
  case $one in
    env)    stage env 90 "$PYTHON" .gpu/stage_env.py "$DOLMA" ${DRY:+--dry} ;;
    parity) stage parity 100 "$PYTHON" .gpu/stage_parity.py "$DOLMA" ${DRY:+--dry} ;;
    speed)  stage speed 170 "$PYTHON" .gpu/stage_speed.py "$DOLMA" ${DRY:+--dry --workers 0 --rungs 4M:4:2:5,20M:4:2:5 --seconds 5} ;;
    # The project's own tests were written for the CPU: with CUDA seen, their helpers' CPU masks and two-rank runs
    # fail by themselves. Without it they say whether this torch, numpy and transformers agree.
    tests)  stage tests 120 env CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -p no:cacheprovider --timeout 100 ${DRY:+-x} -n $( [ -n "$DRY" ] && echo 0 || echo 8) \
              ${DRY:+-k splice} $( [ -n "$DRY" ] && echo tests/data_injection/test_splice.py || echo tests/olmo_ext/callbacks/test_interference.py tests/olmo_ext/test_data.py tests/olmo_ext/test_train.py tests/olmo_ext/callbacks/test_retention.py tests/eval/scores/test_accuracy.py tests/eval/interference/test_gradients.py tests/eval/alignment/test_das.py) ;;
    variants) stage variants "${VARIANTS_S:-190}" "$PYTHON" .gpu/stage_variants.py "$DOLMA" --seconds "${VARIANTS_S:-180}" ${DRY:+--dry --workers 0 --rungs 4M:4:2,300M:4:2 --seconds 100 --each 1} ;;
    resume) # both at once: they are launch-bound
      stage resume 60 "$PYTHON" .gpu/stage_resume.py "$DOLMA" ${DRY:+--dry} &
      stage resume 60 "$PYTHON" .gpu/stage_resume.py "$DOLMA" --deterministic ${DRY:+--dry}; wait $! ;;
    cells)  stage cells "$( [ -n "$DRY" ] && echo 60 || left)" "$PYTHON" .gpu/stage_cells.py "$DOLMA" --out "$OUT" --until $((BEGAN + LIMIT - 40)) ${DRY:+--dry} ;;
    *) echo "no stage $one" ;;
  esac
done
# 16 MiB a file comes back. The log is small unless something repeats; then its end is what matters.
if [ "$(stat -c %s "$OUT/log.txt")" -gt 15000000 ]; then tail -c 12000000 "$OUT/log.txt" > "$OUT/log_end.txt"; rm "$OUT/log.txt"; fi
echo "== results"; cut -c1-300 "$RESULTS"; ls -la "$OUT"
