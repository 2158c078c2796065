"""Theorem 3 and the closed forms: acceptance checks 2 and 3, and what must not change an answer."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given as example
from hypothesis import settings
from hypothesis import strategies as st

from theory.mixture import Floats, Mixture, power_law
from theory.utility import (
    critical_widths,
    optimal_loss,
    order_by_utility,
    ranks,
    retained_signal,
    width_for_share,
)


def power_law_critical_width(
    task: int,
    feature: int = 1,
    *,
    a: float,
    b: float,
    rank: int | None = None,
    num_tasks: int | None = None,
) -> int:
    """Closed form of N_crit for pi_k ~ k^-a, lambda_j = j^-b: sum_k min(m, floor((r/k)^(a/b) j)).

    Ties count against the task. For the leading feature only tasks k <= r take part; for a later
    one all K, so `num_tasks` is needed. `rank` None is no cap (m infinite).

    Args:
        task: r, from 1.
        feature: j, from 1.
    """
    others = np.arange(1, (task if feature == 1 else num_tasks or task) + 1)
    before = np.floor((task / others) ** (a / b) * feature * (1 + 1e-12))
    return int((before if rank is None else np.minimum(before, rank)).sum())


def heterogeneous_critical_width(
    task: int, feature: int = 1, *, frequencies: Floats, leading: Floats, decay: Floats, rank: int
) -> int:
    """Closed form for lambda_{k,j} = leading_k j^-b_k: sum_k min(m, floor((u_k1/u_rj)^(1/b_k))).

    A flat spectrum (b_k = 0) is kept whole or not at all. Ties count against the task.

    Args:
        task, feature: from 1.
        frequencies, leading, decay: pi_k, lambda_{k,1} and b_k (K,).
    """
    utilities = frequencies * leading
    target = utilities[task - 1] * float(feature) ** -decay[task - 1]
    ratio = utilities / target * (1 + 1e-12)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        before = np.where(decay > 0, np.floor(ratio ** (1 / np.maximum(decay, 1e-300))), np.inf)
    return int(np.where(ratio >= 1, np.minimum(before, rank), 0).sum())


def uncapped_critical_width(task: int, ratio: float, *, c: float = 0.4) -> float:
    """Smooth approximation without a cap: sum_{k<=r} (r/k)^(a/b) - c r, c the mean lost fraction.

    c is .32 to .45 for a/b in [.5, 2] (measured at r = 32 to 1000). Leading order: a/b > 1 gives
    zeta(a/b) r^(a/b), a/b = 1 gives r ln r, a/b < 1 is linear in r.
    """
    others = np.arange(1, task + 1)
    return float(((task / others) ** ratio).sum() - c * task)


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    """Random mixtures of 2 to 6 tasks with 1 to 5 features; utilities untied."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_tasks, rank = draw(st.integers(2, 6)), draw(st.integers(1, 5))
    frequencies = rng.dirichlet(np.full(num_tasks, 0.7)) + 1e-3
    spectra = -np.sort(-rng.lognormal(sigma=1.5, size=(num_tasks, rank)), axis=1)
    return Mixture(frequencies / frequencies.sum(), spectra)


def test_the_best_subset_of_features_is_the_most_useful_one() -> None:
    """Check 2: brute force over all C(12, 5) subsets."""
    rng = np.random.default_rng(31)
    mixture = Mixture(rng.dirichlet(np.ones(3)), -np.sort(-rng.random((3, 4)), axis=1))
    utilities = mixture.utilities.ravel()
    losses = {
        kept: utilities.sum() - utilities[list(kept)].sum() for kept in combinations(range(12), 5)
    }
    best = min(losses, key=losses.__getitem__)
    assert set(best) == set(order_by_utility(mixture)[:5].tolist())
    assert losses[best] == pytest.approx(float(optimal_loss(mixture, 5)), abs=1e-12)


def test_eigenvalues_of_the_mixed_covariance_are_the_utilities() -> None:
    """Check 2, in a random orthonormal basis of the inputs."""
    rng = np.random.default_rng(32)
    mixture = power_law(4, 3, a=1.1, b=0.7, num_inputs=14)
    basis = np.linalg.qr(rng.standard_normal((14, 14)))[0][:, :12].reshape(14, 4, 3)
    moment = sum(
        pi * block @ np.diag(spectrum) @ block.T
        for pi, block, spectrum in zip(
            mixture.frequencies, basis.transpose(1, 0, 2), mixture.spectra, strict=True
        )
    )
    found = np.linalg.eigvalsh(moment)[::-1][:12]
    np.testing.assert_allclose(found, np.sort(mixture.utilities.ravel())[::-1], atol=1e-12)


@pytest.mark.parametrize(("rank", "a", "b"), [(8, 1.25, 0.9), (16, 1.15, 0.75), (32, 1.5, 1.2)])
def test_closed_forms_equal_enumeration(rank: int, a: float, b: float) -> None:
    """Check 3, every task and every feature."""
    enumerated = critical_widths(power_law(32, rank, a=a, b=b))
    for task in range(1, 33):
        for feature in range(1, rank + 1):
            closed = power_law_critical_width(task, feature, a=a, b=b, rank=rank, num_tasks=32)
            assert closed == enumerated[task - 1, feature - 1]
        assert power_law_critical_width(task, a=a, b=b, rank=rank) == enumerated[task - 1, 0]


def test_equal_exponents_give_the_divisor_sum() -> None:
    """Check 3: sum_{k<=r} floor(r / k)."""
    found = [power_law_critical_width(r, a=1.0, b=1.0, rank=32) for r in (4, 8, 16, 32)]
    assert found == [8, 20, 50, 119]


def test_the_heterogeneous_closed_form_equals_enumeration() -> None:
    decay = np.random.default_rng(33).choice([0.0, 0.5, 1.0, 2.1], size=32)
    mixture = power_law(32, 16, a=1.03, b=decay, unit_trace=True)
    enumerated = critical_widths(mixture)
    for task in range(1, 33):
        for feature in (1, 2, 7, 16):
            closed = heterogeneous_critical_width(
                task, feature, frequencies=mixture.frequencies, leading=mixture.spectra[:, 0],
                decay=decay, rank=16,
            )  # fmt: skip
            assert closed == enumerated[task - 1, feature - 1]


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.5, 2.0])
def test_the_smooth_approximation_is_close_without_a_cap(ratio: float) -> None:
    for task in (64, 256, 1000):
        exact = power_law_critical_width(task, a=ratio, b=1.0)
        assert uncapped_critical_width(task, ratio) == pytest.approx(exact, rel=0.05)


def test_loss_falls_with_width_as_a_power_of_the_decay() -> None:
    """Few tasks, many features: L_inf(N) ~ N^-(b - 1)."""
    mixture = power_law(4, 200_000, a=1.0, b=1.46)
    widths = np.array([200, 2000])
    slope = np.diff(np.log(optimal_loss(mixture, widths)))[0] / np.log(10)
    # The tail that a finite m cuts off steepens it a little.
    assert slope == pytest.approx(-0.46, abs=0.03)


@settings(deadline=None, max_examples=50)
@example(mixtures(), st.integers(0, 30))
def test_widths_are_nested_and_more_width_never_hurts(mixture: Mixture, width: int) -> None:
    narrow, wide = retained_signal(mixture, width), retained_signal(mixture, width + 1)
    assert (wide >= narrow).all()
    assert optimal_loss(mixture, width + 1) <= optimal_loss(mixture, width) + 1e-15
    # One unit of width is one feature: never more than one task gains.
    assert (wide > narrow).sum() <= 1


@settings(deadline=None, max_examples=50)
@example(mixtures(), st.floats(1e-3, 1e3))
def test_scaling_all_spectra_leaves_critical_widths(mixture: Mixture, scale: float) -> None:
    scaled = Mixture(mixture.frequencies, mixture.spectra * scale)
    assert (critical_widths(scaled) == critical_widths(mixture)).all()
    np.testing.assert_allclose(
        optimal_loss(scaled, 3), scale * optimal_loss(mixture, 3), atol=1e-12
    )


@settings(deadline=None, max_examples=50)
@example(mixtures(), st.randoms(use_true_random=False))
def test_the_order_in_which_tasks_are_listed_does_not_matter(
    mixture: Mixture, random: object
) -> None:
    order = list(range(mixture.num_tasks))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = Mixture(mixture.frequencies[order], mixture.spectra[order])
    assert (critical_widths(shuffled) == critical_widths(mixture)[order]).all()
    np.testing.assert_allclose(retained_signal(shuffled, 4), retained_signal(mixture, 4)[order])


@settings(deadline=None, max_examples=50)
@example(mixtures(), st.floats(1.01, 50.0))
def test_upsampling_a_task_never_raises_its_own_critical_width(mixture: Mixture, by: float) -> None:
    more = mixture.frequencies.copy()
    more[-1] *= by
    upsampled = Mixture(more / more.sum(), mixture.spectra)
    before, after = critical_widths(mixture), critical_widths(upsampled)
    assert (after[-1] <= before[-1]).all()
    assert (after[:-1] >= before[:-1]).all()  # and never lowers another's


@settings(deadline=None, max_examples=50)
@example(mixtures())
def test_nuisance_inputs_do_not_change_what_is_learned(mixture: Mixture) -> None:
    padded = Mixture(mixture.frequencies, mixture.spectra, mixture.num_features + 7)
    assert (ranks(padded) == ranks(mixture)).all()


@settings(deadline=None, max_examples=50)
@example(mixtures(), st.floats(0.05, 1.0))
def test_the_width_for_a_share_is_the_least_that_keeps_it(mixture: Mixture, share: float) -> None:
    widths = width_for_share(mixture, share)
    for task, width in enumerate(widths):
        assert retained_signal(mixture, int(width))[task] >= share - 1e-9
        assert retained_signal(mixture, int(width) - 1)[task] < share


@settings(deadline=None, max_examples=50)
@example(mixtures())
def test_a_features_critical_width_is_its_rank_and_features_of_a_task_come_in_order(
    mixture: Mixture,
) -> None:
    widths = critical_widths(mixture)
    assert (widths == ranks(mixture)).all()
    assert (np.diff(widths, axis=1) > 0).all()
