"""Runs side by side on this machine: a process per core or per GPU, each going on where it was.

    train_all(runs, jobs=2, console=Console())

What is finished is skipped. Processes are forked from one that has imported the engine; they watch
this one, so that none trains on after a sweep that was killed.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from rich.console import Console

from data_injection.errors import ConfigError
from data_injection.lock import is_locked, lock_folder
from eval.run import PROGRESS, read_if_whole, whole
from launch.runs import Run
from launch.terminal import BAD_INPUT, progress_bar
from launch.train import train_as_typed
from olmo_ext.signals import end_after

ENVIRONMENT = {
    # Runs side by side: one thread each, so that none waits for another's cores. The number of
    # threads also fixes the order of floating-point sums.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # glibc gives every logits tensor fresh pages and takes them back at once; keeping them made
    # micro rungs a third faster (5.3 to 7.3 and 6.7 to 8.8 steps/s at width 64, interleaved).
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}


class RunFailed(Exception):
    """A training process ended with an error."""


def run_olmo_ext(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> None:
    """What a run's process does: `olmo-ext train ...`, its output into the log."""
    # A process of a fork server would start the loader's workers by a fork server too: another
    # way than a typed command's, whose workers are its children and end with it.
    multiprocessing.set_start_method(None, force=True)
    # Of the sweep, not of the fork server, whose life lasts as long as any run's: the sentinel is
    # the read end of a pipe that the sweep alone can write to.
    sweep = multiprocessing.parent_process()
    if sweep is not None:
        end_after(sweep.join)
    os.environ.update(environment or {})  # CUDA looks at it when it is first used
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    train_as_typed(arguments)


def fork_server() -> ForkServerContext:
    """Processes forked from one that has imported the engine once, in ENVIRONMENT: importing it
    takes six seconds, as long as a small run. Returns while it is imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["olmo_ext.train"])
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def visible_gpus() -> list[str]:
    """The GPUs that runs may be pinned to, as CUDA_VISIBLE_DEVICES names them; [] without any."""
    import torch

    count = torch.cuda.device_count()
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = told.split(",") if told else [str(number) for number in range(count)]
    return [name.strip() for name in names][:count]


def default_jobs(gpus: Sequence[str]) -> int:
    """One run a GPU; without GPUs, one a core that this process may use."""
    if gpus:
        return len(gpus)
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def pin(slot: int, gpus: Sequence[str]) -> dict[str, str]:
    """The environment of the run in a slot: with more slots than GPUs several share one."""
    return {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}


@dataclass(frozen=True)
class Started:
    """A run's process, and where it began."""

    run: Run
    process: ForkServerProcess
    saved_step: int
    """At its start: what an earlier one did after its last save is lost."""
    told: dict[str, Any] = field(default_factory=dict)
    """progress.json at its start, an earlier one's."""

    @property
    def step(self) -> int:
        """The last step it tells of, or where it began."""
        now = read_if_whole(self.run.folder / PROGRESS)
        return (whole(now, "step") or 0) if now and now != self.told else self.saved_step


@dataclass(frozen=True)
class Failure:
    """A run that was given up."""

    run: Run
    why: str
    attempts: int
    step: int

    @property
    def last_line(self) -> str:
        text = self.run.log.read_text(errors="replace") if self.run.log.exists() else ""
        return text.strip().split("\n")[-1].strip()


def train_all(
    runs: Sequence[Run],
    *,
    jobs: int,
    console: Console,
    retries: int = 0,
    keep_going: bool = False,
    gpus: Sequence[str] = (),
    minutes: float | None = None,
) -> list[Failure]:
    """Train what is not finished, `jobs` at a time; what failed comes back if `keep_going`.

    On any error and on Ctrl-C the running ones are stopped; their checkpoints stay.

    Args:
        retries: more starts for a run that ended with an error, each from its last checkpoint; not
            after status 2 (bad input), nor for a run that somebody stopped.
        keep_going: train the rest when one has failed. By default raises RunFailed with the log's
            end.
        gpus: to pin runs to, one each; with more jobs than GPUs several share one.
        minutes: after these the running ones save and end and no other is started.

    Raises ConfigError as `own_folders`.
    """
    with own_folders(runs):
        waiting = [run for run in runs if not run.finished]
        if done := len(runs) - len(waiting):
            console.print(f"{done} of {len(runs)} runs: finished earlier, not trained again")
        until = math.inf if minutes is None else time.monotonic() + 60 * minutes
        return _Executor(console, jobs, retries, keep_going, list(gpus), until).train(waiting)


@contextmanager
def own_folders(runs: Sequence[Run]) -> Iterator[None]:
    """The folders that hold the runs, against a second sweep; freed however this process ends.

    Raises:
        ConfigError: another sweep trains in one, or a run there has other settings.
    """
    with ExitStack() as stack:
        for folder in sorted({run.folder.parent for run in runs}):
            try:
                stack.enter_context(lock_folder(folder))
            except ConfigError:
                rule, remedy = "is trained in by another sweep", "wait for it or choose another"
                raise ConfigError(key="--out", value=folder, rule=rule, remedy=remedy) from None
        for run in runs:
            run.check_settings()
        yield


@dataclass
class _Executor:
    console: Console
    jobs: int
    retries: int
    keep_going: bool
    gpus: list[str]
    until: float
    """When to stop, by the monotonic clock."""
    running: dict[int, Started] = field(default_factory=dict)
    """Slot -> the run that takes it."""
    attempts: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    busy: set[str] = field(default_factory=set)
    stopped: bool = False

    def train(self, waiting: list[Run]) -> list[Failure]:
        total, finished = sum(run.num_tokens for run in waiting), 0
        with stopping(self.running), progress_bar(self.console, lines=False) as bar:
            num_runs = len(waiting)
            said = time.monotonic()
            while waiting or self.running:
                if time.monotonic() >= self.until:
                    waiting.clear()
                    self._stop()
                self._start_some(waiting)
                time.sleep(0.2)
                for slot, one in list(self.running.items()):
                    run = one.run
                    bar(run.name, one.step, run.num_steps)
                    if one.process.exitcode is None:
                        continue
                    del self.running[slot]
                    bar(run.name, run.num_steps, run.num_steps)
                    if self._ended(one, one.process.exitcode):
                        finished += run.num_tokens
                    else:
                        waiting.append(run)
                now = [(one.run, one.step) for one in self.running.values()]
                part = sum(run.num_tokens * step / run.num_steps for run, step in now)
                bar(f"all {num_runs} runs", (finished + part) / total * num_runs, num_runs)
                if not self.console.is_terminal and time.monotonic() - said > 20:
                    said = time.monotonic()
                    self.console.print(
                        f"{(finished + part) / total:.0%}  "
                        + "  ".join(f"{run.name}: step {step}/{run.num_steps}" for run, step in now)
                    )
        return self.failures

    def _start_some(self, waiting: list[Run]) -> None:
        for run in list(waiting):
            if len(self.running) >= self.jobs:
                return
            # Not for a parent that was given up: such a run says itself what it lacks.
            busy = [*waiting, *(one.run for one in self.running.values())]
            if run.waits and any(run.parent and run.parent.folder == o.folder for o in busy):
                continue
            # Runs of a sweep that was killed still save and end.
            if is_locked(run.folder):
                if run.name not in self.busy:
                    self.console.print(f"{run.name}: waiting for a process that trains it")
                    self.busy.add(run.name)
                continue
            waiting.remove(run)
            slot = min(set(range(self.jobs)) - set(self.running))
            self.attempts[run.name] += 1
            self.running[slot] = start(run, pin(slot, self.gpus))

    def _stop(self) -> None:
        """Ask the running ones, once, to save and end."""
        if not self.stopped:
            self.stopped = True
            for one in self.running.values():
                one.process.terminate()

    def _ended(self, one: Started, status: int) -> bool:
        """Whether it needs no other start: it is finished, or given up."""
        run = one.run
        # Saved, or stopped before it took the signal for a reason to save.
        by_us = self.stopped and status in (0, -signal.SIGTERM)
        if by_us or (run.finished and status == 0):
            return True
        attempts = self.attempts[run.name]
        if status not in (0, BAD_INPUT) and attempts <= self.retries:
            self.console.print(
                f"{run.name} ended with {_status(status)} at step {one.step}; starting it again "
                f"({attempts} of {self.retries})",
                highlight=False,
            )
            return False
        if status == 0:
            why = f"was stopped early and saved ({run.log} says why); the same command goes on"
        else:
            tail = "\n".join(run.log.read_text(errors="replace").splitlines()[-15:])
            why = f"ended with {_status(status)}; {run.log} ends:\n{tail}"
        if not self.keep_going:
            raise RunFailed(f"run {run.name} {why}")
        said = _status(status) if status else "stopped early"
        self.failures.append(Failure(run, said, attempts, one.step))
        self.console.print(f"{run.name}: given up after {attempts} starts, {_status(status)}")
        return True


def _status(status: int) -> str:
    """multiprocessing's: a signal is its negative number."""
    said = f"status {status}"
    return said if status >= 0 else f"{signal.Signals(-status).name} ({said})"


def start(run: Run, environment: Mapping[str, str] | None = None) -> Started:
    """Start a run in a process of its own, or go on from its last checkpoint."""
    args = (run.arguments, run.log, dict(environment or {}))
    process = fork_server().Process(target=run_olmo_ext, args=args)
    before = read_if_whole(run.folder / PROGRESS)
    run.log.parent.mkdir(parents=True, exist_ok=True)
    process.start()
    return Started(run, process, run.saved_step, before)


@contextmanager
def stopping(running: Mapping[int, Started]) -> Iterator[None]:
    """Ends the running ones however this process ends; after a SIGKILL they end by themselves."""

    def terminate(number: int, frame: object) -> None:
        sys.exit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
        processes = [one.process for one in running.values()]
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
