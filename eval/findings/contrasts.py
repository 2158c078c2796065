"""Estimates over seeds and differences between two conditions, each with its 95% interval.

    sweep = final(read_records("docs/findings/controls"))
    a = per_seed(sweep, "single", rung="w16", task="cmp_r4")
    b = per_seed(sweep, "mixture", rung="w16", task="cmp_r4")
    print(difference(b, a).text)                       # "+0.12 ± 0.09"

A run of a sweep is named <sweep>-<label>-<label>-... (launch/sweep/sweep.py). Conditions are
compared seed by seed: a seed fixes initial weights and data order in every sweep. A task's symbols
are the same only where it stands at the same place in its run, its split only under the same name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from data_injection.errors import ConfigError
from eval.statistics import MIN_SEEDS, seed_interval


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval (Student's t over seeds)."""

    mean: float
    low: float
    high: float
    num_seeds: int

    @property
    def text(self) -> str:
        return self.to(2)

    def to(self, digits: int) -> str:
        """With so many digits: 0.12 ± 0.09."""
        if math.isnan(self.mean):
            return f"not measured ± {math.nan}"
        zero = f"{0:.{digits}f}"
        mean = f"{self.mean:.{digits}f}".replace(f"-{zero}", zero)
        return f"{mean} ± {(self.high - self.low) / 2:.{digits}f}"

    @property
    def signed(self) -> str:
        return ("+" if self.mean >= 0.005 else "") + self.text

    @property
    def clear(self) -> bool:
        """The interval leaves zero out, over enough seeds: for a difference, it is there."""
        return self.num_seeds >= MIN_SEEDS and (self.low > 0 or self.high < 0)

    @property
    def verdict(self) -> str:
        if self.num_seeds < MIN_SEEDS or math.isnan(self.low):
            return "too few seeds"
        if not self.clear:
            return "holds 0"
        return "higher" if self.mean > 0 else "lower"


def final(frame: pd.DataFrame) -> pd.DataFrame:
    """Every run's last step over all pairs of a task, with the sweep of the run's name."""
    rows = over_all_pairs(frame)
    return rows[rows.step == rows.groupby("run").step.transform("max")]


def over_all_pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of tasks that are not of a subset (mirror_in_train, ...) and the run's own loss,
    with `sweep`."""
    whose = (frame.task != "") | (frame.metric == "train_loss")
    rows = frame[whose & (frame.subset.fillna("all") == "all")]
    return rows.assign(sweep=sweep_of(rows))


def sweep_of(rows: pd.DataFrame) -> pd.Series:
    """The sweep that each row's run is of, which its name begins with."""
    return rows.run.str.split("-").str[0]


def per_seed(
    rows: pd.DataFrame, sweep: str, *, metric: str = "score", split: str = "test", **where: object
) -> pd.Series:
    """One value per seed of a condition, indexed by seed.

    where: further columns and their values (rung, task, learning_rate, step, rate_per_step).
    Raises ConfigError if nothing or more than one value a seed is there.
    """
    chosen = rows[(rows.sweep == sweep) & (rows.metric == metric) & (rows.split == split)]
    for name, value in where.items():
        chosen = chosen[chosen[name] == value]
    what = f"{sweep} {split} {metric} {where}"
    if chosen.empty:
        rule = f"hold no {what}"
        remedy = f"run the sweep configs/confirm/{sweep}.yaml"
        raise ConfigError(key="the records", rule=rule, remedy=remedy)
    if chosen.seed.duplicated().any():
        rule = f"hold several values a seed of {what}"
        raise ConfigError(key="the records", rule=rule, remedy="say which")
    return chosen.set_index("seed").value.sort_index()


def estimate(values: pd.Series) -> Estimate:
    """Mean and interval of a value per seed."""
    return Estimate(*seed_interval(values.tolist()), num_seeds=len(values))


def difference(a: pd.Series, b: pd.Series) -> Estimate:
    """a - b, seed by seed. Raises ConfigError unless both have the same seeds."""
    if set(a.index) != set(b.index):
        rule, both = "must be the same to be paired", [sorted(a.index), sorted(b.index)]
        raise ConfigError(key="seeds", value=both, rule=rule, remedy="run the missing ones")
    return estimate(a - b.reindex(a.index))
