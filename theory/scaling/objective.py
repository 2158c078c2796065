"""What the fit of a scaling law minimises, in coordinates that do not know the units of N and D.

    space = Space.of(runs, delta=1e-3)
    value_S, gradient_SP = space.objective(weight_SR)(space.grid(), np.arange(len(space.grid())))

S: starts or resamples. R: rows of the table. P: the five parameters, e, a, alpha, b, beta, with the
loss exp(e) + exp(a - alpha x) + exp(b - beta y) at the centred, scaled x of log N and y of log D.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from theory.scaling.law import Array, Law
from theory.scaling.lbfgs import Objective
from theory.scaling.runs import Runs

EXPONENTS = (0.05, 0.15, 0.3, 0.5, 0.8, 1.3)
"""Of the starts, for alpha and for beta; what is published lies between .05 and .8."""


@dataclass(frozen=True)
class Space:
    """The problem in centred, scaled logarithms: the same whatever the units of N and D."""

    runs: Runs
    x: Array
    y: Array
    target: Array
    centre: tuple[float, float]
    scale: tuple[float, float]
    delta: float

    @classmethod
    def of(cls, runs: Runs, delta: float) -> Space:
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
                falls = (0 * self.x, -one * self.x, -two * self.y)
                scaled = (np.exp(falls) / self.runs.loss).T
                amplitudes = np.linalg.lstsq(scaled, np.ones(len(self.x)), rcond=None)[0]
                e, a, b = np.log(np.maximum(amplitudes, 0.02 * self.runs.loss.min()))
                starts.append([e, a, one, b, two])
        return np.array(starts)

    def whitened(self, theta: Array, residuals: Array) -> Array:
        """A basis in which the refits are round, its unit about a standard error, shape (5, 5)."""
        e, a, alpha, b, beta = theta
        terms = np.exp([e + 0 * self.x, a - alpha * self.x, b - beta * self.y])
        p0, p1, p2 = terms / terms.sum(axis=0)
        jacobian_RP = np.stack([p0, p1, -p1 * self.x, p2, -p2 * self.y], axis=1)
        scale = np.maximum(np.median(np.abs(residuals)), 1e-12)
        # Of weakly identified directions the step is bounded, or the first trial overflows.
        _, values, turn = np.linalg.svd(jacobian_RP, full_matrices=False)
        return turn.T * np.minimum(scale / np.maximum(values, 1e-300), 1.0)

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
            sums = [part.sum(axis=1) for part in (p0, p1, p2)]
            gradient = np.stack((*sums[:2], -(p1 @ self.x), sums[2], -(p2 @ self.y)), axis=1)
            return value, gradient if basis is None else gradient @ basis

        return value_and_gradient
