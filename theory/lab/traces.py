"""What injection traces come to: peaks and troughs, half-lives, signals before a burst.

table = peaks_and_troughs(rows)
"""

from __future__ import annotations

import numpy as np
import pandas as pd


def half_life_of(lags: np.ndarray, values: np.ndarray) -> float:
    """Steps until a signal is below half of its first value, interpolated; NaN if it never is."""
    below = values < values[0] / 2
    if not below.any():
        return float("nan")
    at = int(below.argmax())
    last, first = values[at - 1], values[at]
    share = (last - values[0] / 2) / (last - first)
    return float(lags[at - 1] + share * (lags[at] - lags[at - 1]))


def half_lives(rows: pd.DataFrame, *, metric: str = "leverage") -> pd.DataFrame:
    """Of the "forget" part: columns width, seed, peak, value (half-life in steps) and end.

    `peak` is the signal right after the burst, `end` the last reading.
    """
    own = rows[(rows.part == "forget") & (rows.metric == metric)]
    table = []
    for (width, seed), curve in own.groupby(["width", "seed"], sort=True):
        curve = curve.sort_values("lag")
        lags, values = curve.lag.to_numpy(float), curve.value.to_numpy(float)
        table.append(
            {"width": width, "seed": seed, "peak": values[0], "end": values[-1]}
            | {"value": half_life_of(lags, values)}
        )
    return pd.DataFrame(table)


def peaks_and_troughs(rows: pd.DataFrame, *, metric: str = "leverage") -> pd.DataFrame:
    """Of the "trace" part: columns width, seed, number, trough, peak: a row a burst.

    The trough is read right before the burst of that number, the peak right after it.
    Numbers are from 1; the first trough comes after a gap that no burst preceded.
    """
    own = rows[(rows.part == "trace") & (rows.metric == metric)]
    peaks = own[(own.lag == 0) & (own.cycle > 0)]
    before = own[own.lag == own.gap - own.burst]
    key = ["width", "seed", "number"]
    table = peaks.assign(number=peaks.cycle)[[*key, "value"]].rename(columns={"value": "peak"})
    troughs = before.assign(number=before.cycle + 1)[[*key, "value"]]
    merged = table.merge(troughs.rename(columns={"value": "trough"}), on=key, how="outer")
    return merged.sort_values(key, ignore_index=True)


def before_bursts(rows: pd.DataFrame, *, metric: str = "leverage") -> pd.DataFrame:
    """Of the "gaps" part: columns width, gap, seed, value: the mean over the last quarter's bursts.

    Read before a burst: right after one, a larger gap looks better at any width.
    """
    own = rows[(rows.part == "gaps") & (rows.metric == metric) & (rows.when == "before")]
    last = own[own.step > 0.75 * own.groupby("gap").step.transform("max")]
    return last.groupby(["width", "gap", "seed"], as_index=False).value.mean()
