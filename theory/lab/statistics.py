"""Bands over seeds: the mean and its 95% interval by Student's t.

mean, low, high = interval([0.9, 0.92, 0.95])
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

LEVEL = 0.95


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, lower and upper bound; bounds are NaN for fewer than two values."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean()) if len(array) else float("nan")
    if len(array) < 2:
        return mean, float("nan"), float("nan")
    half = float(student_t.ppf((1 + LEVEL) / 2, len(array) - 1)) * array.std(ddof=1)
    half /= np.sqrt(len(array))
    return mean, mean - float(half), mean + float(half)


def bands(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """`value` over seeds: one row per group of `by`, with mean, low, high and num_seeds, sorted."""
    table = []
    for key, group in rows.groupby(list(by), sort=True):
        mean, low, high = interval(group.value.tolist())
        fields = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        table.append({**fields, "mean": mean, "low": low, "high": high, "num_seeds": len(group)})
    return pd.DataFrame(table)


def show(values: Sequence[float], digits: int = 3) -> str:
    """The mean and half the width of its interval, for tables: 0.987±0.004."""
    mean, low, _ = interval(values)
    text = f"{mean:.{digits}f}"
    return text if np.isnan(low) else f"{text}±{mean - low:.{digits}f}"
