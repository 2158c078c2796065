"""Sweeps: a grid of runs from one YAML, trained on this machine, resumable.

    olmo-ext sweep configs/confirm/single.yaml --out runs/confirm -o corpus=runs/corpus

    name: single                          # of the sweep; its runs are single-w16-r8-s1, ...
    experiments: [../quickstart.yaml]     # relative to this file; several stand for one more axis
    set: {train.max_duration: 1200}       # for all runs
    axes:                                 # every combination is a run, named by its labels
      width: {w16: {rung: w16, train.model.d_model: 16}, w32: {...}}
      seed: {s1: {train.seed: 1}}

Each run is one `olmo-ext train ... --resume` in a process of its own on one thread, in
OUT/<labels>.
Interrupted, the same command goes on where it was; finished runs are not trained again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from data_injection.config import ConfigError
from eval.checkpoint import find_checkpoints

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

KEYS = ("name", "experiments", "set", "axes")
_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._]*")
_STEP = re.compile(r"step (\d+)/(\d+)")

Settings = Mapping[str, Any]
"""Dotted keys of an experiment and their values."""


class RunFailed(Exception):
    """A training process ended with an error."""


@dataclass(frozen=True)
class Point:
    """One point of a sweep's grid: its labels, its experiment file and what it sets there."""

    labels: tuple[str, ...]
    experiment: Path
    settings: dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A grid of runs: every experiment with every combination of the axes' settings."""

    name: str
    experiments: tuple[Path, ...]
    axes: Mapping[str, Mapping[str, Settings]]
    """Axis -> label -> settings. A label is a part of the run's name: letters, digits, . and _."""
    settings: Settings = field(default_factory=dict)
    """For all runs; an axis' settings go over them."""

    def points(self) -> list[Point]:
        """The grid, the last axis running fastest. Raises ConfigError for names that cannot be."""
        stems = [path.stem for path in self.experiments]
        several = len(stems) > 1
        parts = [label for axis in self.axes.values() for label in axis]
        for label in [self.name, *parts, *(stems if several else ())]:
            if not _LABEL.fullmatch(str(label)):
                raise ConfigError(
                    f"sweep {self.name}: {label!r} becomes a part of run names and folders; use "
                    "letters, digits, . and _ only, not . first"
                )
        for name, axis in self.axes.items():
            if not axis or len({str(label) for label in axis}) < len(axis):
                raise ConfigError(
                    f"sweep {self.name}: axes.{name} must have labels, all different as text, got "
                    f"{list(axis)}"
                )
        if len(set(stems)) < len(stems):
            raise ConfigError(
                f"sweep {self.name}: experiments {stems} share a file name, so that their runs "
                "would share a folder; rename one"
            )
        points = []
        for experiment in self.experiments:
            for choice in product(*(axis.items() for axis in self.axes.values())):
                labels = ((experiment.stem,) if several else ()) + tuple(str(k) for k, _ in choice)
                settings = dict(self.settings)
                for _, chosen in choice:
                    for key, value in chosen.items():
                        settings.pop(key, None)  # an axis' settings come after the sweep's
                        settings[key] = value
                points.append(Point(labels, experiment, settings))
        return points


def load_sweep(path: str | Path) -> Sweep:
    """Read a sweep's YAML. Raises FileNotFoundError, or ConfigError naming key and remedy."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no sweep file {path}; see configs/confirm for some")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(raw, dict) or set(raw) - set(KEYS):
        unknown = sorted(set(raw) - set(KEYS)) if isinstance(raw, dict) else raw
        raise ConfigError(f"{path}: a sweep has the keys {', '.join(KEYS)}; got {unknown!r}")
    files, axes, settings = raw.get("experiments"), raw.get("axes"), raw.get("set") or {}
    if not isinstance(files, list) or not files:
        raise ConfigError(f"{path}: experiments must list at least one experiment file")
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: set must map dotted keys to values, got {settings!r}")
    if not isinstance(axes, dict) or not axes:
        raise ConfigError(f"{path}: axes must map names to {{label: settings}}, got {axes!r}")
    for axis, labels in axes.items():
        if not isinstance(labels, dict) or not all(isinstance(s, dict) for s in labels.values()):
            raise ConfigError(
                f"{path}: axes.{axis} must map labels to settings, for example "
                f"{{s1: {{train.seed: 1}}}}, got {labels!r}"
            )
    experiments = tuple((path.parent / str(file)).resolve() for file in files)
    return Sweep(str(raw.get("name") or path.stem), experiments, axes, settings)


@dataclass
class Run:
    """One run of a sweep: its folder, its command and, while it lives, its process."""

    name: str
    folder: Path
    arguments: list[str]
    """Of olmo-ext, as one would type them."""
    num_steps: int
    num_tokens: int
    settings: dict[str, Any]
    """All that the run's weights and records depend on; see `olmo_ext.build.run_identity`."""

    process: ForkServerProcess | None = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        return self.folder / "logs" / "train.log"

    @property
    def finished(self) -> bool:
        checkpoints = find_checkpoints(self.folder)
        return bool(checkpoints) and checkpoints[-1].step >= self.num_steps

    def check_settings(self) -> None:
        """Raise ConfigError if the folder's run was started with other settings than these."""
        told = self.log.with_name("settings.json")
        if told.exists():
            if json.loads(told.read_text()) != self.settings:
                raise ConfigError(
                    f"{self.folder} was trained with other settings than these; "
                    "choose another --out, or remove that folder to train it again"
                )
            return
        told.parent.mkdir(parents=True, exist_ok=True)
        temporary = told.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.settings, indent=1))
        temporary.replace(told)

    def start(self) -> None:
        """Start, or go on from the last checkpoint."""
        self.process = _server().Process(target=_olmo_ext, args=(self.arguments, self.log))
        self.process.start()

    def step(self) -> int:
        """The last step that the log tells of."""
        if not self.log.exists():
            return 0
        found = _STEP.findall(self.log.read_text(errors="replace"))
        return int(found[-1][0]) if found else 0


def _olmo_ext(arguments: list[str], log: Path) -> None:
    """What a run's process does: the command line, its output into the log."""
    from launch.cli import main

    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = ["olmo-ext", *arguments]
    main()


def _server() -> ForkServerContext:
    """Processes forked from one that has imported the engine once, in ENVIRONMENT: importing it
    takes six seconds, as long as a small run."""
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


def plan_runs(sweep: Sweep, out: Path, *, overrides: Sequence[str] = ()) -> list[Run]:
    """The sweep's runs, checked by loading and compiling each before any is started.

    Raises:
        ConfigError: a point that cannot run; the message names it.
    """
    from data_injection.corpus import load_manifest
    from olmo_ext.build import compile_stream, run_identity
    from olmo_ext.callbacks import build_callbacks
    from olmo_ext.config import load_experiment

    runs = []
    for point in sweep.points():
        labels = "-".join(point.labels)
        name, folder = f"{sweep.name}-{labels}", out / labels
        given = [
            f"{key}={_as_text(value, key=key, sweep=sweep.name)}"
            for key, value in point.settings.items()
        ]
        given += [f"train.run_name={name}", f"train.save_folder={folder}", *overrides]
        try:
            experiment = load_experiment(point.experiment, given)
            manifest = load_manifest(experiment.corpus) if experiment.corpus else None
            stream = compile_stream(experiment, manifest=manifest)
            for callback in build_callbacks(experiment.callbacks).values():
                callback.check(stream.plan, experiment.train, num_steps=stream.num_steps)
        except ConfigError as error:
            raise ConfigError(f"sweep {sweep.name}, run {labels}: {error}") from None
        settings = run_identity(experiment, stream) | {
            "num_steps": stream.num_steps,
            "callbacks": json.loads(json.dumps(experiment.callbacks, default=str)),
        }
        tokens = stream.num_positions * experiment.train.model.max_sequence_length
        arguments = ["train", str(point.experiment), "--resume"]
        arguments += [part for override in given for part in ("--override", override)]
        runs.append(Run(name, folder, arguments, stream.num_steps, tokens, settings))
    return runs


def _as_text(value: Any, *, key: str, sweep: str) -> str:
    """A setting as on the command line. YAML's dates and binary have no such form."""
    try:
        return json.dumps(value)
    except TypeError:
        raise ConfigError(
            f"sweep {sweep}: {key} must be text, a number, a list or a mapping, got {value!r}; "
            "put it in quotes"
        ) from None


def plan_sweeps(sweeps: Sequence[Sweep], out: Path, *, overrides: Sequence[str] = ()) -> list[Run]:
    """The runs of several sweeps, each in OUT/<its name>. Raises ConfigError as `plan_runs`."""
    names = [sweep.name for sweep in sweeps]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"sweeps share the names {repeated}, so that their runs would share folders; rename one"
        )
    return [
        run for sweep in sweeps for run in plan_runs(sweep, out / sweep.name, overrides=overrides)
    ]


def train_all(runs: list[Run], *, jobs: int, console: Console) -> None:
    """Train what is not finished, `jobs` at a time. Raises RunFailed with the log's end.

    On any error and on Ctrl-C the running ones are stopped; their checkpoints stay.
    """
    for run in runs:
        run.check_settings()
    waiting = [run for run in runs if not run.finished]
    if done := len(runs) - len(waiting):
        console.print(f"{done} of {len(runs)} runs: finished earlier, not trained again")
    total, finished = sum(run.num_tokens for run in waiting), 0
    running: list[Run] = []
    with _stopping(running), _progress(console) as progress:
        all_bar = progress.add_task(f"all {len(waiting)} runs", total=total)
        bars = {}
        said = time.monotonic()
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                run.start()
                bars[run.name] = progress.add_task(run.name, total=run.num_steps)
                running.append(run)
            time.sleep(0.2)
            for run in list(running):
                progress.update(bars[run.name], completed=run.step())
                assert run.process is not None
                if (status := run.process.exitcode) is not None:
                    running.remove(run)
                    progress.remove_task(bars[run.name])
                    finished += run.num_tokens
                    if status == 0 and not run.finished:
                        raise RunFailed(
                            f"run {run.name} was stopped early and saved ({run.log} says why); the "
                            "same command goes on"
                        )
                    if status != 0:
                        tail = "\n".join(run.log.read_text().splitlines()[-15:])
                        raise RunFailed(
                            f"run {run.name} ended with status {status}; {run.log} ends:\n{tail}"
                        )
            part = sum(run.num_tokens * run.step() / run.num_steps for run in running)
            progress.update(all_bar, completed=finished + part)
            if not console.is_terminal and time.monotonic() - said > 20:
                said = time.monotonic()
                console.print(
                    f"{(finished + part) / total:.0%}  "
                    + "  ".join(f"{run.name}: step {run.step()}/{run.num_steps}" for run in running)
                )


@contextmanager
def _stopping(running: list[Run]) -> Iterator[None]:
    """Ends the running ones however this process ends, short of SIGKILL."""

    def terminate(number: int, frame: object) -> None:
        sys.exit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
        for run in running:
            assert run.process is not None
            run.process.terminate()
        for run in running:
            assert run.process is not None
            run.process.join()


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
