"""A scaling law fitted to a table of runs, with 95% intervals.

    fitted = fit_law(Runs.of(params, tokens, loss), seed=0)
    fitted.law.alpha, fitted.interval("alpha")

Hoffmann et al. 2022, approach 3: Huber loss (delta 1e-3) on log-loss, log-sum-exp of the three
terms, from many starts; the search is scipy's L-BFGS-B. Intervals: percentiles of refits to
runs drawn with replacement.

S: starts or resamples. R: rows of the table. P: the five parameters, e, a, alpha, b, beta.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from theory.scaling.law import Array, Law
from theory.scaling.objective import Minimum, Space
from theory.scaling.runs import Runs

DELTA = 1e-3
"""Of the Huber loss, in log-loss: far below the noise of runs, so nearly the absolute value."""

RESAMPLES = 1000
FEW_RUNS = 20
"""The fewest runs for which the intervals' coverage was measured (docs/scaling.md)."""

LEAST_EXPONENT = 1e-6
"""Below it a term is the same at all sizes, and the sign of the exponent is rounding."""

FAR = 10.0
"""Spreads from the law from which a run is named: of a Gaussian's, none in 10^23."""

LEAST_NOISE = 1e-6
"""Of losses that a law gives exactly, up to rounding: none of them is far from it."""

SAME = 1e-6
"""Starts whose objective is within this share of the best ended at the same optimum."""

PROGRESS_EVERY = 20
"""Resamples."""


@dataclass(frozen=True)
class Outliers:
    """Runs FAR from the law, and what the law would be without them."""

    rows: tuple[int, ...]
    """Their rows in the table that was given, from 1, farthest first."""

    spreads: tuple[float, ...]
    """Log-residuals over `Fit.noise`: above 0 the loss is higher than the law's."""

    law: Law | None
    """None where the rows that are left identify none."""


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
    outliers: Outliers | None
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
    space = Space.of(runs)
    first = space.grid() if starts is None else space.enter(np.asarray(starts, dtype=float))
    found = [space.minimum(one, delta=delta) for one in first]
    best = min(found, key=lambda one: one.value)
    law = space.leave(best.theta)
    for name, column in (("alpha", "params"), ("beta", "tokens")):
        if getattr(law, name) < LEAST_EXPONENT:
            raise ValueError(
                f"the loss does not fall with {column} in these runs ({name} = "
                f"{getattr(law, name):.3g}); are the columns what they are called, and the runs "
                "trained to their end?"
            )
    residuals = np.log(runs.loss) - np.log(law.loss(runs.params, runs.tokens))
    noise = float(1.4826 * np.median(np.abs(residuals)))
    refits = _refits(space, best.theta, delta, resamples, seed, progress)
    draws = space.leave(np.array([one.theta for one in refits]).reshape(-1, 5))
    same = [one.value <= best.value * (1 + SAME) + 1e-12 for one in found]
    return Fit(
        law=law,
        draws=draws,
        runs=runs,
        objective=best.value / len(runs),
        noise=noise,
        same_optimum=float(np.mean(same)),
        unfinished=sum(not one.converged for one in refits),
        seed=seed,
        outliers=_outliers(space, best.theta, residuals, noise, delta),
        warnings=tuple(_warnings(law, draws, runs)) if resamples else (),
    )


def _refits(
    space: Space,
    theta: Array,
    delta: float,
    resamples: int,
    seed: int,
    progress: Callable[[int], None],
) -> list[Minimum]:
    """The minimum of each resample, started from the fit to all runs."""
    rng, runs = np.random.default_rng(seed), space.runs
    even = np.full(runs.num_runs, 1 / runs.num_runs)
    refits = []
    for done, times in enumerate(rng.multinomial(runs.num_runs, even, size=resamples), start=1):
        # All rows of a run are drawn together: they share its seed and its data.
        rows = np.repeat(np.arange(len(runs)), times[runs.group])
        refits.append(space.minimum(theta, delta=delta, rows=rows, tolerance=1e-10))
        if done % PROGRESS_EVERY == 0 or done == resamples:
            progress(done)
    return refits


def _outliers(
    space: Space, theta: Array, residuals: Array, noise: float, delta: float
) -> Outliers | None:
    """The Huber loss bounds how hard a row pulls, not where it stands: a few rows at an edge of the
    sizes move an exponent all the same (five of Hoffmann et al.'s 245, beta from .37 to .45)."""
    runs = space.runs
    spreads = residuals / max(noise, LEAST_NOISE)
    order = np.argsort(-np.abs(spreads), kind="stable")
    far = order[np.abs(spreads[order]) >= FAR]
    if not len(far):
        return None
    rows = np.setdiff1d(np.arange(len(runs)), far)
    try:
        left = runs.params[rows], runs.tokens[rows], runs.loss[rows]
        Runs.of(*left, run=runs.group[rows].tolist())
    except ValueError:
        law = None
    else:
        law = space.leave(space.minimum(theta, delta=delta, rows=rows).theta)
    return Outliers(tuple(runs.row[far].tolist()), tuple(spreads[far].tolist()), law)


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
