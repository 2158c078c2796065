"""The compute-optimal frontier taken from the runs themselves, with no law for L(N, D).

    found = fit_frontier(runs, seed=0)
    found.points, found.slope("compute"), found.floor("compute")

Hoffmann et al. 2022, approach 2, for any table: runs are grouped by compute; within a group the
loss is a smooth curve in log N (a cubic, and terms v and u v for what differs in compute), whose
minimum inside the group's sizes is a point of the frontier. A power law is fitted to the points,
with a floor and without. The intervals repeat all of it on runs drawn with replacement.

S: resamples, the first being the runs themselves. G: groups. R: rows of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from theory.same import clusters
from theory.scaling.law import Array
from theory.scaling.runs import Runs

TERMS = 6
"""Of the curve in a group: 1, u, u^2, u^3 in log N, v in log C, and u v."""

LEAST_ROWS = 9
LEAST_SIZES = 5
"""Of a group: the curve must leave something to judge it by."""

ROWS_A_GROUP = 14
MOST_GROUPS = 12
LEAST_POINTS = 4
"""A power law with a floor has three constants."""

SURE = 0.95
"""Share of the resamples that must have a group's minimum inside its sizes."""

EXPONENTS = np.geomspace(0.01, 2.0, 160)
"""Tried for the power law with a floor: given its exponent the other two constants are a straight
line's, so that a grid of one dimension finds the optimum of three, in all resamples at once."""

PERCENT = (2.5, 97.5)


@dataclass(frozen=True)
class FrontierLaw:
    """loss = floor + amplitude x^-exponent over the points, with 95% intervals."""

    exponent: float
    exponent_interval: tuple[float, float]
    floor: float
    floor_interval: tuple[float, float]


@dataclass(frozen=True)
class Frontier:
    """Compute-optimal points of the runs and the power laws through them."""

    compute: Array
    """FLOPs of each point, shape (G,)."""

    params: Array
    loss: Array
    params_interval: Array
    """Shape (2, G)."""

    loss_interval: Array
    with_floor: dict[str, FrontierLaw]
    """By "params" and "compute": the floor is one more constant of the fit."""

    without_floor: dict[str, FrontierLaw]
    """The same with the floor at 0: the slope of log loss, a straight line on log axes."""

    size_exponent: float
    """Compute-optimal N grows as C to this."""

    size_exponent_interval: tuple[float, float]
    kept: float
    """Share of the resamples with enough points; the others are left out."""


def fit_frontier(runs: Runs, *, resamples: int = 1000, seed: int = 0) -> Frontier:
    """Find the frontier's points and fit them.

    Raises ValueError where the runs have no frontier to be found: too few of them at one compute,
    or the least loss at the edge of the sizes.
    """
    groups = _groups(runs)
    if len(groups) < LEAST_POINTS:
        raise ValueError(
            f"the runs have {len(groups)} ranges of compute with {LEAST_ROWS} runs of "
            f"{LEAST_SIZES} sizes in them, a frontier needs {LEAST_POINTS}; train more "
            "sizes at equal compute"
        )
    rng = np.random.default_rng(seed)
    # Runs are drawn, not rows: rows of one run share its seed and data.
    drawn = rng.multinomial(
        runs.num_runs, np.full(runs.num_runs, 1 / runs.num_runs), size=resamples
    )
    weight_SR = np.concatenate([np.ones((1, len(runs))), drawn[:, runs.group]])
    points = [_minimum(runs, rows, weight_SR[:, rows]) for rows in groups]
    centre_G = np.array([_centre(runs, rows) for rows in groups])
    size_SG, loss_SG = (np.stack(one, axis=1) for one in zip(*points, strict=True))
    there_SG = np.isfinite(size_SG)
    # A minimum near the edge falls outside in some resamples; what is left would be drawn inwards.
    real = there_SG[0] & (there_SG.mean(axis=0) >= SURE)
    if real.sum() < LEAST_POINTS:
        raise ValueError(
            f"only {real.sum()} of {len(groups)} ranges of compute surely have their least loss "
            f"inside their sizes, a frontier needs {LEAST_POINTS}; train smaller or larger models "
            "there"
        )
    centre_G, size_SG, loss_SG = centre_G[real], size_SG[:, real], loss_SG[:, real]
    usable = np.isfinite(size_SG).sum(axis=1) >= LEAST_POINTS
    size_SG, loss_SG = size_SG[usable], loss_SG[usable]
    # N is found anew in every resample; C is the group's own, the same in all.
    axes = {"params": size_SG, "compute": np.broadcast_to(centre_G, size_SG.shape)}
    # A flat curve has its minimum anywhere: such points count by how little they move.
    sure_G = 1 / np.maximum(np.nanvar(size_SG, axis=0), 1e-6)
    size_slopes = _slopes(axes["compute"], size_SG, sure_G)
    return Frontier(
        compute=np.exp(centre_G),
        params=np.exp(size_SG[0]),
        loss=np.exp(loss_SG[0]),
        params_interval=np.exp(np.nanpercentile(size_SG, PERCENT, axis=0)),
        loss_interval=np.exp(np.nanpercentile(loss_SG, PERCENT, axis=0)),
        with_floor={name: _floored(axis, loss_SG) for name, axis in axes.items()},
        without_floor={name: _straight(axis, loss_SG) for name, axis in axes.items()},
        size_exponent=float(size_slopes[0]),
        size_exponent_interval=_interval(size_slopes),
        kept=float((usable.sum() - 1) / max(resamples, 1)),
    )


def _groups(runs: Runs) -> list[NDArray[np.int64]]:
    """Rows by compute: equal ranges of log C, those with too few rows or sizes left out."""
    # Of equal width in log C and not of equal counts: across a wide group L falls with C itself,
    # and the terms v and u v take that out to first order only.
    log = np.log(runs.compute)
    num = int(np.clip(len(runs) // ROWS_A_GROUP, 1, MOST_GROUPS))
    edges = np.linspace(log.min(), log.max(), num + 1)
    number = np.clip(np.searchsorted(edges, log, side="right") - 1, 0, num - 1)
    found = [np.flatnonzero(number == group) for group in range(num)]
    return [
        rows
        for rows in found
        if len(rows) >= LEAST_ROWS and clusters(runs.params[rows]).max() + 1 >= LEAST_SIZES
    ]


def _centre(runs: Runs, rows: NDArray[np.int64]) -> float:
    return float(np.log(runs.compute[rows]).mean())


def _minimum(runs: Runs, rows: NDArray[np.int64], weight_SR: Array) -> tuple[Array, Array]:
    """Log size and log loss at the minimum of a group's curve, shape (S,); NaN where it has none.

    Huber weights (ten rounds, 1.345 spreads: 95% as efficient as least squares on Gaussian noise)
    keep a failed run from bending the curve.
    """
    # u in [-1, 1]: else the normal equations of a cubic in log N, near 20, lose all their digits.
    size = np.log(runs.params[rows])
    middle, half = size.mean(), max(np.ptp(size) / 2, 1e-12)
    u, v = (size - middle) / half, np.log(runs.compute[rows]) - _centre(runs, rows)
    # A cubic, for the two sides of the minimum differ: A/N^alpha below it, B/D^beta above.
    design = np.stack([np.ones_like(u), u, u**2, u**3, v, u * v], axis=1)
    target = np.log(runs.loss[rows])
    robust = np.ones_like(weight_SR)
    for _ in range(10):
        w = weight_SR * robust
        # The small ridge keeps a resample with fewer different rows than terms solvable.
        normal = np.einsum("sr,rp,rq->spq", w, design, design) + 1e-9 * np.eye(TERMS)
        right = np.einsum("sr,rp,r->sp", w, design, target)
        curve = np.linalg.solve(normal, right[:, :, None])[:, :, 0]
        residual = np.abs(curve @ design.T - target)
        spread = 1.4826 * np.median(residual, axis=1, keepdims=True)
        robust = np.minimum(1.0, 1.345 * spread / np.maximum(residual, 1e-12))
    c0, c1, c2, c3, *_ = curve.T
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(np.where(c2**2 - 3 * c1 * c3 >= 0, c2**2 - 3 * c1 * c3, np.nan))
        # The zeros of c1 + 2 c2 u + 3 c3 u^2; this one is
        place = -c1 / (c2 + root)  # where the curvature is positive; stable as c3 goes to 0
        # A resample may have none of a group's runs: then nothing is inside.
        least = np.where(weight_SR > 0, u, np.inf).min(axis=1)
        inside = (place > least) & (place < np.where(weight_SR > 0, u, -np.inf).max(axis=1))
    place = np.where(inside & (c2 + root > 0), place, np.nan)
    return middle + half * place, c0 + c1 * place + c2 * place**2 + c3 * place**3


def _slopes(x_SG: Array, y_SG: Array, weight_G: Array) -> Array:
    """Least-squares slopes over the points that there are, shape (S,)."""
    there = np.isfinite(y_SG) & np.isfinite(x_SG)
    x, y = np.where(there, x_SG, 0.0), np.where(there, y_SG, 0.0)
    return _line(x, y, there * weight_G)[1]


def _straight(x_SG: Array, loss_SG: Array) -> FrontierLaw:
    slopes = -_slopes(x_SG, loss_SG, np.ones(x_SG.shape[1]))
    return FrontierLaw(float(slopes[0]), _interval(slopes), 0.0, (0.0, 0.0))


def _floored(x_SG: Array, log_loss_SG: Array) -> FrontierLaw:
    """loss = floor + amplitude x^-g: for each g the best floor and amplitude in closed form."""
    there = np.isfinite(log_loss_SG) & np.isfinite(x_SG)
    # Centred, so that x^-g is about 1 for every exponent tried and the sums keep their digits.
    x = np.where(there, x_SG, 0.0) - np.nanmean(x_SG)
    loss = np.exp(np.where(there, log_loss_SG, 0.0))
    weight = there / loss**2  # relative errors
    errors, floors = [], []
    for exponent in EXPONENTS:
        falls = np.exp(-exponent * x)
        floor, amplitude = _line(falls, loss, weight)
        bare = (weight * falls * loss).sum(axis=1) / (weight * falls**2).sum(axis=1)
        below = floor < 0  # a floor below 0 is none
        floor, amplitude = np.where(below, 0.0, floor), np.where(below, bare, amplitude)
        miss = loss - floor[:, None] - amplitude[:, None] * falls
        errors.append((weight * miss**2).sum(axis=1))
        floors.append(floor)
    error_ES, floor_ES = np.array(errors), np.array(floors)
    best = error_ES.argmin(axis=0)
    each = np.arange(len(best))
    exponents = _refined(error_ES, best)
    floor_S = floor_ES[best, each]
    return FrontierLaw(
        float(exponents[0]), _interval(exponents), float(floor_S[0]), _interval(floor_S)
    )


def _line(x_SG: Array, y_SG: Array, weight_SG: Array) -> tuple[Array, Array]:
    """Weighted intercepts and slopes, shape (S,)."""
    total = weight_SG.sum(axis=1)
    x0, y0 = ((weight_SG * one).sum(axis=1) / total for one in (x_SG, y_SG))
    dx, dy = x_SG - x0[:, None], y_SG - y0[:, None]
    slope = (weight_SG * dx * dy).sum(axis=1) / (weight_SG * dx**2).sum(axis=1)
    return y0 - slope * x0, slope


def _refined(error_ES: Array, best: NDArray[np.int64]) -> Array:
    """The minimum between the grid's exponents: a parabola through the best and its neighbours."""
    # In steps of the grid, which is even in log: so the parabola's top is a power of its ratio.
    inner = np.clip(best, 1, len(EXPONENTS) - 2)
    each = np.arange(len(best))
    low, mid, high = (error_ES[inner + shift, each] for shift in (-1, 0, 1))
    bend = low - 2 * mid + high
    shift = np.where(bend > 0, 0.5 * (low - high) / np.where(bend > 0, bend, 1.0), 0.0)
    ratio = EXPONENTS[1] / EXPONENTS[0]
    refined = EXPONENTS[inner] * ratio ** np.clip(shift, -1, 1)
    return np.where(best == inner, refined, EXPONENTS[best])


def _interval(draws: Array) -> tuple[float, float]:
    if len(draws) < 2:
        return float("nan"), float("nan")
    low, high = np.percentile(draws[1:], PERCENT)  # the first is of the runs themselves
    return float(low), float(high)
