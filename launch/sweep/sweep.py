"""Sweeps: a grid of runs from one YAML, trained on this machine, resumable.

    olmo-ext sweep configs/confirm/single.yaml --out runs/confirm -o corpus=runs/corpus

Each run is one `olmo-ext train ... --resume` in a process of its own on one thread, in
OUT/<sweep>/<labels>. Interrupted, the same command goes on where it was; finished runs are not
trained again. What a sweep's YAML says: launch/grid.py.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from data_injection.errors import ConfigError
from eval.text import count, new_table, number, print_table
from launch.json_file import write_rows
from launch.runs import Run
from launch.sweep.executor import Failure, RunFailed, default_jobs, train_all, visible_gpus
from launch.sweep.probe import probe_jobs

Jobs = int | Literal["auto"] | None
"""Runs side by side. None: one a GPU, without GPUs one a core; auto: as many as a probe says."""


def parse_jobs(text: str | None) -> Jobs:
    """What --jobs says. Raises ConfigError."""
    if text is None or text == "auto":
        return "auto" if text else None
    if not text.isdecimal() or int(text) < 1:
        rule, remedy = "must be a positive number or auto", "leave it out for one a GPU, or a core"
        raise ConfigError(key="--jobs", value=text, rule=rule, remedy=remedy)
    return int(text)


def train_sweeps(
    runs: Sequence[Run], *, jobs: Jobs, retries: int, minutes: float | None = None, console: Console
) -> list[Run]:
    """Train every run; those that fail are tried again, the rest goes on, all failures are shown.

    Args:
        minutes: after these, a probe's among them, what runs is saved and no more is started.

    Returns:
        what is left, which is named.

    Raises:
        RunFailed: at the end, if some were given up; the message counts them.
    """
    gpus, began = visible_gpus(), time.monotonic()
    if jobs == "auto":
        jobs = probe_jobs(runs, gpus=gpus, console=console, minutes=minutes)
    rest = None if minutes is None else minutes - (time.monotonic() - began) / 60
    jobs = min(jobs or default_jobs(gpus), max(len(runs), 1))
    console.print(
        f"{len(runs)} runs, {jobs} side by side"
        + (f", pinned to GPUs {', '.join(gpus)}" if gpus else ", one core each")
    )
    failures = train_all(
        runs, jobs=jobs, retries=retries, minutes=rest, gpus=gpus, keep_going=True,
        console=console,
    )  # fmt: skip
    left = [run for run in runs if not run.finished] if minutes is not None else []
    if left:
        steps = ", ".join(f"{run.name} at step {run.saved_step}/{run.num_steps}" for run in left)
        console.print(f"{minutes:g} minutes are over; left are {steps}; the same command goes on")
    if failures:
        print_table(failure_table(failures), console)
        raise RunFailed(
            f"{len(failures)} of {len(runs)} runs failed; the same command tries them again from "
            "their last checkpoints"
        )
    return left


def show_runs(
    runs: Sequence[Run], console: Console, *, json: Path | None, peak_tflops: float, mfu: float
) -> None:
    """Every cell with its tokens, GPU hours and storage, and the sums."""
    from launch.reckon import Reckoner, size

    reckoner = Reckoner(peak_tflops=peak_tflops, mfu=mfu)
    numbers = ("steps", "tokens", "GPU hours", "checkpoints", "storage")
    table = new_table("run", numbers=numbers, beside=("folder",))
    hours, kept = 0.0, 0
    rows: list[dict[str, Any]] = []
    for run in runs:
        assert run.experiment is not None
        row = reckoner.row(run.experiment)
        hours, kept = hours + row.cost.gpu_hours, kept + row.storage
        told = {"run": run.name, "steps": run.num_steps, "tokens": run.num_tokens}
        told |= {"gpu_hours": row.cost.gpu_hours, "checkpoints": row.num_checkpoints}
        told |= {"storage": row.storage, "folder": str(run.folder), "finished": run.finished}
        rows.append(told)
        where = str(run.folder) + (" (finished)" if run.finished else "")
        counts = (f"{run.num_steps:,}", count(run.num_tokens), number(row.cost.gpu_hours))
        table.add_row(run.name, *counts, str(row.num_checkpoints), size(row.storage), where)
    print_table(table, console)
    write_rows(json, rows)
    console.print(
        f"{len(runs)} runs, {count(sum(run.num_tokens for run in runs))} tokens, {number(hours)} "
        f"GPU hours (at {peak_tflops:g} TFLOP/s and MFU {mfu:g}), {size(kept)} of checkpoints; "
        "nothing was trained"
    )


def failure_table(failures: Sequence[Failure]) -> Table:
    """What was given up, and the last line of each log."""
    beside = ("last line of its log",)
    table = new_table("failed run", "ended with", numbers=("starts", "at step"), beside=beside)
    for failure in failures:
        run = failure.run
        counts = (str(failure.attempts), f"{failure.step}/{run.num_steps}")
        table.add_row(run.name, failure.why, *counts, f"{failure.last_line}\n{run.log}")
    return table
