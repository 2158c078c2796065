"""Which size, which frequency: thresholds read off a sweep's cells, with intervals or with a no.

    surface = fit_surface(cells)                          # params, frequency, run, score
    print(threshold(surface, of="frequency", at={"params": 98_464}))
    print(threshold(surface, of="params", at={"frequency": 2.0}))

The chance that a run learns a task is a logistic function of log size and log frequency, and of
log gap and log complexity where these were varied. f*(N) and N*(f) are where it is one half. What
the cells cannot say is not said: beyond the sizes or frequencies measured, without a cell on either
side of the line, or where the slope's interval holds zero, a reason stands in place of a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from theory.logistic import leave_one_out, ratio_interval

LEARNED_SCORE = 0.5
"""As in eval.grid, which this room may not import; here of a run, there of a mean over seeds."""

RISES = {"params": True, "frequency": True, "gap": False, "bits": False}
"""Covariates, and whether learning should rise with them (a longer gap and more bits make it
harder); a clear slope of the other sign is no advice but a finding to look into."""

Status = Literal["inside", "provisional", "outside", "no trend"]


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
        index = 1 + self._index(name)
        value = float(self.coefficients[index])
        if self.covariance is None:
            return value, math.nan, math.nan
        half = self.quantile * math.sqrt(self.covariance[index, index])
        return value, value - half, value + half

    def probability(self, at: Mapping[str, float]) -> float:
        """That a run learns it there; all covariates must be given."""
        odds = float(self.coefficients @ self._row(at))
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, odds))))

    def _index(self, name: str) -> int:
        if name not in self.covariates:
            raise ValueError(
                f"the surface has no {name!r}, only {', '.join(self.covariates)}; fit it with "
                "records in which it was varied"
            )
        return self.covariates.index(name)

    def _row(self, at: Mapping[str, float], *, without: str | None = None) -> np.ndarray:
        """(1 + covariates,) the design's row at a point; the covariate `without` at its centre."""
        row = np.zeros(1 + len(self.covariates))
        row[0] = 1
        for index, name in enumerate(self.covariates):
            if name == without:
                continue
            if name not in at:
                raise ValueError(f"{name} must be given, since the surface depends on it")
            row[1 + index] = math.log(_positive(name, at[name])) - self.centre[index]
        return row


@dataclass(frozen=True)
class Threshold:
    """Where the chance to learn is one half along one covariate, or why that is not said."""

    of: str
    at: Mapping[str, float]
    status: Status
    """inside: all three numbers; provisional: no interval, too few runs; else no number."""

    reason: str
    """Of a status other than "inside"."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    beyond: str = ""
    """"above" or "below" where the records bound the threshold without showing it."""

    edge: float = math.nan
    """The bound, the largest or smallest value measured."""


@dataclass(frozen=True)
class Exchange:
    """What a change of one covariate is worth in another: the factor that does as much."""

    change: str
    into: str
    start: float
    stop: float
    status: Status
    reason: str
    factor: float = math.nan
    low: float = math.nan
    high: float = math.nan


def fit_surface(
    cells: pd.DataFrame,
    *,
    covariates: Sequence[str] = ("params", "frequency"),
    response: Literal["learned", "score"] = "learned",
    cluster: str = "run",
) -> Surface:
    """The surface of a sweep, a row per run and task.

    cells: the covariates (positive), `run` (or another column to cluster by), `learned` or else
    `score` (test score, learned from .5 on), and `seed` where known. response "score" fits the
    score itself, cut to [0, 1], as a share (Papke and Wooldridge 1996): the line is then a mean
    score of .5, and uses how far a cell is from it, at the price of a shape that may not fit
    (`misplaced`). Raises ValueError, with what to do, for what is no sweep.
    """
    rows = _checked(cells, covariates, cluster)
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
    runs = pd.factorize(rows[cluster])[0]
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


def threshold(surface: Surface, *, of: str, at: Mapping[str, float]) -> Threshold:
    """f*(N) with of="frequency", N*(f) with of="params"; the 95% interval is over runs.

    at: every other covariate of the surface. Raises ValueError if one is missing or not positive.
    """
    index = 1 + surface._index(of)
    row = surface._row(at, without=of)
    if why := _outside(surface, at):
        return Threshold(of, at, "outside", why)
    low_edge, high_edge = surface.ranges[of]
    rises = RISES[of]
    if not 0 < surface.num_learned < surface.num_cells:
        none = surface.num_learned == 0
        said = "no cell was" if none else "every cell was"
        # Not learned anywhere: the line lies where learning is easier, beyond that edge.
        beyond = "above" if none == rises else "below"
        return Threshold(
            of, at, "outside", f"{said} learned, so that the line is nowhere in the data",
            beyond=beyond, edge=high_edge if beyond == "above" else low_edge,
        )  # fmt: skip
    if why := no_trend(surface, of):
        return Threshold(of, at, "no trend", why)
    intercept, slope = float(surface.coefficients @ row), float(surface.coefficients[index])
    centre = surface.centre[index - 1]
    value = _exp(centre - intercept / slope)
    if not low_edge * (1 - 1e-9) <= value <= high_edge * (1 + 1e-9):
        beyond = "above" if value > high_edge else "below"
        edge = high_edge if beyond == "above" else low_edge
        why = f"the line is {beyond} the {'largest' if beyond == 'above' else 'smallest'} {of}"
        return Threshold(of, at, "outside", f"{why} measured", beyond=beyond, edge=edge)
    if surface.covariance is None:
        why = f"{surface.num_runs} runs are too few for an interval; repeat them with other seeds"
        return Threshold(of, at, "provisional", why, value=value)
    bounds = ratio_interval(
        -intercept,
        slope,
        variances=_variances(surface, -row, np.eye(len(row))[index]),
        quantile=surface.quantile,
    )
    assert bounds is not None, "a slope whose interval leaves 0 out gives bounds"
    return Threshold(
        of, at, "inside", "", value, _exp(centre + bounds[0]), _exp(centre + bounds[1])
    )


def exchange(surface: Surface, *, change: str, start: float, stop: float, into: str) -> Exchange:
    """The factor on `into` that does as much for learning as taking `change` from start to stop.

    E.g. change="gap", start=25, stop=1, into="frequency": a factor of 3 says that the shorter gap
    is worth three times the frequency, at equal long-run frequency.
    """
    first, second = 1 + surface._index(change), 1 + surface._index(into)
    if first == second:
        raise ValueError(f"{change} cannot be exchanged for itself; name another covariate")
    told = (change, into, _positive(change, start), _positive(change, stop))
    for value in (start, stop):
        if why := _outside(surface, {change: value}):
            return Exchange(*told, "outside", why)
    if not 0 < surface.num_learned < surface.num_cells:
        return Exchange(*told, "outside", "all cells lie on one side of the line")
    if why := no_trend(surface, change) or no_trend(surface, into):
        return Exchange(*told, "no trend", why)
    unit = np.eye(len(surface.coefficients))
    numerator, denominator = (float(surface.coefficients[i]) for i in (first, second))
    ratio, log_change = numerator / denominator, math.log(stop / start)
    if surface.covariance is None:
        why = f"{surface.num_runs} runs are too few for an interval; repeat them with other seeds"
        return Exchange(*told, "provisional", why, _exp(ratio * log_change))
    bounds = ratio_interval(
        numerator,
        denominator,
        variances=_variances(surface, unit[first], unit[second]),
        quantile=surface.quantile,
    )
    assert bounds is not None, "a slope whose interval leaves 0 out gives bounds"
    low, high = sorted(_exp(bound * log_change) for bound in bounds)
    return Exchange(*told, "inside", "", _exp(ratio * log_change), low, high)


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


def _checked(cells: pd.DataFrame, covariates: Sequence[str], cluster: str) -> pd.DataFrame:
    if not covariates or not set(covariates) <= set(RISES):
        raise ValueError(f"covariates must be of {', '.join(RISES)}, got {list(covariates)}")
    if missing := [name for name in (*covariates, cluster) if name not in cells]:
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
        if np.ptp(np.log(values)) < 1e-9:
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


def _outside(surface: Surface, at: Mapping[str, float]) -> str:
    """Why a point is outside the data, or nothing."""
    for name, value in at.items():
        if name not in surface.ranges:
            continue
        low, high = surface.ranges[name]
        if not low * (1 - 1e-9) <= value <= high * (1 + 1e-9):
            return f"{name} {value:,.6g} was not measured, only {low:,.6g} to {high:,.6g}"
    return ""


def _variances(
    surface: Surface, numerator: np.ndarray, denominator: np.ndarray
) -> tuple[float, float, float]:
    covariance = surface.covariance
    assert covariance is not None
    return (
        float(numerator @ covariance @ numerator),
        float(denominator @ covariance @ denominator),
        float(numerator @ covariance @ denominator),
    )


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def _exp(value: float) -> float:
    """e to a value, cut where a float would overflow: an interval's end may be absurdly far."""
    return math.exp(max(-500.0, min(500.0, value)))
