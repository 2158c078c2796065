"""Where learning ends in a sweep's mixtures: what screens which single-task runs, and the frontier.

    frontiers = fit_frontiers(mixtures)      # finished runs of launch/grid.py

What is chosen beside it, for which budget: launch/sweep/screen.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from data_injection.errors import ConfigError
from data_injection.tasks.schedules import variant
from eval.records import read_records
from eval.scores.cells import cells
from launch.runs import Run


@dataclass(frozen=True)
class RateFrontier:
    """Where learned turns to not learned in the mixtures of one rung and family."""

    rate: float
    """Instances per token; the geometric middle of `low` and `high`."""
    low: float
    high: float
    """The fit is as good at every rate between these; equal at the end of the screened rates."""
    side: str
    """"between", or that "all" or "none" of the screened rates were learned: it lies beyond."""
    wrong: int
    """Screened rates on the wrong side of it."""
    num_rates: int


def fit_frontier(rates: Sequence[float], learned: Sequence[bool]) -> RateFrontier:
    """The threshold with the fewest rates on its wrong side; of equally good ones, the middle.

    A step and not a logistic curve: few rates, each learned or not, mostly separate without
    overlap, where a curve's slope has no estimate. Beyond the screened rates nothing is known, so
    there the frontier is put at the last of them.

    Args:
        rates: instances per token, positive.
        learned: of each rate.
    """
    order = np.argsort(rates)
    logs = np.log2(np.asarray(rates, dtype=float)[order])
    flags = np.asarray(learned, dtype=bool)[order]
    # Threshold i: rates from the i-th on are to be learned, those before it are not.
    wrong = np.array([flags[:i].sum() + (~flags[i:]).sum() for i in range(len(flags) + 1)])
    best = np.flatnonzero(wrong == wrong.min())
    edges = np.concatenate([logs[:1], logs, logs[-1:]])  # a threshold lies between two of these
    low, high = edges[best[0]], edges[best[-1] + 1]
    side = "all" if best[-1] == 0 else "none" if best[0] == len(flags) else "between"
    middle = 2 ** ((low + high) / 2)
    return RateFrontier(middle, 2**low, 2**high, side, int(wrong.min()), len(flags))


@dataclass(frozen=True)
class Kind:
    """What a mixture and a single-task cell must share for one to screen the other."""

    rung: str
    family: str
    """With its variant, as in `eval.scores.cells`."""
    learning_rate: float
    num_steps: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.rung} {self.family}"

    @property
    def setting(self) -> str:
        return (
            f"learning rate {self.learning_rate:g}, {self.num_steps:,} steps of {self.batch_size}"
        )


def kinds_of(run: Run) -> dict[Kind, tuple[float, ...]]:
    """Each kind of task of a run and its rates (instances per token) above 0."""
    assert run.experiment is not None
    assert run.stream is not None
    train, plan = run.experiment.train, run.stream.plan
    found: dict[Kind, tuple[float, ...]] = {}
    for index, task in enumerate(plan.tasks):
        told = variant(plan, index)
        kind = Kind(
            rung=run.experiment.rung,
            family=task.family + (f", {told}" if told else ""),
            learning_rate=train.optimizer.learning_rate,
            num_steps=run.num_steps,
            batch_size=train.global_train_batch_size,
        )
        rate = plan.rates(index)["per_token"]
        found[kind] = (*found.get(kind, ()), *([rate] if rate > 0 else []))
    return found


def fit_frontiers(mixtures: Sequence[Run]) -> dict[Kind, RateFrontier]:
    """The frontier of each kind, from the records of the mixtures.

    Runs of one learning rate and length are read together and apart from the others: in one table
    `eval.scores.cells` would write the rate into the family's name, and read all at a step they
    share. Tasks of rate 0 lie on no side of a frontier and are left out.
    """
    alike: dict[tuple[float, int, int], list[Run]] = {}
    for run in mixtures:
        kind = next(iter(kinds_of(run)))
        key = (kind.learning_rate, kind.num_steps, kind.batch_size)
        alike.setdefault(key, []).append(run)
    found = {}
    for key, runs in alike.items():
        table = cells(pd.concat([read_records(run.folder) for run in runs], ignore_index=True))
        table = table[(table.protocol == "mixture") & (table.rate_per_token > 0)]
        for (rung, family), group in table.groupby(["rung", "family"], sort=False):
            kind = Kind(str(rung), str(family), *key)
            found[kind] = fit_frontier(list(group.rate_per_token), list(group.learned))
    return found


def check_alike(mixtures: Sequence[Run], singles: Sequence[Run]) -> None:
    """Raise ConfigError, before anything is trained, if no mixture screens any single-task run."""
    screened = {kind for run in mixtures for kind, rates in kinds_of(run).items() if rates}
    wanted = {kind for run in singles for kind, rates in kinds_of(run).items() if rates}
    if screened & wanted:
        return

    def some(kinds: set[Kind]) -> str:
        told = sorted(f"{kind} ({kind.setting})" for kind in kinds)
        return "; ".join(told[:4]) + ("; ..." if len(told) > 4 else "") if told else "none above 0"

    rule = "must have a mixture that screens a single-task run: of the same rung, family with its "
    rule += "variant, learning rate, steps and batch size, and a rate above 0"
    remedy = f"the mixtures have {some(screened)}, the single tasks {some(wanted)}"
    raise ConfigError(key="--screen", rule=rule, remedy=remedy)
