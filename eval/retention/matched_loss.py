"""Retention at equal host loss: what a width keeps beyond what its lower loss alone would give.

    beyond = kept - share_at_loss(loss, losses, shares)  # the narrow model's losses, shares by host

A wider model has learned more of its host when a burst comes, and at equal steps the two cannot be
told apart. Hosts of several difficulties show what a narrow model keeps at each host loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SLACK = 0.05
"""Nats by which a loss may lie outside of those measured and still be read at their end: what the
mean loss of a few batches is good for."""


def share_at_loss(loss: float, losses: Sequence[float], shares: Sequence[float]) -> float:
    """The share that was kept at a host loss, linear between the hosts measured; NaN outside."""
    order = np.argsort(losses)
    known = np.asarray(losses, dtype=float)[order]
    if not known[0] - SLACK <= loss <= known[-1] + SLACK:
        return math.nan
    return float(np.interp(loss, known, np.asarray(shares, dtype=float)[order]))
