"""Which size, which frequency: thresholds read off a sweep's cells, with intervals or with a no.

    surface = fit_surface(cells)                          # theory/advice/surface.py
    print(threshold(surface, of="frequency", at={"params": 98_464}))
    print(threshold(surface, of="params", at={"frequency": 2.0}))

The chance that a run learns a task is a logistic function of log size and log frequency, and of
log gap and log complexity where these were varied. f*(N) and N*(f) are where it is one half. What
the cells cannot say is not said: beyond the sizes or frequencies measured, without a cell on either
side of the line, or where the slope's interval holds zero, a reason stands in place of a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from theory.advice.firth import ratio_interval
from theory.advice.surface import RISES, Surface, no_trend, positive

Status = Literal["inside", "provisional", "outside", "no trend"]


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
    """"above" or "below" where all of the interval is past the edge, or no cell (every) learned."""

    near: str = ""
    """"above" or "below" where the estimate is past the edge but its interval is not: then `low`
    (above) or `high` (below) is the interval's end on the data's side. No bound."""

    edge: float = math.nan
    """The largest or smallest value measured, of `beyond` and `near`."""


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


def threshold(surface: Surface, *, of: str, at: Mapping[str, float]) -> Threshold:
    """f*(N) with of="frequency", N*(f) with of="params"; the 95% interval is over runs.

    at: every other covariate of the surface. Raises ValueError if one is missing or not positive.
    """
    index = 1 + surface.index(of)
    row = surface.row(at, without=of)
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
    outside = not low_edge * (1 - 1e-9) <= value <= high_edge * (1 + 1e-9)
    side = "above" if value > high_edge else "below"
    edge = high_edge if side == "above" else low_edge
    what = f"{side} the {'largest' if side == 'above' else 'smallest'} {of} measured"
    if surface.covariance is None:
        why = f"{surface.num_runs} runs are too few for an interval; repeat them with other seeds"
        if outside:
            why = f"the estimate is {what}, and {why}"
            return Threshold(of, at, "outside", why, near=side, edge=edge)
        return Threshold(of, at, "provisional", why, value=value)
    bounds = _ratio_bounds(surface, -row, np.eye(len(row))[index])
    low, high = (_exp(centre + bound) for bound in bounds)
    if not outside:
        return Threshold(of, at, "inside", "", value, low, high)
    if low > high_edge or high < low_edge:
        why = f"the line is {what}"
        return Threshold(of, at, "outside", why, beyond=side, edge=edge)
    why = f"the estimate is {what}, its 95% interval is not"
    low, high = (low, math.nan) if side == "above" else (math.nan, high)
    return Threshold(of, at, "outside", why, low=low, high=high, near=side, edge=edge)


def exchange(surface: Surface, *, change: str, start: float, stop: float, into: str) -> Exchange:
    """The factor on `into` that does as much for learning as taking `change` from start to stop.

    E.g. change="gap", start=25, stop=1, into="frequency": a factor of 3 says that the shorter gap
    is worth three times the frequency, at equal long-run frequency.
    """
    first, second = 1 + surface.index(change), 1 + surface.index(into)
    if first == second:
        raise ValueError(f"{change} cannot be exchanged for itself; name another covariate")
    told = (change, into, positive(change, start), positive(change, stop))
    for value in (start, stop):
        if why := _outside(surface, {change: value}):
            return Exchange(*told, "outside", why)
    if not 0 < surface.num_learned < surface.num_cells:
        return Exchange(*told, "outside", "all cells lie on one side of the line")
    if why := no_trend(surface, change) or no_trend(surface, into):
        return Exchange(*told, "no trend", why)
    unit = np.eye(len(surface.coefficients))
    ratio = float(surface.coefficients[first] / surface.coefficients[second])
    log_change = math.log(stop / start)
    if surface.covariance is None:
        why = f"{surface.num_runs} runs are too few for an interval; repeat them with other seeds"
        return Exchange(*told, "provisional", why, _exp(ratio * log_change))
    bounds = _ratio_bounds(surface, unit[first], unit[second])
    low, high = sorted(_exp(bound * log_change) for bound in bounds)
    return Exchange(*told, "inside", "", _exp(ratio * log_change), low, high)


def _outside(surface: Surface, at: Mapping[str, float]) -> str:
    """Why a point is outside the data, or nothing."""
    for name, value in at.items():
        if name not in surface.ranges:
            continue
        low, high = surface.ranges[name]
        if not low * (1 - 1e-9) <= value <= high * (1 + 1e-9):
            return f"{name} {value:,.6g} was not measured, only {low:,.6g} to {high:,.6g}"
    return ""


def _ratio_bounds(surface: Surface, above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """The interval of a ratio of two sums of coefficients, each given by its weights."""
    covariance, beta = surface.covariance, surface.coefficients
    assert covariance is not None
    of_above, of_below = (float(one @ covariance @ one) for one in (above, below))
    variances = (of_above, of_below, float(above @ covariance @ below))
    bounds = ratio_interval(
        float(beta @ above), float(beta @ below), variances=variances, quantile=surface.quantile
    )
    assert bounds is not None, "a slope whose interval leaves 0 out gives bounds"
    return bounds


def _exp(value: float) -> float:
    """e to a value, cut where a float would overflow: an interval's end may be absurdly far."""
    return math.exp(max(-500.0, min(500.0, value)))
