"""Thresholds from planted surfaces: found where there are any, and refused where there are none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.advice.surface import Surface, fit_surface, misplaced
from theory.advice.thresholds import exchange, threshold

SIZES = (1e4, 4e4, 1.6e5)
RATES = (0.5, 1.0, 2.0, 4.0, 8.0)
PER_OCTAVE = 0.6
"""Planted: a doubled size is worth 0.6 doublings of frequency."""


def planted(
    seed: int,
    *,
    sizes: Sequence[float] = SIZES,
    rates: Sequence[float] = RATES,
    gaps: Sequence[float] = (1.0,),
    num_seeds: int = 3,
    slope: float = 3.0,
    of_run: float = 0.0,
    of_gap: float = 0.0,
) -> pd.DataFrame:
    """Cells whose log odds are slope (log2 f/2 + .6 log2 N/4e4 - of_gap log2 gap) + a run's own."""
    rng = np.random.default_rng(seed)
    rows = []
    for size in sizes:
        for model_seed in range(num_seeds):
            for gap in gaps:
                run = rng.normal(0, of_run)
                for rate in rates:
                    octaves = np.log2(rate / 2) + PER_OCTAVE * np.log2(size / 4e4)
                    odds = slope * (octaves - of_gap * np.log2(gap)) + run
                    rows.append((size, rate, gap, f"{size}-{model_seed}-{gap}", model_seed, odds))
    table = pd.DataFrame(rows, columns=["params", "frequency", "gap", "run", "seed", "odds"])
    chance = 1 / (1 + np.exp(-table.odds))
    return table.assign(learned=(rng.random(len(table)) < chance).astype(float), score=chance)


def planted_threshold(size: float) -> float:
    return 2 * (size / 4e4) ** -PER_OCTAVE


def perfect(table: pd.DataFrame) -> pd.DataFrame:
    """The same cells without chance: learned exactly above the line, by the score alone."""
    return table.drop(columns="learned")


def test_a_planted_line_is_found_by_size_and_by_frequency() -> None:
    surface = fit_surface(planted(0, num_seeds=40, slope=2.0))
    for size in (2e4, 4e4, 8e4):
        found = threshold(surface, of="frequency", at={"params": size})
        assert found.status == "inside"
        assert found.low < planted_threshold(size) < found.high
        assert found.value == pytest.approx(planted_threshold(size), rel=0.15)
        back = threshold(surface, of="params", at={"frequency": found.value})
        assert back.value == pytest.approx(size, rel=1e-6), "one line, read both ways"


def test_a_separated_staircase_gives_a_finite_line_between_its_steps() -> None:
    """Maximum likelihood diverges here; the penalty does not."""
    surface = fit_surface(perfect(planted(0, slope=50.0)))
    assert np.isfinite(surface.coefficients).all()
    found = threshold(surface, of="frequency", at={"params": 4e4})
    assert 1 < found.value < 4


@pytest.mark.parametrize(
    ("slope", "of_run", "design"),
    [
        (1.0, 0.0, {}),
        (3.0, 3.0, {}),
        (10.0, 0.0, {}),
        (3.0, 0.0, {"sizes": (1e4, 4e4, 1.6e5, 6.4e5), "rates": (1, 2, 4, 8)}),
        (3.0, 3.0, {"num_seeds": 5, "rates": (0.25, 0.5, 1, 2, 4, 8)}),
    ],
)
def test_intervals_cover_the_planted_threshold(slope: float, of_run: float, design: dict) -> None:
    """At least 88 of 100 draws, over runs with an effect of their own too; a refusal covers."""
    covered, answered = 0, 0
    for seed in range(100):
        surface = fit_surface(planted(1000 + seed, slope=slope, of_run=of_run, **design))
        found = threshold(surface, of="frequency", at={"params": 4e4})
        answered += found.status == "inside"
        covered += found.status != "inside" or found.low <= 2 <= found.high
    # Of those answered, not of all: refusing each time would cover too.
    assert answered >= 50
    assert 1 - (100 - covered) / answered >= 0.88


def test_shuffled_labels_give_no_advice() -> None:
    """The control: 5% of slopes are clear by chance, half of these with the right sign."""
    advised = 0
    for seed in range(100):
        table = planted(seed)
        rng = np.random.default_rng(seed)
        table["learned"] = rng.permutation(table.learned.to_numpy())
        found = threshold(fit_surface(table), of="frequency", at={"params": 4e4})
        advised += found.status == "inside"
        if found.status == "no trend":
            assert "holds 0" in found.reason or "wrong sign" in found.reason
    assert advised <= 8


def test_beyond_the_data_there_is_a_reason_and_no_number() -> None:
    surface = fit_surface(planted(0, num_seeds=10))
    for size in (9e3, 1.7e5):
        found = threshold(surface, of="frequency", at={"params": size})
        assert found.status == "outside"
        assert "was not measured" in found.reason
        assert np.isnan(found.value)
        assert not found.beyond, "an unmeasured size bounds nothing"
    rarest = threshold(surface, of="params", at={"frequency": 0.5})
    assert (rarest.status, rarest.beyond, rarest.edge) == ("outside", "above", 1.6e5)
    assert np.isnan(rarest.value)


@pytest.mark.parametrize("slope", [1.0, 3.0])
@pytest.mark.parametrize(("side", "ratio"), [("above", 7 / 8), ("below", 0.5 / 0.55)])
def test_a_line_inside_the_data_is_seldom_said_to_lie_beyond(
    side: str, ratio: float, slope: float
) -> None:
    """The line just inside an edge: a 95% interval is past it in 2.5% of draws, so in at most 5 of
    100, the 95th percentile of such a count; by the estimate alone it was 17 and more."""
    edge = max(RATES) if side == "above" else min(RATES)
    truth = edge * ratio if side == "above" else edge / ratio
    # In the unit in which the planted line at 40K parameters, 2, is at `truth` of RATES.
    rates = tuple(rate * 2 / truth for rate in RATES)
    beyond, near, held = 0, 0, 0
    for seed in range(100):
        surface = fit_surface(planted(5000 + seed, slope=slope, rates=rates))
        found = threshold(surface, of="frequency", at={"params": 4e4})
        beyond += found.beyond != ""
        near += found.near == side
        held += found.near == side and (found.low <= 2 if side == "above" else found.high >= 2)
        assert not (found.beyond and found.near)
        if found.near:
            assert (found.status, np.isnan(found.value)) == ("outside", True)
            assert found.edge == pytest.approx(edge * 2 / truth)
    assert beyond <= 5
    assert near >= 10, "the estimate is often past the edge, or this tests nothing"
    assert held >= near - 5


def test_a_line_far_beyond_the_data_is_still_bounded() -> None:
    """Two octaves past the largest frequency: more than half of the draws say so."""
    rates = tuple(rate / 16 for rate in RATES)
    found = [
        threshold(fit_surface(planted(seed, rates=rates)), of="frequency", at={"params": 4e4})
        for seed in range(5000, 5050)
    ]
    assert sum(one.beyond == "above" for one in found) > 25


def test_an_estimate_past_the_edge_without_an_interval_is_no_bound() -> None:
    surface = fit_surface(perfect(planted(0, num_seeds=1, rates=(0.1, 0.2, 0.4, 0.8, 1.6))))
    found = threshold(surface, of="frequency", at={"params": 1e4 * 4})
    assert (found.status, found.beyond, found.near) == ("outside", "", "above")
    assert "too few for an interval" in found.reason


@pytest.mark.parametrize(("score", "beyond", "edge"), [(0.0, "above", 8.0), (1.0, "below", 0.5)])
def test_all_or_none_learned_bounds_the_line_and_no_more(
    score: float, beyond: str, edge: float
) -> None:
    table = perfect(planted(0)).assign(score=score)
    found = threshold(fit_surface(table), of="frequency", at={"params": 4e4})
    assert (found.status, found.beyond, found.edge) == ("outside", beyond, edge)
    assert np.isnan(found.value)


def test_a_trend_of_the_wrong_sign_is_no_advice() -> None:
    table = planted(0, num_seeds=10)
    surface = fit_surface(table.assign(learned=1 - table.learned))
    found = threshold(surface, of="frequency", at={"params": 4e4})
    assert found.status == "no trend"
    assert "wrong sign" in found.reason


def test_one_seed_gives_a_provisional_line_without_interval() -> None:
    found = threshold(fit_surface(planted(0, num_seeds=1)), of="frequency", at={"params": 4e4})
    assert found.status == "provisional"
    assert np.isnan(found.low)
    assert "other seeds" in found.reason


def test_a_shorter_gap_is_worth_the_planted_factor_of_frequency() -> None:
    table = planted(3, gaps=(1, 5, 25), num_seeds=8, of_gap=0.4)
    surface = fit_surface(table, covariates=("params", "frequency", "gap"))
    found = exchange(surface, change="gap", start=25, stop=1, into="frequency")
    truth = 25**0.4
    assert found.low < truth < found.high
    assert found.factor == pytest.approx(truth, rel=0.3)
    there = exchange(surface, change="gap", start=1, stop=25, into="frequency")
    assert there.factor == pytest.approx(1 / found.factor)
    into_size = exchange(surface, change="gap", start=25, stop=1, into="params")
    assert into_size.low < truth ** (1 / PER_OCTAVE) < into_size.high
    assert exchange(surface, change="gap", start=50, stop=1, into="params").status == "outside"


def test_a_gap_without_effect_buys_nothing_that_is_said() -> None:
    table = planted(0, gaps=(1, 5, 25), num_seeds=4)
    surface = fit_surface(table, covariates=("params", "frequency", "gap"))
    found = exchange(surface, change="gap", start=25, stop=1, into="frequency")
    assert found.status == "no trend"
    assert np.isnan(found.factor)


def test_cells_on_the_wrong_side_are_counted() -> None:
    table = perfect(planted(0, slope=50.0))
    assert misplaced(fit_surface(table), table).empty
    odd = (table.params == 1.6e5) & (table.frequency == 8.0)
    table.loc[odd, "score"] = 0.0
    wrong = misplaced(fit_surface(table), table)
    assert (1.6e5, 8.0) in set(zip(wrong.params, wrong.frequency, strict=True))


def answers(surface: Surface, unit: float = 1.0) -> list[float]:
    """Thresholds of two sizes in the first unit, and the slopes."""
    found = [threshold(surface, of="frequency", at={"params": size}) for size in (2e4, 1e5)]
    numbers = [x for one in found for x in (one.value / unit, one.low / unit, one.high / unit)]
    return [*numbers, *surface.slope("params"), *surface.slope("frequency")]


@settings(deadline=None, max_examples=15)
@given(unit=st.floats(1e-9, 1e3), seed=st.integers(0, 20))
def test_the_unit_of_frequency_changes_nothing(unit: float, seed: int) -> None:
    table = planted(seed, num_seeds=6, slope=1.5)
    scaled = table.assign(frequency=table.frequency * unit)
    assert answers(fit_surface(scaled), unit) == pytest.approx(
        answers(fit_surface(table)), rel=1e-4, nan_ok=True
    )


@settings(deadline=None, max_examples=15)
@given(order=st.randoms(use_true_random=False), seed=st.integers(0, 20))
def test_the_order_of_rows_and_names_of_runs_change_nothing(order, seed: int) -> None:
    table = planted(seed, num_seeds=6, slope=1.5)
    places = list(range(len(table)))
    order.shuffle(places)
    mixed = table.iloc[places].assign(run=lambda rows: rows.run.map(lambda name: f"x{name}"))
    assert answers(fit_surface(mixed)) == pytest.approx(
        answers(fit_surface(table)), rel=1e-4, nan_ok=True
    )


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 100), response=st.sampled_from(["learned", "score"]))
def test_thresholds_fall_with_size_and_with_frequency(seed: int, response) -> None:
    """Where size has a trend of the right sign, whatever the data."""
    surface = fit_surface(planted(seed, slope=2.0), response=response)
    if min(surface.slope("params")[0], surface.slope("frequency")[0]) <= 0:
        return
    for of, other, points in (("frequency", "params", SIZES), ("params", "frequency", RATES)):
        found = [threshold(surface, of=of, at={other: point}).value for point in points]
        known = [value for value in found if not np.isnan(value)]
        assert known == sorted(known, reverse=True)


def test_a_duplicated_run_does_not_count_as_two() -> None:
    """Cells of one run are one draw: copies of them make no interval narrower."""
    table = planted(5, num_seeds=6, slope=1.5)
    twice = pd.concat([table, table])
    once, copied = fit_surface(table), fit_surface(twice)
    width = [np.subtract(*s.slope("frequency")[:0:-1]) for s in (once, copied)]
    assert width[1] > 0.8 * width[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"params": 1e4}, "one params only"),
        ({"frequency": 2.0}, "one frequency only"),
        ({"frequency": 0.0}, "frequency must be positive"),
        ({"frequency": np.nan}, "frequency must be positive"),
        ({"score": np.nan}, "score must be a number"),
    ],
)
def test_what_is_no_sweep_is_refused(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit_surface(perfect(planted(0)).assign(**change))


def test_confounded_covariates_are_refused() -> None:
    table = planted(0).assign(gap=lambda rows: 8 / rows.frequency)
    with pytest.raises(ValueError, match="cannot be told apart"):
        fit_surface(table, covariates=("params", "frequency", "gap"))


def test_missing_columns_and_unknown_covariates_are_named() -> None:
    with pytest.raises(ValueError, match="lack run"):
        fit_surface(planted(0).drop(columns="run"))
    with pytest.raises(ValueError, match="covariates must be of"):
        fit_surface(planted(0), covariates=("params", "depth"))
    with pytest.raises(ValueError, match="no 'gap'"):
        threshold(fit_surface(planted(0)), of="gap", at={})
    with pytest.raises(ValueError, match="params must be given"):
        threshold(fit_surface(planted(0)), of="frequency", at={})
