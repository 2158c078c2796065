"""A planted advantage is found, none is found where there is none, and margins are the theory's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.advice.ordering import compare, utility_margins
from theory.mixture import given as given_mixture
from theory.utility import width_for_share

RUNS, TASKS = 12, 4
CLUSTER = np.repeat(np.arange(RUNS), TASKS)


def draw(seed: int, *, of_theory: float, of_baseline: float) -> tuple[np.ndarray, ...]:
    """A hidden quantity, two noisy views of it, and an outcome of it with an effect of the run."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=RUNS * TASKS) + np.repeat(rng.normal(size=RUNS), TASKS)
    theory = hidden + of_theory * rng.normal(size=hidden.shape)
    baseline = hidden + of_baseline * rng.normal(size=hidden.shape)
    outcome = hidden + 0.3 * rng.normal(size=hidden.shape) + np.repeat(rng.normal(0, 0.3, RUNS), 4)
    return theory, baseline, outcome


def test_a_planted_advantage_is_found() -> None:
    claims = 0
    for seed in range(30):
        found = compare(*draw(seed, of_theory=0.1, of_baseline=1.5), CLUSTER, draws=500)
        assert found.rho_theory > found.rho_baseline
        claims += found.claim
    assert claims >= 28


def test_equally_good_predictors_are_rarely_told_apart() -> None:
    claims = sum(
        compare(*draw(seed, of_theory=0.7, of_baseline=0.7), CLUSTER, draws=300).claim
        for seed in range(200)
    )
    # 2.5% of 200 is 5; the 99th percentile of such a count is 11.
    assert claims <= 11


def test_a_worse_theory_is_never_claimed() -> None:
    for seed in range(10):
        found = compare(*draw(seed, of_theory=2.0, of_baseline=0.1), CLUSTER, draws=300)
        assert found.difference < 0
        assert not found.claim


def test_one_order_twice_is_no_claim() -> None:
    theory, _, outcome = draw(0, of_theory=0.5, of_baseline=0.5)
    found = compare(theory, np.exp(theory), outcome, CLUSTER)
    assert (found.difference, found.null_low, found.null_high) == (0, 0, 0)
    assert found.p_value == 1
    assert not found.claim


def test_rank_correlations_are_scipys_ties_and_all() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    theory, baseline, outcome = (rng.integers(0, 5, 48).astype(float) for _ in range(3))
    found = compare(theory, baseline, outcome, CLUSTER, draws=10)
    assert found.rho_theory == pytest.approx(spearmanr(theory, outcome)[0])
    assert found.rho_baseline == pytest.approx(spearmanr(baseline, outcome)[0])


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3), order=st.randoms())
def test_units_and_the_order_of_rows_change_nothing(seed: int, scale: float, order) -> None:
    theory, baseline, outcome = draw(seed, of_theory=0.5, of_baseline=1.0)
    places = list(range(len(theory)))
    order.shuffle(places)
    first = compare(theory, baseline, outcome, CLUSTER, draws=200)
    second = compare(
        (theory * scale + 1)[places], np.tanh(baseline / 9)[places], outcome[places],
        CLUSTER[places], draws=200,
    )  # fmt: skip
    assert second.difference == pytest.approx(first.difference)
    assert second.null_high == pytest.approx(first.null_high)


@pytest.mark.parametrize("exponent", [1.2, 1.46, 2.0])
def test_margins_are_those_of_the_enumerated_mixture(exponent: float) -> None:
    """The closed form against the ranking of every feature, the host's tail cut off."""
    shares, bits, host_features = (0.02, 0.01, 0.005), (3, 7, 2), 200_000
    tail = np.arange(1, host_features + 1) ** -exponent
    from scipy.special import zeta

    spectra = [[1 / b] * b for b in bits] + [list(tail / zeta(exponent))]
    mixture = given_mixture([*shares, 1 - sum(shares)], spectra)
    widths = width_for_share(mixture, 0.5)[:3]
    margins = utility_margins(width=40, shares=shares, bits=bits, host_exponent=exponent)
    assert np.exp(math.log(40) - margins) == pytest.approx(widths)


@settings(deadline=None, max_examples=25)
@given(
    share=st.floats(1e-7, 0.2), bits=st.integers(1, 500), times=st.floats(1.01, 3),
    width=st.floats(8, 4096),
)  # fmt: skip
def test_margins_rise_with_width_and_frequency_and_fall_with_bits(share, bits, times, width):
    def margin(width: float, share: float, bits: float) -> float:
        return utility_margins(width=width, shares=(share, 0.01), bits=(bits, 50))[0]

    here = margin(width, share, bits)
    assert margin(width * times, share, bits) > here
    assert margin(width, share * times, bits) >= here
    assert margin(width, share, bits + 10) < here


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shares": (0.6, 0.6)}, "sum of 1 or less"),
        ({"shares": (0.0, 0.1)}, "above 0"),
        ({"bits": (0.5, 3)}, "at least 1"),
        ({"bits": (1, math.nan)}, "at least 1"),
        ({"bits": (1, math.inf)}, "at least 1"),
        ({"bits": (3,)}, "for each share"),
        ({"width": 0}, "width must be above 0"),
    ],
)
def test_margins_of_what_is_no_run_are_refused(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        utility_margins(**({"width": 16, "shares": (0.1, 0.1), "bits": (3, 3)} | change))


def test_what_has_no_order_is_refused() -> None:
    theory, baseline, outcome = draw(0, of_theory=1, of_baseline=1)
    with pytest.raises(ValueError, match="a constant orders nothing"):
        compare(theory, baseline, np.ones(48), CLUSTER)
    with pytest.raises(ValueError, match="two runs"):
        compare(theory, baseline, outcome, np.zeros(48))
    with pytest.raises(ValueError, match="baseline must be numbers"):
        compare(theory, baseline * np.nan, outcome, CLUSTER)
