"""How many runs share a device: the first of a sweep, tried alone and side by side before it.

    jobs = probe_jobs(runs, gpus=visible_gpus(), console=console)

What is tried trains in a folder that goes away and is killed when it is measured. Watching the
sweep's own runs would cost less, but a neighbour too many takes the memory from under them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from eval.run import PROGRESS, read_if_whole
from launch.runs import Run
from launch.sweep.executor import Started, default_jobs, own_folders, pin, start, stopping

STEPS, SECONDS = 20, 5.0
"""At least so long is a try measured, after each of its runs has begun to train."""

CLEAR = 1.1
"""More side by side must raise the steps a second in total by a tenth: less may be chance."""

USABLE, PROCESS_BYTES = 0.9, 1e9
"""Share of a device's memory that runs may take, and what each takes beside its reckoned peak."""


def probe_jobs(
    runs: Sequence[Run], *, gpus: Sequence[str], console: Console, minutes: float | None = None
) -> int:
    """The number side by side that trains the most steps a second; what was measured is printed. No
    try goes on past `minutes`; where none could be measured, what a sweep takes without.
    """
    waiting = [run for run in runs if not run.finished]
    ready = next((run for run in waiting if not run.waits), None)
    devices = max(len(gpus), 1)
    most, why = min(
        (len(waiting), "runs are left"),
        (max(default_jobs([]), devices), "cores are there"),
        (devices * runs_that_fit(waiting, gpus=gpus), "fit into memory"),
    )
    numbers = [n for n in (devices * 2**doubled for doubled in range(8)) if n < most] + [most]
    tried = f"trying {', '.join(map(str, numbers))}" if len(numbers) > 1 else "nothing to try"
    console.print(f"--jobs auto: {most} {why}; {tried}")
    until = time.monotonic() + 60 * (minutes or math.inf)
    chosen, best, told = min(most, default_jobs(gpus)), 0.0, list[str]()
    if ready is None or len(numbers) == 1:
        return chosen
    with own_folders(runs), TemporaryDirectory(prefix="olmo-ext-probe-") as folder:
        for jobs in numbers:
            copies = [_copy(ready, Path(folder) / f"probe{jobs}-{n}") for n in range(jobs)]
            speed = total_speed(copies, gpus=gpus, until=until)
            told.append(f"{jobs} cannot be measured" if speed is None else f"{speed:.3g} by {jobs}")
            if speed is None or speed < CLEAR * best:
                break
            chosen, best = jobs, speed
    console.print(f"steps/s in total: {', '.join(told)}")
    return chosen


def total_speed(runs: Sequence[Run], *, gpus: Sequence[str], until: float) -> float | None:
    """Steps a second of all together while all train; None if one ended or `until` came."""
    running: dict[int, Started] = {}
    with stopping(running):
        try:
            for slot, run in enumerate(runs):
                running[slot] = start(run, pin(slot, gpus))
            before: list[dict[str, Any]] = []
            while all(one.process.exitcode is None for one in running.values()):
                if time.monotonic() > until:
                    break
                time.sleep(0.2)
                told = [read_if_whole(run.folder / PROGRESS) for run in runs]
                if not before and all(now.get("steps_per_second") for now in told):
                    before = told  # a speed is told from a start's second step on
                passed = [
                    (now["step"] - then["step"], now["time"] - then["time"])
                    for then, now in zip(before, told, strict=False)
                ]
                if passed and all(num >= STEPS and took >= SECONDS for num, took in passed):
                    return float(sum(num / took for num, took in passed))
        finally:
            for one in running.values():
                one.process.kill()  # on SIGTERM it would save
    return None


def runs_that_fit(runs: Sequence[Run], *, gpus: Sequence[str]) -> int:
    """How many of the largest fit into the smallest device's memory; 1 in any case.

    By `plan --cost`'s reckoning, not the probe's own peak: callbacks that come later take more.
    """
    from launch.reckon import Reckoner
    from olmo_ext.cost import extra_bytes

    if gpus:
        sizes = [torch.cuda.get_device_properties(gpu).total_memory for gpu in range(len(gpus))]
    else:
        sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    reckoner, peak = Reckoner(), 0.0
    for run in runs:
        assert run.experiment is not None
        cost = reckoner.row(run.experiment).cost
        step = cost.memory.step + sum(extra_bytes(run.experiment, cost).values())
        peak = max(peak, cost.memory.start, step)
    return max(int(USABLE * min(sizes) / (peak + PROCESS_BYTES)), 1)


def _copy(run: Run, folder: Path) -> Run:
    """The same training in a folder of its own, without a word to W&B."""
    given = [f"train.run_name={folder.name}", f"train.save_folder={json.dumps(str(folder))}"]
    given += ["train.no_pre_train_checkpoint=true", "train.wandb=null", "callbacks.progress={}"]
    given += ["train.save_interval_unsharded=1000000"]  # nothing is written while it is measured
    options = [part for override in given for part in ("--override", override)]
    return replace(run, name=folder.name, folder=folder, arguments=(*run.arguments, *options))
