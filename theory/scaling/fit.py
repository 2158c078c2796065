"""A scaling law fitted to a table of runs, with 95% intervals.

    fitted = fit_law(Runs.of(params, tokens, loss), seed=0)
    fitted.law.alpha, fitted.interval("alpha")

Hoffmann et al. 2022, approach 3: Huber loss (delta 1e-3) on log-loss, log-sum-exp of the three
terms, L-BFGS from many starts. Intervals: percentiles of refits to runs drawn with replacement.

S: starts or resamples. R: rows of the table. P: the five parameters, e, a, alpha, b, beta.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from theory.scaling.law import Array, Law
from theory.scaling.lbfgs import minimize
from theory.scaling.objective import Space
from theory.scaling.runs import Runs

DELTA = 1e-3
"""Of the Huber loss, in log-loss: far below the noise of runs, so nearly the absolute value."""

RESAMPLES = 1000
FEW_RUNS = 20
"""The fewest runs for which the intervals' coverage was measured (docs/scaling.md)."""

LOW_FLOOR = 0.3
"""Of the least loss: an L0 below it may be 0 in some resamples and not in others."""

SAME = 1e-6
"""Starts whose objective is within this share of the best ended at the same optimum."""

CELLS = 250_000
"""Resamples x rows worked on at a time, to stay under some 50 MB."""


@dataclass(frozen=True)
class Fit:
    """A law and how sure it is."""

    law: Law
    draws: Law
    """The law of each resample, fields of shape (S,)."""

    runs: Runs
    objective: float
    """Mean Huber loss over the rows divided by delta: nearly the mean absolute log-residual."""

    noise: float
    """Spread of the log-residuals, 1.4826 times their median absolute value."""

    same_optimum: float
    """Share of the starts that ended at the best optimum."""

    unfinished: int
    """Resamples whose fit ran out of steps; they are kept."""

    seed: int
    warnings: tuple[str, ...]

    def interval(self, name: str) -> tuple[float, float]:
        """95% interval of a constant of CONSTANTS, or of any property of Law."""
        return interval(getattr(self.draws, name))


def interval(draws: Array) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile; infinite draws count as such, undefined ones not at all."""
    draws = np.asarray(draws)[~np.isnan(draws)]
    if not len(draws):
        return float("nan"), float("nan")
    # No interpolation: between a number and infinity there is none.
    low, high = np.percentile(draws, [2.5, 97.5], method="nearest")
    return float(low), float(high)


def fit_law(
    runs: Runs,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    delta: float = DELTA,
    starts: Array | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Fit:
    """Fit the law and refit it to resamples of the runs.

    Args:
        resamples: number of refits; 0 for none, then `draws` are empty.
        seed: of the resamples. The order of the rows changes nothing.
        delta: of the Huber loss; inf for least squares.
        starts: rows of L0, A, alpha, B, beta to start from, shape (S, 5), all positive; default: a
            grid of exponents, each with the amplitudes that suit it best.
        progress: called with the number of resamples done.

    Raises ValueError, with the remedy, if the loss does not fall with N or with D.
    """
    space = Space.of(runs, delta)
    first = space.grid() if starts is None else space.enter(np.asarray(starts, dtype=float))
    found = minimize(space.objective(np.ones((1, len(runs)))), first, tolerance=1e-12)
    best = int(np.nanargmin(found.value_S))
    theta = found.theta_SP[best]
    law = space.leave(theta)
    for name, column in (("alpha", "params"), ("beta", "tokens")):
        if getattr(law, name) <= 0:
            raise ValueError(
                f"the loss does not fall with {column} in these runs ({name} = "
                f"{getattr(law, name):.3g}); are the columns what they are called, and the runs "
                "trained to their end?"
            )
    residuals = np.log(law.loss(runs.params, runs.tokens)) - np.log(runs.loss)
    theta_SP, unfinished = _refit(space, theta, residuals, resamples, seed, progress)
    draws = space.leave(theta_SP)
    value = float(found.value_S[best])
    return Fit(
        law=law,
        draws=draws,
        runs=runs,
        objective=value / len(runs),
        noise=float(1.4826 * np.median(np.abs(residuals))),
        same_optimum=float(np.mean(found.value_S <= value * (1 + SAME) + 1e-12)),
        unfinished=unfinished,
        seed=seed,
        warnings=tuple(_warnings(law, draws, runs)) if resamples else (),
    )


def _refit(
    space: Space,
    theta: Array,
    residuals: Array,
    resamples: int,
    seed: int,
    progress: Callable[[int], None],
) -> tuple[Array, int]:
    """The parameters of each resample, started from the fit to all runs."""
    rng, runs = np.random.default_rng(seed), space.runs
    origins = [theta]
    if np.exp(theta[0]) < LOW_FLOOR * runs.loss.min():
        # Where L0 is 0 the objective is flat in its logarithm, so that no resample would leave it:
        # each is also started from the best law with a floor in sight.
        origins.append(_with_floor(space, theta))
    bases = [space.whitened(origin, residuals) for origin in origins]
    chunk = max(1, CELLS // len(runs))
    parts, unfinished = [np.zeros((0, 5))], 0
    even = np.full(runs.num_runs, 1 / runs.num_runs)
    for done in range(0, resamples, chunk):
        num = min(chunk, resamples - done)
        # All rows of a run are drawn together: they share its seed and its data.
        weight_SR = rng.multinomial(runs.num_runs, even, size=num).astype(float)[:, runs.group]
        best_SP, best_S = np.zeros((num, 5)), np.full(num, np.inf)
        finished = np.zeros(num, dtype=bool)
        for origin, basis in zip(origins, bases, strict=True):
            objective = space.objective(weight_SR, origin=origin, basis=basis)
            found = minimize(objective, np.zeros((num, 5)), tolerance=1e-8)
            better = found.value_S < best_S
            best_SP[better] = (origin + found.theta_SP @ basis.T)[better]
            best_S[better], finished[better] = found.value_S[better], found.converged_S[better]
        parts.append(best_SP)
        unfinished += int((~finished).sum())
        progress(done + num)
    return np.concatenate(parts), unfinished


def _with_floor(space: Space, theta: Array) -> Array:
    """The best parameters with L0 held at half the least loss."""
    start = theta.copy()
    start[0] = np.log(0.5 * space.runs.loss.min())
    free = space.objective(np.ones((1, len(space.runs))))

    def held(theta_SP: Array, which_S: NDArray[np.int64]) -> tuple[Array, Array]:
        value, gradient = free(theta_SP, which_S)
        return value, gradient * [0, 1, 1, 1, 1]

    return minimize(held, start[None]).theta_SP[0]


def _warnings(law: Law, draws: Law, runs: Runs) -> list[str]:
    """What a reader of the numbers must know, each a sentence."""
    said = []
    if runs.num_runs < FEW_RUNS:
        said.append(
            f"{runs.num_runs} runs: below {FEW_RUNS} it was not measured how often the intervals "
            "cover the truth"
        )
    for name, column in (("alpha", "params"), ("beta", "tokens")):
        low, high = interval(getattr(draws, name))
        if low <= 0 or high > 2 * getattr(law, name) or low < 0.5 * getattr(law, name):
            said.append(
                f"{name} is hardly identified ({low:.3g} to {high:.3g}); train runs over a wider "
                f"range of {column}"
            )
    if interval(draws.L0)[0] < 0.05 * law.L0 or 0.01 * runs.loss.min() > law.L0:
        said.append(
            "L0 is not bounded away from 0: these runs are far above their irreducible loss, and "
            "every answer that rests on L0 or on L_inf is loose"
        )
    return said
