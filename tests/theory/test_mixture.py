"""Mixtures: bad input is refused with key, value and remedy; ties are said."""

from __future__ import annotations

import numpy as np
import pytest

from theory.mixture import Mixture, given, power_law
from theory.utility import critical_widths, describe_ties, ties


def test_frequencies_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"frequencies must sum to 1, got 0.9; divide each"):
        Mixture(np.array([0.5, 0.4]), np.ones((2, 1)))


def test_negative_frequencies_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Mixture(np.array([1.5, -0.5]), np.ones((2, 1)))


def test_more_features_than_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_inputs must be at least K m = 3 x 4 = 12, got 11"):
        power_law(3, 4, a=1.0, b=1.0, num_inputs=11)


@pytest.mark.parametrize(
    ("spectra", "said"),
    [([[1.0, 2.0]], "rises"), ([[0.0]], "all zeros"), ([[-1.0]], "at least 0"), ([], "one row")],
)
def test_bad_spectra_are_refused(spectra: list[list[float]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Mixture(np.array([1.0]), np.array(spectra))


def test_the_only_task_cannot_be_withheld() -> None:
    with pytest.raises(ValueError, match="at least two"):
        power_law(1, 2, a=1.0, b=1.0).without(0)


def test_ties_are_said_and_bound_the_critical_width() -> None:
    tied = power_law(32, 8, a=1.0, b=1.0)  # utilities 1 / (k j)
    assert "183 of 256 features are tied" in describe_ties(tied)
    assert ties(tied)[0] == [(0, 1), (1, 0)]  # 1/2 = 1/2
    uneven = given([0.5, 0.5], [[1.0], [0.5, 0.25, 0.25]])
    assert "2 of 4 features are tied" in describe_ties(uneven)  # of a table of 2 x 3
    worst = critical_widths(tied)[-1, 0]
    best = critical_widths(tied, ties="best")[-1, 0]
    assert (best, worst) == (82, 85)


def test_a_mixture_without_ties_says_nothing() -> None:
    untied = power_law(32, 8, a=1.25, b=0.9)
    assert describe_ties(untied) == ""
    assert (critical_widths(untied) == critical_widths(untied, ties="best")).all()


def test_spectra_of_unequal_length_end_in_absent_features() -> None:
    mixture = given([0.7, 0.3], [[1.0, 0.5, 0.25], [2.0]])
    assert mixture.spectra.tolist() == [[1.0, 0.5, 0.25], [2.0, 0.0, 0.0]]
    # Absent: learned at no width.
    assert critical_widths(mixture).tolist() == [[1, 3, 4], [2, 7, 7]]


def test_a_mixture_cannot_be_changed_behind_its_back() -> None:
    frequencies = np.array([0.5, 0.5])
    mixture = Mixture(frequencies, np.ones((2, 1)))
    frequencies[0] = 9.0
    assert mixture.frequencies.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="read-only"):
        mixture.utilities[0, 0] = 1.0
