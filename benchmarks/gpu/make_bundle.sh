#!/usr/bin/env bash
# On the machine without a GPU, in the repository's root, before anything runs on the one with it:
#   bash benchmarks/gpu/make_bundle.sh [PYTHON]     PYTHON has the project installed (.venv/bin/python)
# Makes .gpu/ (ignored by git), which README.md here describes, and says what would travel.
set -euo pipefail
PY=${1:-.venv/bin/python}
OUT=.gpu
HERE=$(cd "$(dirname "$0")" && pwd)
LIMIT=$((64 * 1024 * 1024))
"$PY" -c 'import olmo' 2> /dev/null || { echo "make_bundle: $PY has no olmo; run 'make install' first" >&2; exit 2; }
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$OUT"
rm -rf "$OUT/corpus" # of earlier bundles; no stage reads it
rm -rf "$OUT/site.new"
mkdir "$OUT/site.new"
"$PY" "$HERE/bundle_site.py" "$OUT/site.new"
rm -rf "$OUT/site"
mv "$OUT/site.new" "$OUT/site"

# The stand-in text, in the ladder's vocabulary. Kept from an earlier call where it is whole.
if [ ! -f "$OUT/dolma/manifest.json" ]; then
  TMP=$(mktemp -d)
  trap 'rm -rf "$TMP"' EXIT
  "$PY" - "$TMP" << 'PY'
import gzip, json, sys
from data_injection.corpus.embedded import embedded_documents
for name, texts in zip(("english", "python"), embedded_documents(), strict=True):
    with gzip.open(f"{sys.argv[1]}/{name}.json.gz", "wt", compresslevel=1) as file:
        for text in texts:
            file.write(json.dumps({"text": text}) + "\n")
PY
  "$PY" -m launch.cli prepare "$TMP" --out "$OUT/dolma" --tokenizer dolma-v1_5 --name embedded-dolma-v1_5 > /dev/null
fi
git describe --always --dirty > "$OUT/commit" # its results say of what they are
install -m 644 "$HERE"/device_run.sh "$HERE"/gpu_common.py "$HERE"/stage_*.py "$OUT/"
find "$OUT" -name __pycache__ -prune -exec rm -rf {} +

tree=$({ git ls-files -z; git ls-files -z --others --exclude-standard; } | xargs -0 -r du -cb 2> /dev/null | awk '$2 == "total" {s += $1} END {print s + 0}')
mine=$(du -sb "$OUT" | cut -f1)
printf 'site %s  dolma %s\n' $(du -sh "$OUT/site" "$OUT/dolma" | cut -f1)
awk -v tree="$tree" -v mine="$mine" -v limit=$LIMIT \
  'BEGIN {printf "tree %.1f MB + .gpu %.1f MB = %.1f MB of %.1f MB\n", tree / 1e6, mine / 1e6, (tree + mine) / 1e6, limit / 1e6}'
[ $((tree + mine)) -lt $LIMIT ] || { echo "make_bundle: too large to travel" >&2; exit 1; }
echo "next, on the GPU machine, with .gpu carried along: bash .gpu/device_run.sh (590 s)"
