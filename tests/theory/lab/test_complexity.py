"""The complexity sweep: acceptance check 11, and joint SGD beside it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from theory.lab.complexity import (
    ComplexitySettings,
    assigned_mixture,
    cells,
    correlations,
    predictions,
    run_orthogonal,
)

FRESH = (7301, 7302, 7303, 7304, 7305)
"""Task assignments that nothing was tuned on."""


def means(settings: ComplexitySettings, *, trainer: str) -> pd.DataFrame:
    orthogonal = trainer == "orthogonal"
    chosen = [cell for cell in cells(settings) if (cell.run is run_orthogonal) == orthogonal]
    rows = [row for cell in chosen for row in cell.run(**cell.settings)]
    table = correlations(pd.DataFrame(rows), pd.DataFrame(predictions(settings)))
    return table.groupby("gap")[["frequency", "utility"]].mean()


@pytest.mark.slow
def test_utility_orders_tasks_at_every_complexity_gap_and_frequency_only_without_one() -> None:
    """Check 11: means over five assignments, 6000 steps."""
    found = means(ComplexitySettings(seeds=FRESH), trainer="orthogonal")
    assert list(found.index) == [0.0, 0.25, 0.5, 1.0, 1.5, 2.0]
    assert (found.utility >= 0.98).all()
    assert found.frequency[0.0] >= 0.99
    assert found.frequency[1.0] <= 0.87
    assert found.frequency[2.0] <= 0.68


@pytest.mark.slow
def test_joint_training_orders_tasks_by_utility_too() -> None:
    """Ours, the genuine test: what is retained at one width, ranked over tasks."""
    settings = ComplexitySettings(seeds=FRESH[:3], joint_gaps=(2.0,), joint_steps=6000)
    found = means(settings, trainer="joint").loc[2.0]
    assert found.utility >= 0.95
    assert found.frequency <= 0.75


def test_an_assignment_makes_half_of_the_tasks_complex_and_keeps_traces_at_one() -> None:
    mixture = assigned_mixture(5, 2.0, num_tasks=32, rank=16, a=1.0)
    flat = np.isclose(mixture.spectra[:, 0], mixture.spectra[:, -1])
    assert flat.sum() == 16
    np.testing.assert_allclose(mixture.traces, 1.0)


def test_an_assignment_depends_on_its_seed_alone() -> None:
    shape = {"num_tasks": 8, "rank": 4, "a": 1.0}
    same = assigned_mixture(5, 1.0, **shape), assigned_mixture(5, 1.0, **shape)
    assert (same[0].spectra == same[1].spectra).all()
    assert (same[0].spectra != assigned_mixture(6, 1.0, **shape).spectra).any()


def test_a_gap_that_would_make_spectra_rise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gaps must be in \[0, 2\], got 2.5"):
        ComplexitySettings(gaps=(0.0, 2.5))
