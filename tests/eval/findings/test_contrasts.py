"""Estimates and differences over seeds, on values worked out by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from refusals import refuses

from eval.findings.contrasts import difference, estimate, final, per_seed


def row(run: str, seed: int, step: int, value: float, **more: object) -> dict:
    return {
        "run": run,
        "seed": seed,
        "step": step,
        "task": "cmp_r4",
        "rung": "w16",
        "metric": "score",
        "split": "test",
        "subset": "all",
        "value": value,
    } | more


def by_seed(*values: float) -> pd.Series:
    return pd.Series(values, index=range(1, len(values) + 1))


def test_an_interval_is_students_t_over_seeds() -> None:
    found = estimate(by_seed(0.4, 0.5, 0.6))
    assert found.mean == pytest.approx(0.5)
    # t(2, .975) = 4.3027; sd = .1; / sqrt(3)
    assert found.high - found.mean == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-4)
    assert found.text == "0.50 ± 0.25"


def test_a_difference_is_paired_by_seed() -> None:
    """The spread that two conditions share through their seeds drops out."""
    a, b = by_seed(0.3, 0.6, 0.9), by_seed(0.21, 0.5, 0.79)
    assert not estimate(a).clear
    change = difference(a, b[::-1])
    assert change.mean == pytest.approx(0.1)
    assert change.clear
    assert change.verdict == "higher"
    assert change.signed.startswith("+0.10")
    assert difference(b, a).verdict == "lower"


def test_an_interval_that_holds_zero_says_so_and_so_do_two_seeds() -> None:
    crossing = estimate(by_seed(-0.1, 0.1, 0.3))
    assert not crossing.clear
    assert crossing.verdict == "holds 0"
    few = estimate(by_seed(0.50, 0.51))
    assert not few.clear
    assert few.verdict == "too few seeds"


def test_seeds_that_do_not_pair_are_refused() -> None:
    with refuses(key="seeds", value=[[1, 2], [1, 2, 3]], remedy="the missing ones"):
        difference(by_seed(0.1, 0.2), by_seed(0.1, 0.2, 0.3))


def test_a_condition_is_read_at_each_runs_own_last_step() -> None:
    frame = pd.DataFrame(
        [
            row("single-s1-w16", 1, 600, 0.1),
            row("single-s1-w16", 1, 1200, 0.2),
            row("single-s2-w16", 2, 1200, 0.4),
            row("single-s2-w16", 2, 1200, 0.9, subset="no_mirror"),
            row("sparse-s1-w16", 1, 4800, 0.7),
            row("single-s1-w16", 1, 1200, 3.0, task=""),
        ]
    )
    rows = final(frame)
    assert per_seed(rows, "single", rung="w16", task="cmp_r4").to_dict() == {1: 0.2, 2: 0.4}
    assert per_seed(rows, "sparse").to_dict() == {1: 0.7}
    with refuses(key="the records", rule="hold no matched", remedy="configs/confirm/matched.yaml"):
        per_seed(rows, "matched")


def test_two_values_of_one_seed_are_refused_not_averaged() -> None:
    frame = pd.DataFrame(
        [row("single-s1-w16", 1, 9, 0.1), row("single-s1-w64", 1, 9, 0.2, rung="w64")]
    )
    with refuses(key="the records", rule="several values a seed", remedy="which"):
        per_seed(final(frame), "single")
