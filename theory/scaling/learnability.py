"""What a smaller model can make up for with data, and what only parameters give (Defs. 1 and 2).

    answers = learnability(fitted, large=1e10, eps=(0.0, 0.02))
    answers.thresholds[0].params, answers.sizes[0].verdict

Every answer comes with its 95% interval over the resamples of the fit, and with what of it lies
outside the runs. L_inf is an extrapolation in D by its nature: no run has read infinitely much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from theory.same import WITHIN, merged
from theory.scaling.fit import Fit, interval
from theory.scaling.law import Law
from theory.scaling.runs import Runs

EDGE = 1.01
"""A size within 1% of the runs' range is inside: a size is never meant to the last parameter."""


@dataclass(frozen=True)
class LawEstimate:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, fitted: Fit, say: Callable[[Law], Any]) -> LawEstimate:
        """What is said of the law, and of every draw of it."""
        return cls(float(say(fitted.law)), *interval(say(fitted.draws)))


@dataclass(frozen=True)
class LeastSize:
    """Def. 2 at one eps."""

    eps: float
    """Nats per token."""

    params: LawEstimate
    """N_s*(eps): any smaller model stays more than eps above L_C(N_l), whatever it reads."""

    outside: tuple[str, ...]


@dataclass(frozen=True)
class Size:
    """Def. 1 for one smaller model."""

    params: float
    optimal_gap: LawEstimate
    """L_C(N_s) - L_C(N_l), nats per token."""

    infinite_gap: LawEstimate
    """L_inf(N_s) - L_C(N_l): below 0, data can close the gap; above 0, only parameters can."""

    tokens: LawEstimate
    """The D at which it has the large model's loss; inf where none is enough."""

    verdict: str
    """ "data", "parameters", or "unclear" where the interval of `infinite_gap` holds 0."""

    outside: tuple[str, ...]


@dataclass(frozen=True)
class Learnability:
    """The answers for one large model."""

    large: float
    tokens: LawEstimate
    """Its compute-optimal D."""

    optimal_loss: LawEstimate
    infinite_loss: LawEstimate
    reach: LawEstimate
    """N_l / N_s*(0)."""

    outside: tuple[str, ...]
    """What of the large model itself is outside the data."""

    thresholds: tuple[LeastSize, ...]
    sizes: tuple[Size, ...]


def learnability(
    fitted: Fit,
    *,
    large: float | None = None,
    eps: Sequence[float] = (0.0,),
    sizes: Sequence[float] | None = None,
) -> Learnability:
    """Answer both definitions.

    Args:
        large: N_l in parameters; default: the largest of the runs.
        eps: nats per token, each at least 0.
        sizes: the smaller models to judge; default: all sizes of the runs below `large`, those that
            are the same but for rounding (theory/same.py) once.

    Raises ValueError naming what is out of its range.
    """
    runs = fitted.runs
    large = float(runs.params.max()) if large is None else float(large)
    if not (np.isfinite(large) and large > 0):
        raise ValueError(f"large must be a positive number of parameters, got {large}")
    if sizes is None:
        alike = np.unique(merged(runs.params)).tolist()
        sizes = [size for size in alike if size * (1 + WITHIN) < large]
    if wrong := [size for size in sizes if not 0 < size < large]:
        raise ValueError(f"sizes must be positive and below large ({large:g}), got {wrong[0]:g}")
    about_large = _outside(runs, "N_l", large, "params")
    optimal = LawEstimate.of(fitted, lambda law: law.optimal_tokens(large))
    return Learnability(
        large=large,
        tokens=optimal,
        optimal_loss=LawEstimate.of(fitted, lambda law: law.compute_optimal_loss(large)),
        infinite_loss=LawEstimate.of(fitted, lambda law: law.infinite_data_loss(large)),
        reach=LawEstimate.of(fitted, lambda law: law.reach),
        outside=(*about_large, *_outside(runs, "its compute-optimal D", optimal.value, "tokens")),
        thresholds=tuple(_threshold(fitted, large, one) for one in eps),
        sizes=tuple(_size(fitted, large, one) for one in sizes),
    )


def _threshold(fitted: Fit, large: float, eps: float) -> LeastSize:
    params = LawEstimate.of(fitted, lambda law: law.small_below(large, eps=eps))
    return LeastSize(eps, params, _outside(fitted.runs, "N_s*", params.value, "params"))


def _size(fitted: Fit, large: float, small: float) -> Size:
    optimal = LawEstimate.of(fitted, lambda law: law.data_gaps(small, large)[0])
    infinite = LawEstimate.of(fitted, lambda law: law.data_gaps(small, large)[1])
    tokens = LawEstimate.of(fitted, lambda law: law.tokens_to_match(small, large))
    verdict = "data" if infinite.high < 0 else "parameters" if infinite.low > 0 else "unclear"
    outside = _outside(fitted.runs, "N_s", small, "params")
    if np.isfinite(tokens.value):
        outside += _outside(fitted.runs, "the D it needs", tokens.value, "tokens")
    return Size(small, optimal, infinite, tokens, verdict, outside)


def _outside(runs: Runs, what: str, value: float, column: str) -> tuple[str, ...]:
    """What to say after "outside the data:", if a value is outside a column's range."""
    low, high = (float(f(getattr(runs, column))) for f in (np.min, np.max))
    if low / EDGE <= value <= high * EDGE:
        return ()
    side, edge = ("above", high) if value > high else ("below", low)
    times = max(value / edge, edge / value)
    return (f"{what} = {value:.3g} is {times:.3g} times {side} the runs' {edge:.3g}",)
