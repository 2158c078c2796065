"""What a submission is made of: an experiment's run or a sweep's, checked, with absolute paths.

    plan = plan_submission(Path("sweep.yaml"), out=Path("runs"), overrides=["train.seed=1"])
    plan.runs[1].arguments

A corpus that a job is still to make is no error where the caller says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_injection.errors import ConfigError
from launch.grid import is_sweep, load_sweep
from launch.runs import Planner, Run, plan_runs
from launch.slurm.batch import check_line


@dataclass(frozen=True)
class Plan:
    """What is to be submitted: the runs and where their files go."""

    name: str
    root: Path
    """Its slurm/ takes the files: a sweep's folder, a run's logs."""
    runs: dict[int, Run]
    """All of them, counted from 1."""
    is_sweep: bool


def plan_submission(
    source: Path, *, out: Path | None, overrides: Sequence[str], corpus_comes_later: bool = False
) -> Plan:
    """The runs of an experiment or a sweep, all checked; paths are absolute.

    corpus_comes_later: see `Planner`.
    """
    if not source.is_file():
        raise FileNotFoundError(f"no experiment or sweep file {source}")
    if not is_sweep(source):
        if out is not None:
            rule = "is for sweeps"
            remedy = f"a run goes to its train.save_folder: -o train.save_folder={out}"
            raise ConfigError(key="--out", rule=rule, remedy=remedy)
        run = with_corpus(Planner(corpus_comes_later=corpus_comes_later).run(source, overrides))
        return Plan(run.name, run.folder / "logs", {1: run}, is_sweep=False)
    sweep = load_sweep(source)
    root = ((out or Path("runs")) / sweep.name).resolve()
    check_line(str(root), what="--out")
    runs = plan_runs(sweep, root, overrides=overrides, corpus_comes_later=corpus_comes_later)
    return Plan(sweep.name, root, dict(enumerate(map(with_corpus, runs), 1)), is_sweep=True)


def with_corpus(run: Run) -> Run:
    """The run with its corpus by an absolute path: a job may start anywhere."""
    assert run.experiment is not None
    if run.corpus is None or run.experiment.corpus == str(run.corpus):
        return run
    more = ("--override", f"corpus={json.dumps(str(run.corpus))}")
    return replace(run, arguments=(*run.arguments, *more))
