"""Retained shares and half-lives of courses that are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from refusals import refuses
from scipy.stats import t

from eval.records import RecordWriter, read_records
from eval.retention.retained import (
    bursts,
    half_life,
    half_life_text,
    half_lives,
    loss_metric,
    retention,
)
from eval.statistics import share

LAGS = (0, 1, 2, 5, 10, 20, 40)


def course(
    kept: Callable[[float], float],
    *,
    gain: float = 0.5,
    before: float = 2.0,
    seed: int = 0,
    run: str = "n50",
    burst: int = 12,
    instances: int = 100,
    drift: Callable[[float], float] = lambda lag: 0.0,
    split: str = "test",
) -> Iterator[dict]:
    """The records of one burst: L(lag) = before + drift(lag) - gain * kept(lag)."""
    shared = {
        **{"run": run, "rung": "w16", "params": 1000, "seed": seed, "learning_rate": 0.003},
        **{"plan_hash": run, "protocol": "single", "tokens": 1, "task": "cmp"},
        **{"family": "comparison", "variant": f"burst every 50 ({run})", "rate_per_step": 2.0},
        **{"exposures_per_example": 1.0, "split": split, "subset": "all", "burst": burst},
        **{"burst_step": 50 * burst, "instances": instances},
    }
    start = 50 * burst
    yield shared | {"step": start, "metric": "label_loss_before", "value": before}
    for lag in LAGS:
        value = before + drift(lag) - gain * kept(lag)
        when = {"step": start + 1 + lag, "lag": lag}
        yield shared | when | {"metric": "label_loss_lag", "value": value}


def read(folder: Path, *courses: Iterator[dict]) -> pd.DataFrame:
    with RecordWriter(folder / "records.jsonl") as writer:
        for rows in courses:
            writer.write(rows)
    return read_records(folder)


def shares(table: pd.DataFrame, kind: str = "retained") -> dict[int, float]:
    return table[table.kind == kind].set_index("lag").value.to_dict()


# -- half-life -------------------------------------------------------------------------------------


@pytest.mark.parametrize("true", [3.0, 12.0, 30.0])
def test_exponential_decay_has_its_half_life(true: float) -> None:
    lags = [0, *np.unique(np.geomspace(1, 100, 60).round(2))]
    assert half_life(lags, [2 ** (-lag / true) for lag in lags]) == pytest.approx(true, rel=0.03)
    # At a measured lag interpolation adds nothing.
    assert half_life([0, true, 4 * true], [1.0, 0.5, 0.06]) == pytest.approx(true)


def test_interpolation_is_on_log_lag() -> None:
    assert half_life([0, 2, 8], [1.0, 0.7, 0.3]) == pytest.approx(4)
    assert half_life([0, 4], [1.0, 0.0]) == pytest.approx(2)  # from lag 0 on it is linear
    assert half_life([8, 0, 2], [0.3, 1.0, 0.7]) == pytest.approx(4)  # whatever the order


def test_what_does_not_decay_has_a_half_life_beyond_the_last_lag() -> None:
    assert half_life([0, 1, 20], [1.0, 1.1, 0.9]) == math.inf
    assert half_life_text(math.inf, max_lag=20) == "> 20"


def test_an_undefined_share_has_an_undefined_half_life_not_zero() -> None:
    assert math.isnan(half_life([0, 1, 20], [math.nan] * 3))
    assert math.isnan(half_life([1, 20], [0.9, 0.2]))  # nobody knows when it fell without lag 0
    assert math.isnan(half_life([], []))
    assert half_life_text(math.nan, max_lag=20) == "undefined"


def test_a_gain_read_later_counts_its_half_life_from_the_burst_too() -> None:
    assert half_life([10, 20, 80], [1.0, 0.7, 0.3], gain_lag=10) == pytest.approx(40)
    assert math.isnan(half_life([20, 80], [0.7, 0.3], gain_lag=10))


# -- shares ----------------------------------------------------------------------------------------


def test_fiellers_interval_covers_the_true_ratio_in_95_of_100_draws() -> None:
    rng = np.random.default_rng(0)
    hits, defined = 0, 0
    for _ in range(3000):
        whole = rng.normal(1.0, 0.15, size=4)
        part = 0.6 * whole + rng.normal(0.0, 0.1, size=4)
        found = share(part.tolist(), whole.tolist())
        if not math.isnan(found.low):
            defined += 1
            hits += found.low <= 0.6 <= found.high
    assert defined > 2900
    assert hits / defined == pytest.approx(0.95, abs=0.02)


def test_the_whole_of_a_gain_is_kept_with_certainty() -> None:
    gains = [0.5, 0.7, 0.4]
    assert vars(share(gains, gains)) == pytest.approx({"value": 1.0, "low": 1.0, "high": 1.0})


def test_a_share_is_undefined_exactly_where_the_gains_interval_holds_0() -> None:
    spread = np.array([-1.0, 0.0, 1.0])
    half = t.ppf(0.975, 2) * spread.std(ddof=1) / np.sqrt(3)
    part = [0.2, 0.1, 0.3]
    assert math.isnan(share(part, (spread + half * 0.99).tolist()).value)
    assert share(part, (spread + half * 1.01).tolist()).value > 0
    # A burst that raises the loss teaches nothing that could be kept.
    assert math.isnan(share([-0.1] * 3, [-0.5, -0.51, -0.49]).value)
    assert math.isnan(share([0.1], [-0.5]).value)


def test_one_seed_has_a_share_without_bounds() -> None:
    found = share([0.3], [0.6])
    assert (found.value, math.isnan(found.low), math.isnan(found.high)) == (0.5, True, True)


# -- from records ----------------------------------------------------------------------------------


def test_exponential_decay_is_found_in_the_records(tmp_path: Path) -> None:
    gains = {1: 0.4, 2: 0.5, 3: 0.6}
    frame = read(
        tmp_path,
        *(course(lambda lag: 2 ** (-lag / 10), gain=g, seed=s) for s, g in gains.items()),
    )
    table = retention(frame)
    assert shares(table) == pytest.approx({lag: 2 ** (-lag / 10) for lag in LAGS})
    assert set(table.kind) == {"retained"}
    assert not table.controlled.any()
    assert (table.low <= table.value + 1e-12).all()
    assert (table.value <= table.high + 1e-12).all()
    life = half_lives(table).iloc[0]
    assert (life.half_life, life.max_lag, life.text) == (pytest.approx(10), 40, "10")
    assert life.low <= 10 + 1e-9 <= life.high + 2e-9


def test_no_decay_is_longer_than_the_last_lag(tmp_path: Path) -> None:
    frame = read(tmp_path, *(course(lambda lag: 1.0, gain=0.4 + s / 10, seed=s) for s in (1, 2, 3)))
    table = retention(frame)
    assert shares(table) == pytest.approx(dict.fromkeys(LAGS, 1.0))
    assert list(half_lives(table).text) == ["> 40"]


def test_a_gain_inside_its_seed_spread_leaves_all_undefined(tmp_path: Path) -> None:
    def half_kept(lag: float) -> float:
        return 0.5 if lag else 1.0

    gains = {1: 0.3, 2: -0.2, 3: 0.1}
    frame = read(tmp_path, *(course(half_kept, gain=g, seed=s) for s, g in gains.items()))
    table = retention(frame)
    assert table.value.isna().all()
    assert table.gain.tolist() == pytest.approx([0.2 / 3] * len(LAGS))  # the gain itself is told
    assert ((table.gain_low < 0) & (table.gain_high > 0)).all()
    assert list(half_lives(table).text) == ["undefined"]


def test_drift_is_taken_for_retention_until_the_control_is_subtracted(tmp_path: Path) -> None:
    def decay(lag: float) -> float:
        return 2 ** (-lag / 5)

    def drift(lag: float) -> float:  # the loss falls anyway, burst or no burst
        return -0.02 * (lag + 1)

    runs = []
    for seed, gain in {1: 0.45, 2: 0.5, 3: 0.55}.items():
        shared = {"seed": seed, "before": 2 + seed / 7, "drift": drift}
        runs.append(course(decay, gain=gain, **shared))
        runs.append(course(lambda lag: 0.0, **shared, run="n50_control", instances=0))
    table = retention(read(tmp_path, *runs))
    assert table.controlled.all()
    assert set(table.variant) == {"burst every 50 (n50)"}  # a control is no cell of its own
    assert shares(table, "net") == pytest.approx({lag: decay(lag) for lag in LAGS})
    # gain_0 = .5 + .02, so that what the run without the burst seems to keep grows with the lag.
    expected = {lag: 0.02 * (lag + 1) / 0.52 for lag in LAGS}
    assert shares(table, "control") == pytest.approx(expected)
    raw = {lag: (0.5 * decay(lag) + 0.02 * (lag + 1)) / 0.52 for lag in LAGS}
    assert shares(table, "retained") == pytest.approx(raw)
    lives = half_lives(table).set_index("kind").half_life
    assert lives["net"] == pytest.approx(5)
    assert lives["retained"] == math.inf


def test_momentum_is_told_from_memory_by_a_later_gain(tmp_path: Path) -> None:
    def delivered(lag: float) -> float:  # Adam's first moment, then kept for good
        return 1 - 0.9 ** (lag + 1)

    runs = [course(delivered, gain=0.4 + seed / 10, seed=seed) for seed in (1, 2, 3)]
    frame = read(tmp_path, *runs)
    assert shares(retention(frame))[20] == pytest.approx(delivered(20) / 0.1)  # 8.9 times gain_0
    later = retention(frame, gain_lag=20)
    assert shares(later) == pytest.approx({20: 1.0, 40: delivered(40) / delivered(20)})
    assert later.gain.tolist() == pytest.approx([0.6 * delivered(20)] * 2)
    assert list(half_lives(later).text) == ["> 40"]


def test_the_effect_in_nats_stands_beside_the_share(tmp_path: Path) -> None:
    runs = [course(lambda lag: 1.0, gain=g, seed=s) for s, g in {1: 0.4, 2: 0.5, 3: 0.6}.items()]
    row = retention(read(tmp_path, *runs)).iloc[0]
    half = t.ppf(0.975, 2) * 0.1 / np.sqrt(3)
    assert (row.effect, row.effect_low, row.effect_high) == pytest.approx(
        (0.5, 0.5 - half, 0.5 + half)
    )


def test_the_bursts_a_control_run_does_have_are_no_cell_of_their_own(tmp_path: Path) -> None:
    runs = [course(lambda lag: 1.0)]
    runs.append(course(lambda lag: 0.0, run="n50_control", instances=0))
    runs.append(course(lambda lag: 1.0, run="n50_control", burst=11))
    assert set(bursts(read(tmp_path, *runs)).run) == {"n50"}


def test_a_control_belongs_to_the_run_with_its_loss_before_the_burst(tmp_path: Path) -> None:
    one = course(lambda lag: 1.0, before=2.0)
    other = course(lambda lag: 1.0, before=2.1, run="n10")  # a burst at the same step
    control = course(lambda lag: 0.0, before=2.0, run="n50_control", instances=0)
    table = bursts(read(tmp_path, one, other, control))
    paired = table[table.value_control.notna()]
    assert set(paired.run) == {"n50"}
    assert set(table.run) == {"n50", "n10"}
    assert paired.after_control.tolist() == [2.0] * len(LAGS)


def test_a_control_of_no_run_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = course(lambda lag: 0.0, before=1.5, run="n50_control", instances=0)
    table = retention(read(tmp_path, course(lambda lag: 1.0), stranger))
    assert not table.controlled.any()
    assert "belong to no run" in caplog.text


def test_bursts_in_the_second_half_are_read_unless_others_have_controls(tmp_path: Path) -> None:
    early = course(lambda lag: 0.0 if lag else 1.0, burst=1)
    late = course(lambda lag: 1.0, burst=20)
    assert shares(retention(read(tmp_path, early, late)))[40] == 1.0
    control = course(lambda lag: 0.0, burst=1, run="n50_control", instances=0)
    table = retention(read(tmp_path, control))
    assert (shares(table)[40], set(table.n_bursts)) == (0.0, {1})


def test_what_was_generalised_and_what_was_memorised_stay_apart(tmp_path: Path) -> None:
    frame = read(
        tmp_path,
        course(lambda lag: 1.0),
        course(lambda lag: 0.25 if lag else 1.0, split="train"),
    )
    assert shares(retention(frame, split="test"))[40] == 1.0
    assert shares(retention(frame, split="train"))[40] == 0.25


def test_lags_and_bursts_do_not_replace_one_another_and_a_second_measurement_does(
    tmp_path: Path,
) -> None:
    frame = read(tmp_path, course(lambda lag: 1.0), course(lambda lag: 1.0, burst=13))
    assert len(frame) == 2 * (1 + len(LAGS))
    again = read(tmp_path, course(lambda lag: 0.5))
    assert len(again) == len(frame)
    assert set(again[(again.burst == 12) & (again.lag == 40)].value) == {1.75}


def test_records_without_bursts_are_refused_with_the_remedy(tmp_path: Path) -> None:
    row = next(course(lambda lag: 1.0)) | {"metric": "score"}
    with refuses(key="records", rule="label_loss", remedy="`retention: {}`"):
        retention(read(tmp_path, iter([row])))


def test_a_run_without_a_late_burst_has_no_shares_yet(tmp_path: Path) -> None:
    """A report of runs that still train must leave the figure out, not fail."""
    rows = read(tmp_path, course(lambda lag: 1.0, burst=1))
    later = rows.assign(step=rows.step.where(rows.metric != "label_loss_before", 1000))
    with refuses(key="records", rule="no burst after 0.5 of a run's steps", remedy="go on"):
        retention(later)


def test_older_runs_without_the_choice_loss_do_not_fall_out_beside_newer_ones(
    tmp_path: Path,
) -> None:
    def newer(seed: int) -> Iterator[dict]:
        for row in course(lambda lag: 1.0, seed=seed, burst=30):
            yield row
            yield row | {"metric": row["metric"].replace("label", "choice")}

    apart = read(tmp_path / "new", newer(1), newer(2))
    assert loss_metric(apart) == "choice_loss"
    mixed = read(tmp_path / "mixed", newer(1), course(lambda lag: 1.0, seed=2, burst=30))
    assert loss_metric(mixed) == "label_loss"
    assert set(bursts(mixed).seed) == {1, 2}
