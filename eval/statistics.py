"""Intervals, one way each: of a mean over seeds, of a share of items, of a difference, of a ratio.

    mean, low, high = seed_interval([0.9, 0.92, 0.95])     # Student's t, 95%

All are two-sided 95% intervals. Seeds are the unit wherever there are several: items of one run
share its weights, so an interval over items leaves the spread over seeds out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Z = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""

MIN_SEEDS = 3
"""Fewer seeds than this and a mean over them is provisional."""


def seed_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of a value per seed: Student's t; NaN bounds for fewer than two."""
    data = np.asarray(values, dtype=float)
    if len(data) < 2:
        return (float(data.mean()) if len(data) else np.nan), np.nan, np.nan
    mean = float(data.mean())
    half = student_t975(len(data) - 1) * float(data.std(ddof=1)) / np.sqrt(len(data))
    return mean, mean - half, mean + half


def seed_fields(values: Sequence[float], name: str = "value") -> dict[str, float]:
    """`seed_interval` as columns: value, low, high; of another name NAME, NAME_low, NAME_high."""
    ends = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    return dict(zip((name, *ends), seed_interval(values), strict=True))


def per_group(
    rows: pd.DataFrame, by: Sequence[str], say: Callable[[pd.DataFrame], dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each group of `by`, unknown keys too: its key, and what is said of it."""
    return [
        dict(zip(by, key, strict=True)) | say(group)
        for key, group in rows.groupby(list(by), dropna=False)
    ]


def student_t975(dof: int) -> float:
    """Two-sided 95% quantile of Student's t."""
    from scipy.special import stdtrit  # what scipy.stats asks, which takes a second to import

    return float(stdtrit(dof, 0.975))


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share of n independent items (Wilson 1927).

    By hand, as scipy's takes whole successes: the mean of several draws' shares is none.
    """
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * float(np.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n)))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def share_of(right: NDArray[np.bool_], *, finite: bool = True) -> dict[str, Any]:
    """`share_fields` of the items that are right.

    finite: the model's logits were numbers. Where not, the share is undefined and the record says
    `diverged`: the arg max of NaN is the first entry, so that such a model scores like a constant.
    """
    if not finite:
        return share_fields(math.nan, 0) | {"diverged": True}
    return share_fields(float(right.mean()) if len(right) else math.nan, len(right))


def share_fields(share: float, n: int) -> dict[str, float]:
    """value, low and high of a record whose value is a share of n items; NaN of none."""
    if n == 0:
        return dict.fromkeys(("value", "low", "high"), math.nan)
    low, high = wilson(share, n)
    return {"value": share, "low": low, "high": high}


def newcombe(a: float, n_a: int, b: float, n_b: int) -> tuple[float, float]:
    """Interval of the difference a - b of two shares of independent items.

    Newcombe 1998, method 10: each share's Wilson interval, put together by squares.
    """
    (low_a, high_a), (low_b, high_b) = wilson(a, n_a), wilson(b, n_b)
    below = math.hypot(a - low_a, high_b - b)
    return a - b - below, a - b + math.hypot(high_a - a, b - low_b)


def ratio_fields(part: NDArray[np.float64], whole: NDArray[np.float64]) -> dict[str, float]:
    """value, low, high of the ratio of two means over pairs (linearised); NaN of a whole of 0.

    Of means and not of pairs: where one pair's whole is nearly 0 its own ratio is anything.
    """
    if len(whole) < 2 or whole.mean() == 0:
        return dict.fromkeys(("value", "low", "high"), math.nan)
    value = float(part.mean() / whole.mean())
    spread = (part - value * whole).std(ddof=1) / (abs(whole.mean()) * np.sqrt(len(whole)))
    return {"value": value, "low": value - 1.96 * spread, "high": value + 1.96 * spread}


@dataclass(frozen=True)
class Share:
    """A ratio of two means over seeds and its 95% interval; NaN where it is undefined."""

    value: float
    low: float
    high: float


UNDEFINED = Share(math.nan, math.nan, math.nan)


def share(parts: Sequence[float], wholes: Sequence[float]) -> Share:
    """mean(parts) / mean(wholes), one of each a seed, with Fieller's interval (Fieller 1954).

    Undefined unless the wholes' 95% interval lies above 0. One seed tells no spread: then its own
    ratio without bounds, if its whole is positive.
    """
    part, whole = np.asarray(parts, dtype=float), np.asarray(wholes, dtype=float)
    n, x, y = len(part), float(part.mean()), float(whole.mean())
    if not y > 0:
        return UNDEFINED
    if n < 2:
        return Share(x / y, math.nan, math.nan)
    t = student_t975(n - 1) ** 2 / n
    (s_xx, s_xy), (_, s_yy) = t * np.cov(part, whole, ddof=1)
    a, b, c = y * y - s_yy, x * y - s_xy, x * x - s_xx
    if a <= 0:  # the whole's interval holds 0
        return UNDEFINED
    half = math.sqrt(max(b * b - a * c, 0.0))
    return Share(x / y, (b - half) / a, (b + half) / a)
