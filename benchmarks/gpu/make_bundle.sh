#!/usr/bin/env bash
# On the machine without a GPU, in the repository's root, before anything runs on the one with it.
#   bash make_bundle.sh [PYTHON]        PYTHON: one with the project installed (.venv/bin/python)
# Makes .gpu/ (ignored by git through .git/info/exclude):
#   .gpu/site     stock ai2-olmo without its evaluation sets, omegaconf, importlib_resources, stubs
#   .gpu/dolma    the embedded text in the Dolma vocabulary (50,280), uint16
#   .gpu/corpus   the embedded text in the quickstart's own BPE vocabulary (2,048), uint16
# and prints what would travel. Everything is a copy: nothing is patched.
set -euo pipefail
PY=${1:-.venv/bin/python}
OUT=.gpu
HERE=$(cd "$(dirname "$0")" && pwd)
LIMIT=$((64 * 1024 * 1024))
"$PY" -c 'import olmo' 2>/dev/null || { echo "make_bundle: $PY has no olmo; run 'make install' first" >&2; exit 2; }
grep -qxF "/$OUT/" .git/info/exclude 2>/dev/null || echo "/$OUT/" >> .git/info/exclude
mkdir -p "$OUT"
rm -rf "$OUT/site.new"; mkdir -p "$OUT/site.new"

"$PY" - "$OUT/site.new" <<'PY'
"""Copy the engine and what it imports; write stubs for the clients of clouds that a run never asks."""
import importlib.metadata as md, importlib.util as iu, shutil, sys
from pathlib import Path

site = Path(sys.argv[1])
skip = shutil.ignore_patterns("__pycache__", "hf_datasets", "oe_eval_tasks", "*.pyc", "tests")
for name in ("olmo", "olmo_data", "omegaconf", "importlib_resources"):
    spec = iu.find_spec(name)
    shutil.copytree(Path(spec.origin).parent, site / name, ignore=skip)
for dist in ("ai2-olmo", "omegaconf", "importlib_resources", "olmo-ext"):
    meta = site / f"{dist.replace('-', '_')}-{md.version(dist)}.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {md.version(dist)}\n")

ABSENT = '''"""Stands for a package that the GPU machine lacks and a local run never calls."""


class _Absent:
    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        raise RuntimeError({name!r} + " is a stub on the GPU machine: no network, no cloud")

    def __getattr__(self, name):
        raise AttributeError({name!r} + "." + name + " is a stub on the GPU machine")

'''

def stub(module: str, body: str, package: bool = False) -> None:
    path = site / module.replace(".", "/")
    path = path / "__init__.py" if package else path.with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    for parent in path.relative_to(site).parents:
        # google is a namespace that protobuf shares: an __init__.py would hide google.protobuf.
        if str(parent) not in (".", "google") and not (site / parent / "__init__.py").exists():
            (site / parent / "__init__.py").write_text("")
    path.write_text(ABSENT.format(name=module) + body)

# The engine makes a client for every corpus, local ones too (memmap_dataset.py:102): making one
# works, as it does without a network; asking it anything raises.
stub("boto3", "class Session:\n    def __init__(self, *args, **kwargs):\n        pass\n\n"
     "    def client(self, *args, **kwargs):\n        return _Absent()\n")
stub("botocore.exceptions",
     "class ClientError(Exception): ...\nclass HTTPClientError(Exception): ...\n"
     "class ConnectionError(Exception): ...\nclass NoCredentialsError(Exception): ...\n")
stub("botocore.config", "class Config:\n    def __init__(self, *args, **kwargs):\n        pass\n")
stub("cached_path",
     "from pathlib import Path\n\nget_download_progress = _Absent()\n\n\n"
     "def cached_path(name, *args, **kwargs):\n    if not Path(name).exists():\n"
     "        raise FileNotFoundError(name)\n    return Path(name)\n", package=True)
stub("cached_path.schemes",
     "class SchemeClient:\n    recoverable_errors = ()\n    def __init__(self, resource):\n"
     "        raise RuntimeError('cached_path is a stub on the GPU machine')\n\n"
     "def add_scheme_client(*args):\n    pass\n")
stub("google.api_core.retry",
     "def Retry(*args, **kwargs):\n    return lambda function: function\n\n"
     "def if_transient_error(error):\n    return False\n")
stub("google.api_core.exceptions", "class NotFound(Exception): ...\n")
stub("datasets", "load_dataset = _Absent()\nload_from_disk = _Absent()\n"
     "class Dataset: ...\nclass DatasetDict: ...\n")
stub("wandb", "run = None\n\n\ndef init(*args, **kwargs):\n"
     "    raise RuntimeError('wandb is a stub on the GPU machine; leave train.wandb unset')\n\n\n"
     "def log(*args, **kwargs):\n    raise RuntimeError('wandb is a stub: no run was started')\n\n\n"
     "def finish(*args, **kwargs):\n    pass\n", package=True)
stub("wandb.errors", "class CommError(Exception): ...\n")
PY
rm -rf "$OUT/site"; mv "$OUT/site.new" "$OUT/site"

# The stand-in text, in two vocabularies. Kept from an earlier call where it is whole.
if [ ! -f "$OUT/corpus/manifest.json" ]; then
  "$PY" -m launch.cli prepare embedded --out "$OUT/corpus" >/dev/null
fi
if [ ! -f "$OUT/dolma/manifest.json" ]; then
  TMP=$(mktemp -d); trap 'rm -rf "$TMP"' EXIT
  "$PY" - "$TMP" <<'PY'
import gzip, json, sys
from data_injection.corpus.embedded import embedded_documents
for name, texts in zip(("english", "python"), embedded_documents(), strict=True):
    with gzip.open(f"{sys.argv[1]}/{name}.json.gz", "wt", compresslevel=1) as file:
        for text in texts:
            file.write(json.dumps({"text": text}) + "\n")
PY
  "$PY" -m launch.cli prepare "$TMP" --out "$OUT/dolma" --tokenizer dolma-v1_5 --name embedded-dolma-v1_5 >/dev/null
fi
cp "$HERE"/device_run.sh "$HERE"/*.py "$OUT/"
find "$OUT" -name __pycache__ -prune -exec rm -rf {} +
tree=$( { git ls-files -z; git ls-files -z --others --exclude-standard; } | xargs -0 -r du -cb 2>/dev/null | awk '$2=="total"{s+=$1} END{print s+0}')
mine=$(du -sb "$OUT" | cut -f1)
printf 'site %s  dolma %s  corpus %s\n' "$(du -sh "$OUT/site" | cut -f1)" "$(du -sh "$OUT/dolma" | cut -f1)" "$(du -sh "$OUT/corpus" | cut -f1)"
printf 'tree %.1f MB + %s %.1f MB = %.1f MB of 67.1 MB\n' "$((tree / 100000))e-1" "$OUT" "$((mine / 100000))e-1" "$(((tree + mine) / 100000))e-1"
[ $((tree + mine)) -lt $LIMIT ] || { echo "make_bundle: too large to travel" >&2; exit 1; }
echo "next, on the GPU machine, with .gpu carried along: bash .gpu/device_run.sh (590 s)"
