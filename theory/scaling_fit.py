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

from theory.lbfgs import Objective, minimize
from theory.scaling import CONSTANTS, Array, Law
from theory.scaling_runs import Runs

DELTA = 1e-3
"""Of the Huber loss, in log-loss: far below the noise between runs, so nearly the absolute value."""

RESAMPLES = 1000
FEW_RUNS = 60
"""Runs below which percentile intervals are said to be too narrow (docs/scaling.md, measured)."""

SAME = 1e-6
"""Starts whose objective is within this share of the best ended at the same optimum."""

CELLS = 250_000
"""Resamples x rows worked on at a time, to stay under some 50 MB."""

EXPONENTS = (0.05, 0.15, 0.3, 0.5, 0.8, 1.3)
"""Of the starts, for alpha and for beta; what is published lies between .05 and .8."""


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
    space = _Space.of(runs, delta)
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
    space: _Space,
    theta: Array,
    residuals: Array,
    resamples: int,
    seed: int,
    progress: Callable[[int], None],
) -> tuple[Array, int]:
    """The parameters of each resample, started from the fit to all runs."""
    rng, runs = np.random.default_rng(seed), space.runs
    basis = space.whitened(theta, residuals)
    chunk = max(1, CELLS // len(runs))
    parts, unfinished = [np.zeros((0, 5))], 0
    even = np.full(runs.num_runs, 1 / runs.num_runs)
    for done in range(0, resamples, chunk):
        num = min(chunk, resamples - done)
        # All rows of a run are drawn together: they share its seed and its data.
        weight_SR = rng.multinomial(runs.num_runs, even, size=num).astype(float)[:, runs.group]
        objective = space.objective(weight_SR, origin=theta, basis=basis)
        found = minimize(objective, np.zeros((num, 5)), tolerance=1e-8)
        parts.append(theta + found.theta_SP @ basis.T)
        unfinished += int((~found.converged_S).sum())
        progress(done + num)
    return np.concatenate(parts), unfinished


@dataclass(frozen=True)
class _Space:
    """The problem in centred, scaled logarithms: the same whatever the units of N and D."""

    runs: Runs
    x: Array
    y: Array
    target: Array
    centre: tuple[float, float]
    scale: tuple[float, float]
    delta: float

    @classmethod
    def of(cls, runs: Runs, delta: float) -> _Space:
        logs = [np.log(runs.params), np.log(runs.tokens)]
        centre = (float(logs[0].mean()), float(logs[1].mean()))
        scale = (float(logs[0].std()), float(logs[1].std()))
        x, y = ((log - c) / s for log, c, s in zip(logs, centre, scale, strict=True))
        return cls(runs, x, y, np.log(runs.loss), centre, scale, delta)

    def enter(self, constants_SP: Array) -> Array:
        """Parameters of rows of L0, A, alpha, B, beta."""
        floor, amp_A, alpha, amp_B, beta = constants_SP.T
        a, b = np.log(amp_A) - alpha * self.centre[0], np.log(amp_B) - beta * self.centre[1]
        columns = (np.log(floor), a, alpha * self.scale[0], b, beta * self.scale[1])
        return np.stack(columns, axis=1)

    def leave(self, theta: Array) -> Law:
        """The law of parameters of shape (5,) or (S, 5)."""
        e, a, alpha, b, beta = np.asarray(theta).T
        alpha, beta = alpha / self.scale[0], beta / self.scale[1]
        law = (np.exp(e), a + alpha * self.centre[0], alpha, b + beta * self.centre[1], beta)
        return Law(*(float(one) for one in law)) if np.ndim(theta) == 1 else Law(*law)

    def grid(self) -> Array:
        """Starts: for each pair of exponents the amplitudes of least relative squares."""
        starts = []
        for alpha in EXPONENTS:
            for beta in EXPONENTS:
                one, two = alpha * self.scale[0], beta * self.scale[1]
                terms = np.stack(
                    [np.ones_like(self.x), np.exp(-one * self.x), np.exp(-two * self.y)]
                )
                scaled = (terms / self.runs.loss).T
                amplitudes = np.linalg.lstsq(scaled, np.ones(len(self.x)), rcond=None)[0]
                e, a, b = np.log(np.maximum(amplitudes, 0.02 * self.runs.loss.min()))
                starts.append([e, a, one, b, two])
        return np.array(starts)

    def whitened(self, theta: Array, residuals: Array) -> Array:
        """A basis in which the refits are round, its unit about a standard error, shape (5, 5)."""
        terms, jacobian_RP = self._terms(theta)
        scale = np.maximum(np.median(np.abs(residuals)), 1e-12)
        # Of weakly identified directions the step is bounded, or the first trial overflows.
        _, values, turn = np.linalg.svd(jacobian_RP, full_matrices=False)
        return turn.T * np.minimum(scale / np.maximum(values, 1e-300), 1.0)

    def _terms(self, theta: Array) -> tuple[Array, Array]:
        e, a, alpha, b, beta = theta
        terms = np.exp([e + 0 * self.x, a - alpha * self.x, b - beta * self.y])
        p0, p1, p2 = terms / terms.sum(axis=0)
        return terms, np.stack([p0, p1, -p1 * self.x, p2, -p2 * self.y], axis=1)

    def objective(
        self, weight_SR: Array, *, origin: Array | None = None, basis: Array | None = None
    ) -> Objective:
        """Weighted Huber loss of log-loss divided by delta, and its gradient.

        weight_SR: one row for all problems, or one each. With a basis the parameters are
        origin + basis @ z.
        """
        unit = self.delta if np.isfinite(self.delta) else 1.0

        def value_and_gradient(z_SP: Array, which_S: NDArray[np.int64]) -> tuple[Array, Array]:
            theta_SP = z_SP if basis is None or origin is None else origin + z_SP @ basis.T
            e, a, alpha, b, beta = theta_SP.T[:, :, None]
            with np.errstate(over="ignore", invalid="ignore"):
                one, two = a - alpha * self.x, b - beta * self.y
                top = np.maximum(np.maximum(one, two), e)
                p0, p1, p2 = np.exp(e - top), np.exp(one - top), np.exp(two - top)
                total = p0 + p1 + p2
                residual = top + np.log(total) - self.target
                clipped = np.clip(residual, -self.delta, self.delta)
                weight = weight_SR if len(weight_SR) == 1 else weight_SR[which_S]
                pull = weight * clipped / unit
                value = (pull * (residual - clipped / 2)).sum(axis=1)
                pull /= total
                p0, p1, p2 = pull * p0, pull * p1, pull * p2
            columns = (
                p0.sum(axis=1),
                p1.sum(axis=1),
                -(p1 @ self.x),
                p2.sum(axis=1),
                -(p2 @ self.y),
            )
            gradient = np.stack(columns, axis=1)
            return value, gradient if basis is None else gradient @ basis

        return value_and_gradient


def _warnings(law: Law, draws: Law, runs: Runs) -> list[str]:
    """What a reader of the numbers must know, each a sentence."""
    said = []
    if runs.num_runs < FEW_RUNS:
        said.append(
            f"{runs.num_runs} runs: below {FEW_RUNS} the intervals are too narrow as a rule; take "
            "them as a lower bound of the uncertainty"
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


__all__ = ["CONSTANTS", "Fit", "Runs", "fit_law", "interval"]
