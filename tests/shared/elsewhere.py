"""The commands of the docs that the tests of the pages do not run, each with its reason."""

from __future__ import annotations

LONG = "trains or measures for minutes to hours"
FETCHED = "reads what is fetched from the network"
CARDS = "needs GPUs"
OWN = "a file of the reader's own"
SLURM = "a real SLURM's: tests/launch/slurm/test_slurm_real.py, where there is one"
CORE = "the other engine's environment: `make test-core`"
HOUR = "run by tests/test_first_hour.py"
DOLMA = "reads a batch of the study's size of Dolma: tests/test_ladder.py has the same on a memmap"

ELSEWHERE = {
    "README.md": {
        "make quickstart": LONG,
        "make test": "the tests themselves",
        "source ": "the reader's shell",
        "olmo-ext ": HOUR,
    },
    "benchmarks/RESULTS.md": {"python benchmarks/": LONG},
    "benchmarks/gpu/README.md": {"bash ": CARDS, "OUT=": LONG},
    "configs/olmo_4M_to_4B/README.md": {
        "olmo-ext plan configs/olmo_4M_to_4B/paper": DOLMA,
        "olmo-ext prepare": FETCHED,
        "olmo-ext sweep": DOLMA,
        "olmo-ext train configs/olmo_4M_to_4B/paper/20M.yaml": CARDS,
        "olmo-ext train configs/olmo_4M_to_4B/paper/4M.yaml --dry-run -o": DOLMA,
        "torchrun": CARDS,
        "OLMO_SHARED_FS=1 torchrun": CARDS,
    },
    "docs/advice.md": {"olmo-ext predict runs/chain": LONG},
    "docs/audit.md": {"olmo-ext audit runs/w32": "a run that was killed by hand"},
    "docs/clusters.md": {
        "git clone": FETCHED,
        ".venv/bin/olmo-ext": LONG,
        "olmo-ext submit configs/olmo_4M_to_4B/smoke.yaml --site my-site.yaml --prepare": SLURM,
        "olmo-ext submit grid.yaml --site one-rank.yaml --out runs -o corpus=runs/corpus\n": SLURM,
        "squeue": SLURM,
        "olmo-ext status": SLURM,
        "cat runs/smoke": SLURM,
        "olmo-ext audit runs/smoke": SLURM,
        "olmo-ext submit configs/olmo_4M_to_4B/paper": DOLMA,
    },
    "docs/data.md": {
        "awk": FETCHED,
        "wget": FETCHED,
        "olmo-ext prepare 'olmo-data.org": FETCHED,
    },
    "docs/evaluation-das.md": {"olmo-ext ": LONG},
    "docs/evaluation.md": {
        "olmo-ext eval downloads": FETCHED,
        "olmo-ext eval runs/ --device cuda": CARDS,
    },
    "docs/export.md": {"cd exported && lm_eval": "lm-evaluation-harness: tests/eval/export"},
    "docs/findings.md": {"make ": LONG, "olmo-ext confirm": LONG},
    "docs/olmo_core.md": {"python3 -m venv": CORE, "make test-core": CORE},
    "docs/reliability.md": {"torchrun": CARDS},
    "docs/scaling.md": {
        "olmo-ext scaling fit runs.csv": OWN,
        "olmo-ext scaling fit runs/sweep": OWN,
        "olmo-ext scaling fit table.csv": OWN,
    },
    "docs/sweeps.md": {
        "olmo-ext sweep mine/sweep.yaml --out runs  ": LONG,
        "olmo-ext sweep mixture.yaml": LONG,
    },
    "docs/theory.md": {"olmo-ext theory": LONG},
}
"""page -> {beginning of a command: why it is not run}."""


def elsewhere(page: str, line: str) -> str | None:
    """Why a command of a page is not run here; None if it is."""
    starts = ELSEWHERE.get(page, {})
    return next((reason for start, reason in starts.items() if f"{line}\n".startswith(start)), None)
