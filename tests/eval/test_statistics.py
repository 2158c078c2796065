"""Intervals, against printed tables and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from eval.statistics import (
    newcombe,
    ratio_fields,
    seed_interval,
    share_of,
    student_t975,
    wilson,
)


@pytest.mark.parametrize(("dof", "quantile"), [(1, 12.706), (2, 4.303), (9, 2.262), (30, 2.042)])
def test_students_quantile_is_the_printed_tables(dof: int, quantile: float) -> None:
    assert student_t975(dof) == pytest.approx(quantile, abs=5e-4)


def test_one_seed_has_a_mean_and_no_interval_of_its_own() -> None:
    mean, low, high = seed_interval([0.4])
    assert mean == 0.4
    assert np.isnan(low)
    assert np.isnan(high)


@pytest.mark.parametrize(
    ("hits", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (3, 7), (1, 5000), (2475, 5000)]
)
def test_wilson_agrees_with_scipy(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
    low, high = wilson(hits / n, n)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= hits / n <= high <= 1


def test_the_interval_of_a_difference_is_newcombes() -> None:
    # Newcombe 1998, table II: 56/70 - 48/80, method 10.
    assert newcombe(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe(9 / 10, 10, 3 / 10, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)


def test_a_ratio_is_of_means_and_a_share_of_none_is_undefined() -> None:
    whole = np.array([1.0, 3.0, 1e-9])
    assert ratio_fields(0.5 * whole, whole) == pytest.approx(
        {"value": 0.5, "low": 0.5, "high": 0.5}
    )
    rng = np.random.default_rng(0)
    noisy = ratio_fields(rng.normal(1, 1, 400), np.full(400, 2.0))
    assert noisy["high"] - noisy["low"] == pytest.approx(2 * 1.96 / np.sqrt(400) / 2, rel=0.1)
    assert np.isnan(ratio_fields(whole, 0 * whole)["value"])
    assert np.isnan(share_of(np.zeros(0, dtype=bool))["value"])
    assert np.isnan(share_of(np.ones(3, dtype=bool), finite=False)["value"])
