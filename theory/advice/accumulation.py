"""A rare task as a balance of gain and forgetting: which rate does a size need?

    found = balance(steps, curves, start=800, stop=1200, rate=16.0, ceiling=0.9)
    found.threshold.value, course(1200, rate=4.0, gain=..., forgetting=..., ceiling=0.9)

    dx/dtau = rate g (A - x) - lambda (x - B)

x is the task's score, A the most it comes to, B where it rests without instances (its twin's:
below 0 where the host makes it surely wrong), tau optimizer steps at the peak learning rate, g the
gain an instance and lambda the forgetting a step. Held at a rate the score goes to
(A rate g + B lambda) / (rate g + lambda), which is one half at rate* = lambda (1/2 - B) /
(g (A - 1/2)). A burst and its twin tell the numbers: the rise while it lasts, the fall after it.
lambda is a property of width, host and learning rate; that it is the same in a burst as after
it is the equation's assumption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEARNED = 0.5
"""The score from which a task counts as learned."""

LEAST, MOST = 1e-8, 1.0
"""Between which g and lambda are looked for, a step."""


@dataclass(frozen=True)
class Quantity:
    """A value with its 95% interval (NaN for fewer than two seeds)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Balance:
    """What a burst and its twin say of a size in its host."""

    gain: Quantity
    """g, an instance at a rate of one a step."""

    forgetting: Quantity
    """lambda, a step."""

    threshold: Quantity
    """rate*, instances a step; a value at which the score settles at LEARNED."""

    below: float
    """B, the score of the twin, mean over seeds."""


def course(
    steps: float, *, rate: float, gain: float, forgetting: float, ceiling: float,
    below: float = 0.0, x: float | None = None,
) -> float:  # fmt: skip
    """The score after `steps` at a rate, from x, or from where it rests."""
    x = below if x is None else x
    speed = rate * gain + forgetting
    if speed == 0:
        return x
    settles = (ceiling * rate * gain + below * forgetting) / speed
    return settles + (x - settles) * math.exp(-speed * steps)


def threshold(gain: float, forgetting: float, *, ceiling: float, below: float = 0.0) -> float:
    """rate*; infinite if the ceiling is not above LEARNED."""
    room = ceiling - LEARNED
    return forgetting * (LEARNED - below) / (gain * room) if room > 0 else math.inf


def fit_balance(
    steps: Sequence[float], gains: NDArray[np.float64], *,
    start: float, stop: float, rate: float, ceiling: float,
) -> tuple[float, float]:  # fmt: skip
    """(g, lambda) by least squares from what a burst of `rate` from step `start` to `stop` brought.

    gains: score over the twin's at each of `steps`, of which one at least is in the burst and one
    after it. ceiling: of the gain, the ceiling of the score less the twin's score.
    """
    from scipy.optimize import least_squares

    when, after = np.asarray(steps, dtype=float), np.asarray(steps) >= stop
    end = float(np.clip(gains[when == stop].mean() if (when == stop).any() else gains[after][0],
                        1e-3, ceiling * (1 - 1e-3)))  # fmt: skip

    def missed(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        of = {"gain": math.exp(logs[0]), "forgetting": math.exp(logs[1]), "ceiling": ceiling}
        peak = course(stop - start, rate=rate, **of)
        expected = [
            course(step - stop, rate=0.0, **of, x=peak)
            if step >= stop
            else course(max(step - start, 0.0), rate=rate, **of)
            for step in when
        ]
        return np.asarray(expected) - gains

    gain = -math.log(1 - end / ceiling) / (rate * (stop - start))
    bounds = (math.log(LEAST), math.log(MOST))
    best = min(
        # The sum of squares has one valley along lambda, flat where lambda is small.
        (
            least_squares(missed, np.log([np.clip(gain, 2 * LEAST, 0.5), guess]), bounds=bounds)
            for guess in (1e-4, 1e-2)
        ),
        key=lambda fit: fit.cost,
    )
    return math.exp(best.x[0]), math.exp(best.x[1])


def balance(
    steps: Sequence[float], curves: Mapping[object, Sequence[float]], *,
    start: float, stop: float, rate: float, ceiling: float,
    twin: Mapping[object, float] | None = None,
) -> Balance:  # fmt: skip
    """The fit to the mean curve over seeds, with a jackknife over seeds (Student's t, 95%).

    Args:
        steps, curves: by seed, the score over the twin's at each of `steps`.
        twin: by seed, the twin's own score, where the score rests without instances (default 0).
    """
    seeds = list(curves)

    def rests(chosen: Sequence[object]) -> float:
        return float(np.mean([twin[seed] for seed in chosen])) if twin else 0.0

    def fitted(chosen: Sequence[object]) -> NDArray[np.float64]:
        mean = np.mean([np.asarray(curves[seed], dtype=float) for seed in chosen], axis=0)
        below = rests(chosen)
        room = ceiling - below
        g, lam = fit_balance(steps, mean, start=start, stop=stop, rate=rate, ceiling=room)
        return np.array([g, lam, threshold(g, lam, ceiling=ceiling, below=below)])

    whole, n = fitted(seeds), len(seeds)
    if n < 2:
        g, lam, rate_star = (Quantity(float(value), math.nan, math.nan) for value in whole)
        return Balance(g, lam, rate_star, rests(seeds))
    from scipy.stats import t

    # Not of the logarithms: where nothing is forgotten lambda is 0.
    left_out = np.array([fitted([*seeds[:i], *seeds[i + 1 :]]) for i in range(n)])
    pseudo = n * whole - (n - 1) * left_out
    half = t.ppf(0.975, n - 1) * pseudo.std(axis=0, ddof=1) / math.sqrt(n)
    g, lam, rate_star = (
        Quantity(float(value), max(float(value - by), 0.0), float(value + by))
        for value, by in zip(whole, half, strict=True)
    )
    return Balance(g, lam, rate_star, rests(seeds))
