"""How many runs share a device: the first of a sweep, tried alone and side by side before it.

    jobs = probe_jobs(runs, gpus=visible_gpus(), console=console)

What is tried trains in a folder that goes away and is killed when it is measured. Watching the
sweep's own runs would cost less, but a neighbour too many takes the memory from under them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from eval.run import PROGRESS, read_if_whole
from launch.reckon import Reckoner
from launch.runs import Run
from launch.sweep.executor import Started, default_jobs, pin, start, stopping
from olmo_ext.cost import extra_bytes

STEPS, SECONDS = 20, 5.0
"""At least so long is a try measured, after each of its runs has begun to train."""

CLEAR = 1.1
"""More side by side must raise the steps a second in total by a tenth: less may be chance."""

USABLE, PROCESS_BYTES = 0.9, 1e9
"""Share of a device's memory that runs may take, and what each takes beside its reckoned peak."""


def probe_jobs(runs: Sequence[Run], *, gpus: Sequence[str], console: Console) -> int:
    """The number side by side that trains the most steps a second; what was measured is printed."""
    waiting = [run for run in runs if not run.finished]
    ready = [run for run in waiting if not run.waits]
    devices = max(len(gpus), 1)
    limits = {
        "runs are left": len(waiting),
        "cores are there": max(default_jobs([]), devices),
        "fit into memory": devices * runs_that_fit(waiting, gpus=gpus),
    }
    bound = min(limits, key=lambda name: limits[name])
    numbers = doubled(devices, most=limits[bound])
    console.print(f"--jobs auto: {limits[bound]} {bound}; trying {', '.join(map(str, numbers))}")
    if not ready or len(numbers) == 1:
        return numbers[0]
    with TemporaryDirectory(prefix="olmo-ext-probe-") as folder:

        def speed(jobs: int) -> float | None:
            names = [f"probe{jobs}-{number}" for number in range(jobs)]
            return total_speed([_copy(ready[0], Path(folder) / n) for n in names], gpus=gpus)

        told = climb(numbers, speed)
    said = ", ".join(f"{speed:.3g} by {jobs}" for jobs, speed in told.items())
    console.print(f"steps/s in total: {said or 'a run ended before it could be measured'}")
    return best(told) or numbers[0]


def doubled(first: int, *, most: int) -> list[int]:
    """first, twice that, ... and `most`; `most` alone where it is below."""
    found = [first]
    while found[-1] < most:
        found.append(min(2 * found[-1], most))
    return [number for number in found if number <= most] or [max(most, 1)]


def climb(numbers: Sequence[int], speed: Callable[[int], float | None]) -> dict[int, float]:
    """Number side by side -> steps a second in total, up to the first that does not pay.

    Args:
        speed: None where that many cannot be trained.
    """
    told: dict[int, float] = {}
    for jobs in numbers:
        now = speed(jobs)
        if now is None:
            break
        told[jobs] = now
        if best(told) != jobs:
            break
    return told


def best(told: dict[int, float]) -> int | None:
    """The largest number that is better than those before it by a clear margin."""
    chosen = None
    for jobs, speed in told.items():
        if chosen is None or speed >= CLEAR * told[chosen]:
            chosen = jobs
    return chosen


def total_speed(runs: Sequence[Run], *, gpus: Sequence[str]) -> float | None:
    """Steps a second of all together while all train; None if one ended, for whatever reason."""
    running: dict[int, Started] = {}

    def told_when(enough: Callable[[int, dict[str, Any]], bool]) -> list[dict[str, Any]] | None:
        while all(one.process.exitcode is None for one in running.values()):
            told = [read_if_whole(one.run.folder / PROGRESS) for one in running.values()]
            if all(enough(slot, now) for slot, now in enumerate(told)):
                return told
            time.sleep(0.2)
        return None

    with stopping(running):
        try:
            for slot, run in enumerate(runs):
                running[slot] = start(run, pin(slot, gpus))
            # A speed is told from a start's second step on: it has warmed up.
            before = told_when(lambda slot, now: bool(now.get("steps_per_second")))
            after = before and told_when(
                lambda slot, now: (
                    now["step"] >= before[slot]["step"] + STEPS
                    and now["time"] >= before[slot]["time"] + SECONDS
                )
            )
        finally:
            for one in running.values():
                one.process.kill()  # on SIGTERM it would save
    if not before or not after:
        return None
    pairs = zip(before, after, strict=True)
    return sum((now["step"] - was["step"]) / (now["time"] - was["time"]) for was, now in pairs)


def runs_that_fit(runs: Sequence[Run], *, gpus: Sequence[str]) -> int:
    """How many of the largest fit into a device's memory, by `plan --cost`'s reckoning; 1 or more.

    Not by the probe's own peak: callbacks that come later take more.
    """
    reckoner, peaks = Reckoner(), [PROCESS_BYTES]
    for run in runs:
        assert run.experiment is not None
        cost = reckoner.row(run.experiment).cost
        extra = sum(extra_bytes(run.experiment, cost).values())
        peaks.append(max(cost.memory.start, cost.memory.step + extra) + PROCESS_BYTES)
    return max(int(USABLE * _device_bytes(gpus) / max(peaks)), 1)


def _device_bytes(gpus: Sequence[str]) -> int:
    """Memory of the smallest GPU; without any, the machine's."""
    import torch

    if not gpus:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    sizes = [torch.cuda.get_device_properties(number).total_memory for number in range(len(gpus))]
    return min(sizes)


def _copy(run: Run, folder: Path) -> Run:
    """The same training in a folder of its own, without a word to W&B."""
    own = (f"train.run_name={folder.name}", f"train.save_folder={json.dumps(str(folder))}")
    given = [*own, "train.no_pre_train_checkpoint=true", "train.wandb=null"]
    options = [part for override in given for part in ("--override", override)]
    return replace(run, name=folder.name, folder=folder, arguments=(*run.arguments, *options))
