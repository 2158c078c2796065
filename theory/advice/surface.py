"""The surface behind advice: the chance that a run learns a task, by log size and log frequency.

    surface = fit_surface(cells)                          # params, frequency, run, score
    print(surface.slope("frequency"), surface.probability({"params": 1e5, "frequency": 2}))

Gap and complexity join where they were varied. How it is fitted, and why uncertainty is over runs:
theory/advice/firth.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from theory.advice.firth import leave_one_out
from theory.same import clusters

LEARNED_SCORE = 0.5
"""As in eval.scores.cells, which this room may not import; here of a run, there of seeds' mean."""

RISES = {"params": True, "frequency": True, "gap": False, "bits": False}
"""Covariates, and whether learning should rise with them (a longer gap and more bits make it
harder); a clear slope of the other sign is no advice but a finding to look into."""


@dataclass(frozen=True)
class Surface:
    """A fitted surface; coefficients are of centred logarithms."""

    covariates: tuple[str, ...]
    centre: np.ndarray
    """(covariates,) mean logarithm."""

    coefficients: np.ndarray
    """(1 + covariates,) intercept first."""

    covariance: np.ndarray | None
    """Of the coefficients, over runs; None where the runs are too few."""

    dof: int
    """Runs less coefficients."""

    num_runs: int
    num_seeds: int
    num_cells: int
    num_learned: float
    ranges: Mapping[str, tuple[float, float]]
    """Smallest and largest value measured, each covariate."""

    @property
    def quantile(self) -> float:
        """Two-sided 95% quantile of Student's t over runs."""
        from scipy.stats import t

        return float(t.ppf(0.975, self.dof))

    def slope(self, name: str) -> tuple[float, float, float]:
        """(estimate, low, high) of the log odds per e-fold of a covariate; NaN bounds if none."""
        index = 1 + self.index(name)
        value = float(self.coefficients[index])
        if self.covariance is None:
            return value, math.nan, math.nan
        half = self.quantile * math.sqrt(self.covariance[index, index])
        return value, value - half, value + half

    def probability(self, at: Mapping[str, float]) -> float:
        """That a run learns it there; all covariates must be given."""
        odds = float(self.coefficients @ self.row(at))
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, odds))))

    def index(self, name: str) -> int:
        if name not in self.covariates:
            raise ValueError(
                f"the surface has no {name!r}, only {', '.join(self.covariates)}; fit it with "
                "records in which it was varied"
            )
        return self.covariates.index(name)

    def row(self, at: Mapping[str, float], *, without: str | None = None) -> np.ndarray:
        """(1 + covariates,) the design's row at a point; the covariate `without` at its centre."""
        row = np.zeros(1 + len(self.covariates))
        row[0] = 1
        for index, name in enumerate(self.covariates):
            if name == without:
                continue
            if name not in at:
                raise ValueError(f"{name} must be given, since the surface depends on it")
            row[1 + index] = math.log(positive(name, at[name])) - self.centre[index]
        return row


def fit_surface(
    cells: pd.DataFrame,
    *,
    covariates: Sequence[str] = ("params", "frequency"),
    response: Literal["learned", "score"] = "learned",
) -> Surface:
    """The surface of a sweep, a row per run and task.

    cells: the covariates (positive), `run`, `learned` or else
    `score` (test score, learned from .5 on), and `seed` where known. response "score" fits the
    score itself, cut to [0, 1], as a share (Papke and Wooldridge 1996): the line is then a mean
    score of .5, and uses how far a cell is from it, at the price of a shape that may not fit
    (`misplaced`). Raises ValueError, with what to do, for what is no sweep.
    """
    rows = _checked(cells, covariates)
    outcome = _outcome(rows, response)
    logs = np.log(rows[list(covariates)].to_numpy(float))
    centre = logs.mean(axis=0)
    spread = logs.std(axis=0)
    design = np.column_stack([np.ones(len(rows)), (logs - centre) / spread])
    if np.linalg.svd(design, compute_uv=False)[-1] < 1e-6 * math.sqrt(len(rows)):
        raise ValueError(
            f"{' and '.join(covariates)} go together in these records, so that their effects "
            "cannot be told apart; vary one with the others held"
        )
    runs = pd.factorize(rows["run"])[0]
    beta, covariance = leave_one_out(design, outcome, runs)
    scale = np.concatenate([[1.0], 1 / spread])
    num_runs = int(runs.max()) + 1
    return Surface(
        covariates=tuple(covariates),
        centre=centre,
        coefficients=beta * scale,
        covariance=None if covariance is None else covariance * np.outer(scale, scale),
        dof=num_runs - len(beta),
        num_runs=num_runs,
        num_seeds=int(rows.seed.nunique()) if "seed" in rows else num_runs,
        num_cells=len(rows),
        num_learned=float((outcome >= LEARNED_SCORE).sum()),
        ranges={name: (float(rows[name].min()), float(rows[name].max())) for name in covariates},
    )


def no_trend(surface: Surface, name: str) -> str:
    """Why a covariate's slope carries no advice, or "" if it is clear and of the right sign."""
    value, low, high = surface.slope(name)
    sign = 1 if RISES[name] else -1
    if math.isnan(low):
        return "" if sign * value > 0 else f"learning does not go with {name} as it should"
    if low <= 0 <= high:
        return (
            f"no trend with {name}: its slope is {value:.2g} with 95% interval [{low:.2g}, "
            f"{high:.2g}], which holds 0"
        )
    if sign * value < 0:
        return (
            f"the trend with {name} has the wrong sign: slope {value:.2g} [{low:.2g}, {high:.2g}]"
        )
    return ""


def misplaced(
    surface: Surface, cells: pd.DataFrame, *, response: Literal["learned", "score"] = "learned"
) -> pd.DataFrame:
    """Cells (runs of equal covariates) whose mean outcome lies on the other side of the line.

    Columns: the covariates, `fitted`, `measured`, `num_runs`. Many of them say that the surface,
    linear in logarithms, is not the shape of these data. Arguments as in `fit_surface`.
    """
    names = list(surface.covariates)
    table = cells.assign(measured=_outcome(cells, response)).groupby(names, as_index=False)
    table = table.agg(measured=("measured", "mean"), num_runs=("measured", "size"))
    table["fitted"] = [
        surface.probability(dict(zip(names, point, strict=True)))
        for point in table[names].itertuples(index=False)
    ]
    apart = (table.fitted - LEARNED_SCORE) * (table.measured - LEARNED_SCORE) < 0
    return table.loc[apart, [*names, "fitted", "measured", "num_runs"]].reset_index(drop=True)


def _checked(cells: pd.DataFrame, covariates: Sequence[str]) -> pd.DataFrame:
    if not covariates or not set(covariates) <= set(RISES):
        raise ValueError(f"covariates must be of {', '.join(RISES)}, got {list(covariates)}")
    if missing := [name for name in (*covariates, "run") if name not in cells]:
        raise ValueError(f"cells lack {', '.join(missing)}; a row is one run's task at one step")
    if cells.empty:
        raise ValueError("there are no cells; give the records of a sweep")
    for name in covariates:
        values = cells[name].to_numpy(float)
        if not np.all(np.isfinite(values) & (values > 0)):
            bad = values[~(np.isfinite(values) & (values > 0))][0]
            raise ValueError(
                f"{name} must be positive in every cell, got {bad:g}; leave those rows out"
            )
        if not clusters(values).any():
            raise ValueError(
                f"cells have one {name} only, {values[0]:g}; a threshold needs at least two, so "
                "add runs with another"
            )
    return cells


def _outcome(cells: pd.DataFrame, response: str) -> np.ndarray:
    if response not in ("learned", "score"):
        raise ValueError(f"response must be 'learned' or 'score', got {response!r}")
    column = "learned" if response == "learned" and "learned" in cells else "score"
    if column not in cells:
        raise ValueError(f"cells lack {response!r}; give the test score of each run and task")
    values = cells[column].to_numpy(float)
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{column} must be a number in every cell; leave unmeasured rows out")
    if response == "score":
        return np.clip(values, 0, 1)
    return (values >= LEARNED_SCORE).astype(float)


def positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)
