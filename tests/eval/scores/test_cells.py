"""Cells and learned counts, against tables worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from refusals import refuses

from eval.scores.cells import cells
from eval.scores.rows import setting, task_rows
from eval.scores.staircase import learned_per_rung


def row(value, *, rung="w16", seed=0, rate=1.0, step=100, metric="score", **change):
    protocol = change.get("protocol", "mixture")
    return {
        "run": f"{rung}-{protocol}-s{seed}",
        "rung": rung,
        "params": {"w16": 16_000, "w32": 32_000, "w64": 64_000}[rung],
        "seed": seed,
        "plan_hash": "abc",
        "protocol": protocol,
        "step": step,
        "tokens": step * 2048,
        "task": "comparison_0",
        "family": "comparison",
        "rate_per_step": rate,
        "exposures_per_example": rate * step / 5000,
        "split": "test",
        "metric": metric,
        "value": value,
    } | change


def table_of(*rows, **options):
    return cells(pd.DataFrame(rows), **options)


def only(table):
    assert len(table) == 1
    return table.iloc[0]


def test_a_cell_is_the_mean_over_seeds_with_students_interval():
    cell = only(table_of(row(0.6, seed=0), row(0.7, seed=1), row(0.8, seed=2)))
    half = 4.302653 * 0.1 / np.sqrt(3)
    assert (cell.n_seeds, cell.interval) == (3, "seeds")
    np.testing.assert_allclose(
        [cell.value, cell.low, cell.high], [0.7, 0.7 - half, 0.7 + half], 1e-5
    )


def test_one_seed_carries_the_interval_over_items_and_is_provisional():
    cell = only(table_of(row(0.6, low=0.55, high=0.65, n=500)))
    assert (cell.low, cell.high, cell.interval, cell.n_items) == (0.55, 0.65, "items", 500)
    assert cell.learned
    assert cell.provisional


def test_one_seed_without_recorded_bounds_says_it_has_none():
    assert only(table_of(row(0.6))).interval == "none"


def test_three_seeds_with_a_low_bound_under_half_are_not_learned():
    cell = only(table_of(*(row(v, seed=s) for s, v in enumerate((0.45, 0.6, 0.9)))))
    assert cell.value > 0.5 > cell.low
    assert not cell.learned
    assert not cell.provisional


def test_three_close_seeds_above_half_are_learned():
    cell = only(table_of(*(row(v, seed=s) for s, v in enumerate((0.9, 0.91, 0.92)))))
    assert cell.learned
    assert not cell.provisional


def test_two_seeds_above_half_are_learned_provisionally():
    cell = only(table_of(row(0.51, seed=0), row(0.9, seed=1)))
    assert cell.low < 0.5
    assert cell.learned
    assert cell.provisional


def test_learned_is_read_from_the_test_score_whatever_the_metric():
    rows = [row(0.2), row(0.99, metric="accuracy"), row(0.01, metric="label_loss", split="train")]
    cell = only(table_of(*rows, metric="accuracy"))
    assert (cell.value, cell.score, cell.train_label_loss) == (0.99, 0.2, 0.01)
    assert not cell.learned


def test_a_mixture_and_a_single_task_run_are_never_one_cell():
    table = table_of(row(0.2, protocol="single"), row(0.8, protocol="mixture"))
    assert dict(zip(table.protocol, table.value, strict=True)) == {"single": 0.2, "mixture": 0.8}
    assert len(learned_per_rung(table)) == 2


def test_families_are_never_one_cell():
    table = table_of(row(0.2), row(0.8, family="modular_addition", task="add"))
    assert list(table.family) == ["comparison", "modular_addition"]


def test_like_tasks_of_one_seed_are_one_draw_not_several_seeds():
    rows = [row(v, task=f"comparison_{i}") for i, v in enumerate((0.4, 0.8))]
    cell = only(table_of(*rows))
    assert (cell.value, cell.n_seeds, cell.n_tasks) == (pytest.approx(0.6), 1, 2)


def test_runs_of_one_seed_are_averaged_before_the_seeds_are():
    rows = [row(0.2, run="a"), row(0.4, run="b"), row(0.9, seed=1)]
    cell = only(table_of(*rows))
    assert (cell.n_seeds, cell.n_runs, cell.value) == (2, 3, pytest.approx(0.6))


def test_step_losses_mirror_subsets_and_undefined_values_are_ignored():
    loss = row(9.0, metric="train_loss", split="train", task="", family="")
    subset = row(0.9, subset="no_mirror")
    undefined = row(float("nan"), rate=2.0)
    cell = only(table_of(loss, subset, undefined, row(0.3, subset="all")))
    assert cell.value == 0.3


def test_a_missing_subset_means_all():
    rows = [row(0.2), row(0.4, seed=1, subset="all")]
    assert only(table_of(*rows)).n_seeds == 2


def test_cells_are_read_at_the_last_step_common_to_the_runs_of_a_rung():
    rows = [row(0.1, step=100), row(0.2, step=200), row(0.3, step=100, seed=1)]
    rows += [row(0.9, rung="w32", step=300)]
    table = table_of(*rows).set_index("rung")
    assert table.step.to_dict() == {"w16": 100, "w32": 300}
    assert table.value["w16"] == pytest.approx(0.2)


def test_runs_without_a_common_step_are_read_at_their_own_last_one_and_say_so():
    cell = only(table_of(row(0.1, step=100), row(0.3, step=150, seed=1)))
    assert (cell.step, cell.step_max) == (100, 150)


def test_a_step_can_be_asked_for_and_an_unmeasured_one_is_an_error():
    rows = [row(0.1, step=100), row(0.2, step=200), row(0.3, step=100, seed=1)]
    assert only(table_of(*rows, step=200)).value == 0.2
    assert only(table_of(*rows, step="final")).value == 0.25
    with refuses(key="step", value=300, rule="100, 200"):
        table_of(*rows, step=300)


def test_a_frequency_stands_in_all_units():
    cell = only(table_of(row(0.1, rate=4.0, batch_size=32)))
    assert (cell.rate_per_sequence, cell.rate_per_token) == (4 / 32, 4 / 2048)
    assert only(table_of(row(0.1, rate_per_token=1e-5))).rate_per_token == 1e-5


def test_rates_that_differ_by_rounding_over_a_run_share_a_column():
    table = table_of(row(0.2, rate=0.1), row(0.4, rate=0.100004, seed=1))
    assert only(table).n_seeds == 2


def test_an_unmeasured_metric_is_an_error_that_says_what_there_is():
    with refuses(key="records", rule="['test score']", remedy="another metric"):
        table_of(row(0.2), metric="accuracy")


def grid(scores, rates=(4.0, 2.0, 1.0)):
    rows = [
        row(value, rung=rung, rate=rate)
        for rung, line in scores.items()
        for rate, value in zip(rates, line, strict=False)
    ]
    return learned_per_rung(table_of(*rows))[0]


def test_learned_cells_are_counted_per_rung_in_order_of_size():
    counts = grid({"w64": (1, 1, 1), "w16": (1, 0, 0), "w32": (1, 1, 0)})
    assert counts.rungs == ("w16", "w32", "w64")
    assert counts.num_learned == (1, 2, 3)
    assert counts.rises
    assert counts.provisional


def test_a_plateau_that_ends_higher_rises_and_a_flat_line_does_not():
    assert grid({"w16": (1, 0, 0), "w32": (1, 0, 0), "w64": (1, 1, 0)}).rises
    flat = grid({"w16": (1, 0, 0), "w32": (1, 0, 0)})
    assert flat.non_decreasing
    assert not flat.strictly_larger
    assert not flat.rises


def test_a_dip_on_the_way_up_is_not_a_rise():
    counts = grid({"w16": (1, 0, 0), "w32": (0, 0, 0), "w64": (1, 1, 0)})
    assert counts.strictly_larger
    assert not counts.rises


def test_only_rates_measured_at_every_size_are_compared():
    counts = grid({"w16": (1, 0), "w32": (1, 0, 1)})
    assert counts.num_learned == (1, 1)
    assert counts.rates_left_out == (1.0,)
    assert not counts.rises


def test_one_size_gives_no_verdict():
    assert grid({"w16": (1, 1, 0)}).rises is None


def test_tasks_that_differ_in_more_than_rate_are_never_one_cell():
    """The matched-frequency experiment: equal rate, other schedule."""
    even = row(0.9, task="even", variant="")
    burst = row(0.1, task="burst", variant="burst every 10")
    table = cells(pd.DataFrame([even, burst])).set_index("family")
    assert dict(table.value) == {"comparison": 0.9, "comparison, burst every 10": 0.1}
    assert dict(table.learned) == {"comparison": True, "comparison, burst every 10": False}


def test_two_learning_rates_of_one_rung_are_never_one_cell():
    low, high = (row(v, task="a", learning_rate=r) for v, r in ((0.9, 1e-3), (0.1, 1e-2)))
    families = dict(cells(pd.DataFrame([low, high])).set_index("family").value)
    assert families == {
        "comparison, learning rate 0.001": 0.9,
        "comparison, learning rate 0.01": 0.1,
    }


def test_corpora_of_one_rung_stay_apart():
    easy, text = (row(v, task="a", corpus_hash=h * 32) for v, h in ((0.6, "0a"), (-0.4, "f1")))
    families = dict(cells(pd.DataFrame([easy, text])).set_index("family").value)
    assert families == {"comparison, corpus 0a0a0a0a": 0.6, "comparison, corpus f1f1f1f1": -0.4}


def test_learning_rates_and_corpora_that_go_with_the_size_stay_in_one_panel():
    rungs = [
        row(v, rung=name, learning_rate=r, corpus_hash=h)
        for v, name, r, h in ((0.1, "w16", 1e-2, "0a"), (0.9, "w64", 2e-3, "f1"))
    ]
    assert set(cells(pd.DataFrame(rungs)).family) == {"comparison"}


@pytest.mark.parametrize("place", ["layer", "other_task", "lag", "head"])
def test_a_cell_never_averages_over_places_of_measurement(place):
    rows = [row(0.2, **{place: 0}), row(0.8, **{place: 1})]
    with refuses(key="test 'score'", rule=f"several values of {place}", remedy="choose one"):
        table_of(*rows)


@pytest.mark.parametrize(
    ("fields", "timing", "apart"),
    [
        ({"timing": "window", "schedule": "window 0-9", "variant": "window 0-9"}, "window", ""),
        ({"schedule": "burst every 25", "variant": "burst every 25, 40 symbols"}, "burst", "40"),
        ({"variant": "burst every 25 until 600"}, "burst", "burst"),
        ({"schedule": "even", "variant": "window=3"}, "even", "window=3"),
        ({}, "even", ""),
    ],
)
def test_timing_is_a_value_and_older_records_say_it_by_their_schedule(fields, timing, apart):
    rows = task_rows(pd.DataFrame([row(0.5, **fields)]))
    assert rows.timing.tolist() == [timing]
    assert setting(rows)[0].startswith(apart)
    assert bool(setting(rows)[0]) == bool(apart)
