"""Retention at equal host loss, with known answers."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from eval.findings.widths import slope
from eval.retention.matched_loss import SLACK, share_at_loss

LOSSES, SHARES = [2.0, 0.0, 5.0], [0.6, 1.0, 0.0]
"""Hosts in any order: a fifth of what was brought goes with each nat."""


def test_a_width_that_keeps_what_its_host_loss_gives_keeps_nothing_beyond_it() -> None:
    for loss in (0.0, 0.5, 2.0, 4.45, 5.0):
        assert share_at_loss(loss, LOSSES, SHARES) == pytest.approx(1 - loss / 5)


def test_a_loss_beyond_the_hosts_measured_is_undefined_but_for_a_batchs_noise() -> None:
    assert share_at_loss(5 + SLACK / 2, LOSSES, SHARES) == 0.0
    assert math.isnan(share_at_loss(5 + 2 * SLACK, LOSSES, SHARES))
    assert math.isnan(share_at_loss(math.nan, LOSSES, SHARES))
    assert math.isnan(share_at_loss(3.0, LOSSES, [math.nan, 1.0, 0.0]))


def test_a_slope_is_the_rise_per_doubling_of_the_seeds_that_all_widths_have() -> None:
    widths = {w: pd.Series({1: 0.1 * i, 2: 0.5, 3: 0.2 * i}) for i, w in enumerate((16, 32, 64))}
    widths[64] = widths[64].drop(3)
    widths[32][2] = math.nan
    found = slope(widths)
    assert found[1] == pytest.approx(0.1)
    assert math.isnan(found[2])
    assert list(found.index) == [1, 2]
