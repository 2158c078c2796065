"""What a submission is made of: an experiment's run or a sweep's, checked, with absolute paths.

    plan = plan_submission(Path("sweep.yaml"), out=Path("runs"), overrides=["train.seed=1"])
    plan.tasks[1].arguments

A corpus that a job is still to make is no error where the caller says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_injection.config import ConfigError
from launch.grid import (
    Point,
    Run,
    Sweep,
    check_own,
    load_sweep,
    plan_runs,
    run_overrides,
)
from launch.slurm.batch import Task, check_line
from launch.yaml_file import read_yaml
from olmo_ext.checks import num_steps
from olmo_ext.config import ExperimentConfig, load_experiment, read_raw
from olmo_ext.prepare import prepare


@dataclass(frozen=True)
class Plan:
    """What is to be submitted: the runs and where their files go."""

    name: str
    root: Path
    """Its slurm/ takes the files: a sweep's folder, a run's logs."""
    tasks: dict[int, Task]
    """All runs, counted from 1."""
    is_sweep: bool
    runs: dict[int, Run] = field(default_factory=dict)
    """Of a sweep whose corpus is there; they know whether their folders hold other runs."""


def plan_submission(
    source: Path, *, out: Path | None, overrides: Sequence[str], corpus_comes_later: bool = False
) -> Plan:
    """The runs of an experiment or a sweep, all checked; paths are absolute.

    With `corpus_comes_later` a corpus that is not there yet is no error: then the runs are checked
    as far as they can be without it, and by `olmo-ext train` again when they start: then too
    whether a folder holds another run, since a run's identity has the corpus in it.
    """
    if not source.is_file():
        raise FileNotFoundError(f"no experiment or sweep file {source}")
    if not _is_sweep(source):
        if out is not None:
            raise ConfigError(
                "--out is for sweeps; a run goes to its train.save_folder: "
                f"-o train.save_folder={out}"
            )
        one = _one_run(source, overrides, corpus_comes_later)
        return Plan(one.name, one.folder / "logs", {1: one}, is_sweep=False)
    sweep = load_sweep(source)
    root = ((out or Path("runs")) / sweep.name).resolve()
    check_line(str(root), what="--out")
    try:
        runs = plan_runs(sweep, root, overrides=overrides)
    except FileNotFoundError:
        if not corpus_comes_later:
            raise
        tasks = [_point(sweep, point, root, overrides) for point in sweep.points()]
        return Plan(sweep.name, root, dict(enumerate(tasks, 1)), is_sweep=True)
    planned = [Task(run.name, run.folder, run.num_steps, tuple(run.arguments)) for run in runs]
    settings = dict(enumerate(runs, 1))
    return Plan(sweep.name, root, dict(enumerate(planned, 1)), is_sweep=True, runs=settings)


def _is_sweep(source: Path) -> bool:
    raw = read_yaml(source)
    return isinstance(raw, dict) and ("experiments" in raw or "axes" in raw)


def _one_run(source: Path, overrides: Sequence[str], corpus_comes_later: bool) -> Task:
    path = source.resolve()
    loaded = _load(path, list(overrides), corpus_comes_later)
    if not corpus_comes_later:
        # Here what `olmo-ext train` refuses costs no place in a queue.
        prepare(loaded.experiment)
    train = loaded.experiment.train
    folder = Path(train.save_folder).resolve()
    given = [*overrides, f"train.save_folder={json.dumps(str(folder))}"]
    arguments = ["train", str(path), "--resume"]
    arguments += [part for override in given for part in ("--override", override)]
    return Task(str(train.run_name), folder, num_steps(train), tuple(arguments))


def _point(sweep: Sweep, point: Point, root: Path, overrides: Sequence[str]) -> Task:
    """A sweep's run whose corpus is not there yet: as `grid.plan_runs`, not compiled."""
    given = run_overrides(sweep, point, root, overrides)
    name = f"{sweep.name}-{point.name}"
    try:
        experiment = _load(point.experiment, given, corpus_comes_later=True).experiment
        check_own(experiment, name, root / point.name)
    except ConfigError as error:
        raise ConfigError(f"sweep {sweep.name}, run {point.name}: {error}") from None
    arguments = ["train", str(point.experiment), "--resume"]
    arguments += [part for override in given for part in ("--override", override)]
    return Task(name, root / point.name, num_steps(experiment.train), tuple(arguments))


@dataclass(frozen=True)
class Loaded:
    """An experiment and the absolute folder of its corpus, if it names one."""

    experiment: ExperimentConfig
    corpus: Path | None


def _load(path: Path, overrides: list[str], corpus_comes_later: bool) -> Loaded:
    try:
        experiment = load_experiment(path, overrides)
    except FileNotFoundError:
        if not corpus_comes_later or (corpus := _corpus_of(path, overrides)) is None:
            raise
        # What the corpus would fill in stands open; everything else is checked.
        without = [*overrides, "corpus=null", "train.data.paths=[/dev/null]"]
        return Loaded(load_experiment(path, without), corpus)
    return Loaded(experiment, Path(experiment.corpus).resolve() if experiment.corpus else None)


def _corpus_of(path: Path, overrides: Sequence[str]) -> Path | None:
    named = read_raw(path, overrides).get("corpus")
    return Path(named).resolve() if named else None


def reload(task: Task, corpus_comes_later: bool) -> Loaded:
    """A task's experiment by its own arguments: train FILE --resume --override A ..."""
    return _load(Path(task.arguments[1]), list(task.arguments[4::2]), corpus_comes_later)


def with_corpus(task: Task, loaded: Loaded) -> Task:
    """The task with its corpus by an absolute path."""
    corpus = loaded.corpus
    if corpus is None or loaded.experiment.corpus == str(corpus):
        return task
    more = ("--override", f"corpus={json.dumps(str(corpus))}")
    return replace(task, arguments=(*task.arguments, *more))
