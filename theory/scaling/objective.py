"""What the fit of a scaling law minimises, in coordinates that do not know the units of N and D.

    space = Space.of(runs)
    found = space.minimum(space.grid()[0], delta=1e-3)
    space.leave(found.theta), found.value

S: starts. R: rows of the table. P: the five parameters, a, alpha, b, beta, L0, with the loss
exp(a - alpha x) + exp(b - beta y) + L0 at the centred, scaled x of log N and y of log D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from theory.scaling.law import Array, Law
from theory.scaling.runs import Runs

EXPONENTS = (0.05, 0.15, 0.3, 0.5, 0.8, 1.3)
"""Of the starts, for alpha and for beta; what is published lies between .05 and .8."""

MOST_STEPS, MOST_SEARCHES = 500, 20


@dataclass(frozen=True)
class Minimum:
    """Where a search ended."""

    theta: Array
    value: float
    """Huber loss summed over the rows, divided by delta: nearly the sum of absolute residuals."""

    converged: bool


@dataclass(frozen=True)
class Space:
    """The problem in centred, scaled logarithms: the same whatever the units of N and D."""

    runs: Runs
    x: Array
    y: Array
    target: Array
    centre: tuple[float, float]
    scale: tuple[float, float]

    @classmethod
    def of(cls, runs: Runs) -> Space:
        logs = [np.log(runs.params), np.log(runs.tokens)]
        centre = (float(logs[0].mean()), float(logs[1].mean()))
        scale = (float(logs[0].std()), float(logs[1].std()))
        x, y = ((log - c) / s for log, c, s in zip(logs, centre, scale, strict=True))
        return cls(runs, x, y, np.log(runs.loss), centre, scale)

    def enter(self, constants_SP: Array) -> Array:
        """Parameters of rows of L0, A, alpha, B, beta."""
        floor, amp_A, alpha, amp_B, beta = constants_SP.T
        a, b = np.log(amp_A) - alpha * self.centre[0], np.log(amp_B) - beta * self.centre[1]
        return np.stack((a, alpha * self.scale[0], b, beta * self.scale[1], floor), axis=1)

    def leave(self, theta: Array) -> Law:
        """The law of parameters of shape (5,) or (S, 5)."""
        a, alpha, b, beta, floor = np.asarray(theta).T
        alpha, beta = alpha / self.scale[0], beta / self.scale[1]
        law = (floor, a + alpha * self.centre[0], alpha, b + beta * self.centre[1], beta)
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
                floor, *others = np.maximum(amplitudes, 0.02 * self.runs.loss.min())
                a, b = np.log(others)
                starts.append([a, one, b, two, floor])
        return np.array(starts)

    def minimum(
        self,
        origin: Array,
        *,
        delta: float,
        rows: NDArray[np.int64] | slice = slice(None),
        tolerance: float = 1e-12,
    ) -> Minimum:
        """The parameters of least Huber loss on the log-loss of some rows, by L-BFGS from `origin`.

        delta: of the Huber loss; inf for least squares. rows: of a resample, with repetitions.
        tolerance: relative change of the objective at which a search ends.
        """
        theta, value = origin, np.inf
        for _ in range(MOST_SEARCHES):
            found, theta = self._search(theta, delta, rows, tolerance)
            gain, value = value - found.fun, float(found.fun)
            # A Huber loss of small delta has kinks at which a search can end early: it is taken up
            # again there, in a basis of that place, until nothing is gained.
            if not gain > 1e4 * tolerance * value:
                return Minimum(theta, value, True)
        return Minimum(theta, value, False)

    def _search(
        self, origin: Array, delta: float, rows: NDArray[np.int64] | slice, tolerance: float
    ) -> tuple[Any, Array]:
        """Scipy's result in a basis about the origin, and the parameters that it means."""
        from scipy.optimize import minimize

        basis = self._round(origin)
        x, y, target = self.x[rows], self.y[rows], self.target[rows]
        unit = delta if np.isfinite(delta) else 1.0

        def huber(z: Array) -> tuple[float, Array]:
            with np.errstate(all="ignore"):
                predicted, jacobian_RP = _log_loss(origin + basis @ z, x, y)
                residual = predicted - target
                clipped = np.clip(residual, -delta, delta)
                value = clipped @ (residual - clipped / 2) / unit
                gradient = clipped @ jacobian_RP @ basis / unit
            if not np.isfinite(value + gradient.sum()):  # a trial past all floats: too long a step
                return 1e12, np.zeros(5)
            return float(value), gradient

        # L0 is a parameter and not its logarithm, in which the objective would be flat near 0; it
        # goes with the last coordinate alone, so that L0 >= 0 is a bound of that one.
        bounds = [(None, None)] * 4 + [(-origin[4] / basis[4, 4], None)]
        options = {"ftol": tolerance, "gtol": 1e-12, "maxiter": MOST_STEPS}
        found = minimize(
            huber, np.zeros(5), jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )
        theta = origin + basis @ found.x
        theta[4] = max(theta[4], 0.0)
        return found, theta

    def _round(self, theta: Array) -> Array:
        """A triangular basis, shape (5, 5), in which the problem about theta is round.

        Its unit is about a standard error, and bounded in directions that the runs hardly identify,
        or the first trial would overflow.
        """
        predicted, jacobian_RP = _log_loss(theta, self.x, self.y)
        noise = max(float(np.median(np.abs(predicted - self.target))), 1e-9)
        curved = jacobian_RP.T @ jacobian_RP
        curved += (noise**2 + 1e-13 * np.trace(curved)) * np.eye(5)
        return noise * np.linalg.inv(np.linalg.cholesky(curved).T)


def _log_loss(theta: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Log-loss (R,), the terms added by log-sum-exp, and its Jacobian (R, P)."""
    a, alpha, b, beta, floor = theta
    one, two = a - alpha * x, b - beta * y
    top = np.maximum(np.maximum(one, two), np.log(max(floor, 1e-300)))
    p1, p2, p0 = np.exp(one - top), np.exp(two - top), np.exp(-top)
    total = p1 + p2 + floor * p0
    jacobian = np.stack([p1, -p1 * x, p2, -p2 * y, p0], axis=1)
    return top + np.log(total), jacobian / total[:, None]
