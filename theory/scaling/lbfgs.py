"""L-BFGS for many small problems at once: one call, no Python loop over problems.

    found = minimize(objective, starts_SP)  # objective(theta_SP, which_S) -> value_S, gradient_SP

A law is fitted from hundreds of starts and again for hundreds of resamples of its runs; one by one
the overhead of each call would be most of the time.

S: problems. P: parameters. M: pairs remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Objective = Callable[[Array, NDArray[np.int64]], tuple[Array, Array]]
"""Values (S,) and gradients (S, P) at theta_SP of the problems numbered which_S."""

MEMORY = 10
ARMIJO, CURVATURE = 1e-4, 0.9
MOST_TRIALS = 30
"""Evaluations of one line search; past it the value falls no more in floating point."""


@dataclass(frozen=True)
class Minima:
    """Where each problem ended."""

    theta_SP: Array
    value_S: Array
    steps_S: NDArray[np.int64]
    converged_S: NDArray[np.bool_]
    """False where the steps ran out before the tolerance was met."""


def minimize(
    objective: Objective, start_SP: Array, *, most_steps: int = 500, tolerance: float = 1e-10
) -> Minima:
    """Minimise S problems of P parameters each from their own starts.

    A problem ends when a step lowers its value by less than `tolerance` of it twice in a row, or
    when no step along its direction lowers it any more. The line search is the weak Wolfe bisection
    of Lewis and Overton (2013): it needs no second derivative, which a Huber loss of small delta
    hardly has.
    """
    theta = np.array(start_SP, dtype=float)
    num, width = theta.shape
    value, gradient = objective(theta, np.arange(num))
    steps, converged = np.zeros(num, dtype=np.int64), np.zeros(num, dtype=bool)
    calm = np.zeros(num, dtype=np.int64)
    moved, turned = np.zeros((2, MEMORY, num, width))
    inverse = np.zeros((MEMORY, num))  # 1 / (s . y); 0 where a slot is empty, which drops it
    active = np.arange(num)
    for _ in range(most_steps):
        if not len(active):
            break
        slope_SP = gradient[active]
        way = _direction(slope_SP, moved[:, active], turned[:, active], inverse[:, active])
        downhill = np.einsum("sp,sp->s", way, slope_SP)
        lost = ~(downhill < 0)  # also not-a-number: start again along the gradient
        way[lost] = -slope_SP[lost]
        downhill[lost] = -np.einsum("sp,sp->s", slope_SP[lost], slope_SP[lost])
        first = inverse[:, active].max(axis=0) == 0
        length = np.where(first, 1 / np.maximum(np.linalg.norm(slope_SP, axis=1), 1.0), 1.0)
        step, new_value, new_gradient = _line_search(
            objective, theta[active], value[active], way, downhill, length, active
        )
        taken = step > 0
        shift = step[:, None] * way
        turn = new_gradient - slope_SP
        product = np.einsum("sp,sp->s", shift, turn)
        keep = taken & (product > 1e-300)
        for history, newest in ((moved, shift), (turned, turn)):
            history[:, active] = np.roll(history[:, active], 1, axis=0)
            history[0, active] = np.where(keep[:, None], newest, 0.0)
        inverse[:, active] = np.roll(inverse[:, active], 1, axis=0)
        inverse[0, active] = np.where(keep, 1 / np.where(keep, product, 1.0), 0.0)
        gain = np.where(taken, value[active] - new_value, 0.0)
        small = gain <= tolerance * np.abs(value[active])
        theta[active] += np.where(taken[:, None], shift, 0.0)
        value[active] = np.where(taken, new_value, value[active])
        gradient[active] = np.where(taken[:, None], new_gradient, slope_SP)
        steps[active] += 1
        calm[active] = np.where(small, calm[active] + 1, 0)
        # A failed search along a remembered direction is tried once more along the gradient.
        inverse[:, active[~taken]] = 0.0
        ended = calm[active] >= 2
        converged[active[ended]] = True
        active = active[~ended]
    return Minima(theta, value, steps, converged)


def _direction(slope_SP: Array, moved_MSP: Array, turned_MSP: Array, inverse_MS: Array) -> Array:
    """The two-loop recursion (Nocedal and Wright, algorithm 7.4); newest pair first."""
    way = slope_SP.copy()
    share_MS = np.zeros_like(inverse_MS)
    for m in range(len(inverse_MS)):
        share_MS[m] = inverse_MS[m] * np.einsum("sp,sp->s", moved_MSP[m], way)
        way -= share_MS[m][:, None] * turned_MSP[m]
    squared = np.einsum("sp,sp->s", turned_MSP[0], turned_MSP[0])
    usable = (inverse_MS[0] > 0) & (squared > 0)
    scale = 1 / np.where(usable, inverse_MS[0] * squared, 1.0)
    way *= np.where(usable, scale, 1.0)[:, None]
    for m in reversed(range(len(inverse_MS))):
        back = inverse_MS[m] * np.einsum("sp,sp->s", turned_MSP[m], way)
        way += (share_MS[m] - back)[:, None] * moved_MSP[m]
    return -way


def _line_search(
    objective: Objective,
    theta_SP: Array,
    value_S: Array,
    way_SP: Array,
    downhill_S: Array,
    length_S: Array,
    which_S: NDArray[np.int64],
) -> tuple[Array, Array, Array]:
    """Step lengths that meet the weak Wolfe conditions, with the values and gradients there.

    Where the trials run out, the longest step that lowered the value enough, or 0.
    """
    low, high, step = np.zeros_like(value_S), np.full_like(value_S, np.inf), length_S.copy()
    best, best_value = np.zeros_like(value_S), value_S.copy()
    best_gradient = np.zeros_like(theta_SP)
    open_S = np.arange(len(value_S))
    for _ in range(MOST_TRIALS):
        trial = theta_SP[open_S] + step[open_S, None] * way_SP[open_S]
        value, gradient = objective(trial, which_S[open_S])
        slope = np.einsum("sp,sp->s", gradient, way_SP[open_S])
        enough = value <= value_S[open_S] + ARMIJO * step[open_S] * downhill_S[open_S]
        flat = slope >= CURVATURE * downhill_S[open_S]
        good = open_S[enough]
        best[good], best_value[good] = step[good], value[enough]
        best_gradient[good] = gradient[enough]
        low[good] = step[good]
        bad = open_S[~enough]  # not-a-number too
        high[bad] = step[bad]
        open_S = open_S[~(enough & flat)]
        if not len(open_S):
            break
        bounded = np.isfinite(high[open_S])
        middle = 0.5 * (low[open_S] + np.where(bounded, high[open_S], 0.0))
        step[open_S] = np.where(bounded, middle, 2 * low[open_S])
    return best, best_value, best_gradient
