"""Which numbers are meant to be one: sizes and lengths are rounded to whole layers and whole steps.

labels = clusters([4.0e6, 4.0001e6, 1e8])       # [0, 0, 1]
sizes = merged([4.0e6, 4.0001e6, 1e8])          # [4e6, 4e6, 1e8]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

WITHIN = 0.02
"""Relative difference up to which two sizes, lengths or frequencies count as one: what rounding to
whole heads and steps does, and less than any sweep means by two."""


def clusters(values: ArrayLike, *, within: float = WITHIN) -> NDArray[np.int64]:
    """The number, from 0 and rising with the value, of the cluster that each value is in (R,).

    A cluster reaches from its smallest value to that times 1 + within, so that a chain of close
    values is not one. Values must be positive.
    """
    given = np.asarray(values, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    labels = np.zeros(len(given), dtype=np.int64)
    label, first = -1, -np.inf
    for row in order:
        if label < 0 or given[row] > first * (1 + within):
            label, first = label + 1, given[row]
        labels[row] = label
    return labels


def merged(values: ArrayLike, *, within: float = WITHIN) -> NDArray[np.float64]:
    """The values (R,), each replaced by the (lower) median of its cluster."""
    given, labels = np.asarray(values, dtype=np.float64), clusters(values, within=within)
    middles = [np.quantile(given[labels == one], 0.5, method="lower") for one in np.unique(labels)]
    return np.array(middles, dtype=np.float64)[labels]
