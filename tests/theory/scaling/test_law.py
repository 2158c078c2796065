"""The law's closed forms: against known answers, against search, and under a change of units."""

import numpy as np
import pytest
from designs import CHINCHILLA, PAPER, optimal_params
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from theory.scaling.law import FLOPS, Law

EXPONENT = st.floats(0.1, 1.2)
LAWS = st.builds(
    lambda floor, a, alpha, b, beta: Law.of(L0=floor, A=a, alpha=alpha, B=b, beta=beta),
    *(st.floats(0.5, 3.0), st.floats(10.0, 1e4), EXPONENT, st.floats(10.0, 1e4), EXPONENT),
)
SIZE = st.floats(1e6, 1e12)
FACTOR = st.floats(1e-3, 1e3)


def test_a_model_can_make_up_for_a_factor_of_4_05_in_size_at_the_papers_exponents() -> None:
    assert PAPER.reach == pytest.approx((1 + 0.46 / 0.51) ** (1 / 0.46))
    assert pytest.approx(4.05, abs=0.005) == PAPER.reach
    assert 1e9 / PAPER.small_below(1e9) == pytest.approx(PAPER.reach)


def test_the_papers_exponents_imply_46_in_n_and_242_in_compute_and_not_34() -> None:
    assert PAPER.params_exponent == 0.46
    assert PAPER.compute_exponent == pytest.approx(0.2419, abs=1e-4)
    sizes = np.geomspace(1e7, 1e11, 9)
    excess = np.log(PAPER.compute_optimal_loss(sizes) - PAPER.L0)
    assert np.polyfit(np.log(sizes), excess, 1)[0] == pytest.approx(-0.46)
    compute = np.log(FLOPS * sizes * PAPER.optimal_tokens(sizes))
    assert np.polyfit(compute, excess, 1)[0] == pytest.approx(-PAPER.compute_exponent)
    assert np.polyfit(compute, np.log(sizes), 1)[0] == pytest.approx(PAPER.size_exponent)


@settings(deadline=None, max_examples=60)
@given(law=LAWS, size=SIZE)
def test_no_other_size_does_better_with_the_same_compute(law: Law, size: float) -> None:
    tokens = law.optimal_tokens(size)
    work = size * tokens
    best = minimize_scalar(
        lambda log_n: float(law.loss(np.exp(log_n), work / np.exp(log_n))),
        bounds=(np.log(size) - 3, np.log(size) + 3),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert law.compute_optimal_loss(size) == pytest.approx(law.loss(size, tokens), rel=1e-9)
    assert best.fun >= law.compute_optimal_loss(size) * (1 - 1e-9)
    assert optimal_params(law, FLOPS * work) == pytest.approx(size, rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(law=LAWS, size=SIZE, tokens=SIZE)
def test_infinite_data_is_never_worse_than_compute_optimal_or_any_data(
    law: Law, size: float, tokens: float
) -> None:
    assert law.compute_optimal_loss(size) >= law.infinite_data_loss(size) >= law.L0
    assert law.loss(size, tokens) >= law.infinite_data_loss(size)


@settings(deadline=None, max_examples=60)
@given(law=LAWS, large=SIZE, eps=st.lists(st.floats(0, 1), min_size=2, max_size=2), more=FACTOR)
def test_the_threshold_falls_with_eps_and_rises_with_the_large_model(
    law: Law, large: float, eps: list[float], more: float
) -> None:
    low, high = sorted(eps)
    assert law.small_below(large, eps=high) <= law.small_below(large, eps=low) < large
    larger = large * max(more, 1 / more)
    assert law.small_below(larger, eps=low) >= law.small_below(large, eps=low)


@settings(deadline=None, max_examples=60)
@given(law=LAWS, large=SIZE, eps=st.floats(0, 1))
def test_the_threshold_is_where_the_definition_turns(law: Law, large: float, eps: float) -> None:
    edge = law.small_below(large, eps=eps)
    gap = law.infinite_data_loss(edge) - law.compute_optimal_loss(large)
    assert gap == pytest.approx(eps, abs=1e-9)
    below, above = edge / 1.01, edge * 1.01
    assert law.data_gaps(below, large)[1] > eps > law.data_gaps(above, large)[1]


@settings(deadline=None, max_examples=60)
@given(law=LAWS, large=SIZE, share=st.floats(1.05, 0.95 * 4))
def test_the_tokens_that_match_the_large_model_do_and_below_the_threshold_none_are(
    law: Law, large: float, share: float
) -> None:
    small = large / min(share, 0.95 * law.reach)
    if small < large:
        tokens = law.tokens_to_match(small, large)
        if np.isfinite(tokens) and tokens < 1e300:
            assert law.loss(small, tokens) == pytest.approx(law.compute_optimal_loss(large))
    assert law.tokens_to_match(large / (1.05 * law.reach), large) == np.inf


@settings(deadline=None, max_examples=60)
@given(law=LAWS, size=SIZE, tokens=SIZE, n=FACTOR, d=FACTOR)
def test_other_units_change_the_amplitudes_alone_and_as_predicted(
    law: Law, size: float, tokens: float, n: float, d: float
) -> None:
    other = Law(
        law.L0, law.log_A + law.alpha * np.log(n), law.alpha,
        law.log_B + law.beta * np.log(d), law.beta,
    )  # fmt: skip
    assert other.loss(n * size, d * tokens) == pytest.approx(law.loss(size, tokens))
    assert other.small_below(n * size) == pytest.approx(n * law.small_below(size))
    assert other.optimal_tokens(n * size) == pytest.approx(d * law.optimal_tokens(size))
    assert (other.reach, other.compute_exponent) == (law.reach, law.compute_exponent)


def test_many_laws_are_answered_at_once() -> None:
    fields = zip(vars(CHINCHILLA).values(), vars(PAPER).values(), strict=True)
    both = Law(*(np.array(pair) for pair in fields))
    assert both.small_below(1e9) == pytest.approx(
        [CHINCHILLA.small_below(1e9), PAPER.small_below(1e9)]
    )


@pytest.mark.parametrize("eps", [-0.1, float("nan")])
def test_an_eps_below_zero_is_refused(eps: float) -> None:
    with pytest.raises(ValueError, match="eps must be at least 0"):
        PAPER.small_below(1e9, eps=eps)
    with pytest.raises(ValueError, match="beta must be a positive number"):
        Law.of(L0=1, A=1, alpha=1, B=1, beta=eps)
