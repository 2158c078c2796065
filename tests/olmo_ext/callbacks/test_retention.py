"""The retention callback finds bursts in the plan, measures at their steps and changes nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from refusals import refuses

from data_injection.errors import ConfigError
from data_injection.schedules.exact import Bursts, Even, Trace
from eval.checkpoints.checkpoint import find_checkpoints, load_model, load_plan
from eval.records import read_records
from eval.retention.bursts import find_bursts, geometric_lags, moments
from eval.retention.retained import bursts
from eval.scores.accuracy import answer, score_instances
from olmo_ext.callbacks.retention import Retention
from olmo_ext.config import load_experiment
from olmo_ext.train import train

Write = Callable[..., Path]

EVERY_5 = {"kind": "burst", "rate": 1, "every": 5, "phase": 2}
"""Bursts of 5 instances at steps 2 and 7 of the 12; the task `add` goes on every other step."""


@pytest.fixture
def run(write_experiment: Write, tmp_path: Path) -> Callable[..., Path]:
    """run(folder, *overrides, retention=..., schedule=...) -> the run's folder."""

    def start(
        folder: str,
        *overrides: str,
        retention: dict | None,
        schedule: dict = EVERY_5,
        resume: bool = False,
    ) -> Path:
        def edit(config: dict) -> None:
            config["injection"]["tasks"][0]["schedule"] = schedule
            config["callbacks"]["retention"] = retention

        given = [f"train.save_folder={tmp_path / folder}", *overrides]
        return train(load_experiment(write_experiment(edit), given), resume=resume)

    return start


def of_bursts(folder: Path) -> pd.DataFrame:
    return read_records(folder).query("burst == burst")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "step12-unsharded" / "model.pt", weights_only=True)


# -- bursts from a plan ----------------------------------------------------------------------------


def spans(schedule: object, **options: int) -> list[tuple[int, int, int]]:
    found = find_bursts(schedule, **{"num_steps": 20, "min_gap": 4} | options)  # type: ignore[arg-type]
    return [(burst.start, burst.stop, burst.next) for burst in found]


def test_a_burst_is_a_step_with_instances_after_a_gap() -> None:
    assert spans(Bursts(8, every=6, phase=2)) == [(2, 3, 8), (8, 9, 14), (14, 15, 20)]
    assert spans(Even(Fraction(1, 10))) == [(9, 10, 19), (19, 20, 20)]


def test_steps_closer_than_the_gap_are_one_burst() -> None:
    assert spans(Even(Fraction(8), start=3, stop=9)) == [(3, 9, 20)]
    assert spans(Trace([0, 0, 2, 3, 8, 14])) == [(0, 4, 8), (8, 9, 14), (14, 15, 20)]
    assert spans(Trace([0, 0, 2, 3, 8, 14]), min_gap=5) == [(0, 9, 14), (14, 15, 20)]


def test_what_never_stops_is_one_burst_without_a_gap() -> None:
    assert spans(Even(Fraction(2))) == [(0, 20, 20)]
    assert spans(Even(Fraction(1, 4))) == [(3, 20, 20)]  # three empty steps between two
    assert spans(Trace([])) == []


def test_a_burst_knows_its_instances() -> None:
    found = find_bursts(Bursts(8, every=6), num_steps=20, min_gap=4)
    assert [(b.number, b.first, b.count) for b in found] == [
        (1, 0, 8),
        (2, 8, 8),
        (3, 16, 8),
        (4, 24, 8),
    ]


def test_a_burst_left_out_stands_where_the_other_run_has_it() -> None:
    full = find_bursts(Bursts(8, every=6), num_steps=20, min_gap=4)
    cut = Bursts(8, every=6, stop=12)
    control = find_bursts(cut, num_steps=17, min_gap=4, left_out=[12])
    assert [b.injected for b in control] == [True, True, False]
    one, other = full[2], control[2]
    assert (one.number, one.start, one.stop, one.first, one.count) == (
        *(other.number, other.start, other.stop, other.first, other.count),
    )
    assert other.next == 17
    assert cut.before(20) == cut.before(12) == 16


@pytest.mark.parametrize("step", [-1, 6, 20])
def test_a_step_that_leaves_no_burst_out_is_refused(step: int) -> None:
    with refuses(key="callbacks.retention.left_out", value=step, rule="places of bursts"):
        find_bursts(Bursts(8, every=6), num_steps=20, min_gap=4, left_out=[step])


def test_lags_end_where_the_next_burst_begins() -> None:
    burst = find_bursts(Bursts(8, every=6), num_steps=20, min_gap=4)[0]
    assert [(m.step, m.lag) for m in moments(burst, lags=(1, 2, 5, 6))] == [
        *((0, None), (1, 0), (2, 1), (3, 2), (6, 5)),
    ]
    assert geometric_lags(24) == [1, 2, 5, 10, 20, 24]
    assert (geometric_lags(1), geometric_lags(0), geometric_lags(10)) == ([1], [], [1, 2, 5, 10])


# -- in a run --------------------------------------------------------------------------------------


def test_it_measures_right_before_right_after_and_at_the_lags(run: Callable[..., Path]) -> None:
    rows = of_bursts(run("a", retention={"lags": [1, 4]}))
    assert set(rows.task) == {"cmp"}  # `add` comes every other step: no bursts
    loss = rows[rows.metric.str.startswith("label_loss")]
    for split, subset in (("test", "all"), ("train", "burst")):
        chosen = loss[(loss.split == split) & (loss.subset == subset)].sort_values(
            ["burst", "step"]
        )
        when = [(r.burst, r.step, r.metric, r.lag) for r in chosen.itertuples()]
        assert [w[:3] for w in when] == [
            *((1, 2, "label_loss_before"), (1, 3, "label_loss_lag"), (1, 4, "label_loss_lag")),
            *((1, 7, "label_loss_lag"), (2, 7, "label_loss_before"), (2, 8, "label_loss_lag")),
            *((2, 9, "label_loss_lag"), (2, 12, "label_loss_lag")),
        ]
        assert [w[3] for w in when if w[3] == w[3]] == [0, 1, 4, 0, 1, 4]
    assert set(rows.burst_step) == {2, 7}
    assert set(rows.instances) == {5}
    # The step before a burst is also the last of the gap before it.
    seven = loss[(loss.step == 7) & (loss.split == "test")]
    assert seven.value.nunique() == 1


def test_what_it_measures_is_the_checkpoints_loss_on_the_bursts_own_instances(
    run: Callable[..., Path],
) -> None:
    folder = run("a", "train.save_interval_unsharded=1", retention={"num_test": 7})
    rows, plan = of_bursts(folder), load_plan(folder)
    at = plan.at(7)
    own = np.sort(at.examples[at.tasks == 0])
    for step, lag in ((7, None), (8, 0), (10, 2)):
        path = next(c.path for c in find_checkpoints(folder) if c.step == step)
        model = load_model(path)
        answers = answer(
            lambda ids, model=model: model(ids, last_logits_only=True).logits[:, -1],
            plan.tasks[0],
            own,
        )
        scores = score_instances(answers, plan.tasks[0], own)
        expected = {row["metric"]: row["value"] for row in scores}
        name = "before" if lag is None else "lag"
        found = rows[(rows.step == step) & (rows.burst == 2) & (rows.subset == "burst")]
        for metric in ("label_loss", "score"):
            value = found[found.metric == f"{metric}_{name}"]
            assert value.value.tolist() == pytest.approx([expected[metric]], rel=1e-5, nan_ok=True)
    assert set(rows.n) == {5, 7}
    assert set(rows[rows.split == "test"].subset) == {"sampled"}


def test_it_changes_nothing(run: Callable[..., Path]) -> None:
    plain, measured = run("plain", retention=None), run("measured", retention={})
    losses = [
        read_records(folder).query("metric == 'train_loss'").value.tolist()
        for folder in (plain, measured)
    ]
    assert len(losses[0]) == 12
    assert losses[0] == losses[1]
    for name, tensor in weights(plain).items():
        assert torch.equal(tensor, weights(measured)[name]), name


@pytest.mark.parametrize("cut", [7, 9])
def test_a_run_cut_between_a_burst_and_its_lags_says_the_same(
    cut: int, run: Callable[..., Path]
) -> None:
    full = of_bursts(run("full", retention={}))
    run("cut", f"train.stop_at={cut}", f"train.save_interval_unsharded={cut}", retention={})
    resumed = of_bursts(run("cut", retention={}, resume=True))
    key = ["burst", "step", "lag", "metric", "split", "instances", "value"]
    order = key[:5]
    one, other = (frame[key].sort_values(order).reset_index(drop=True) for frame in (full, resumed))
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_a_burst_at_the_first_step_is_measured_on_the_untrained_model(
    run: Callable[..., Path],
) -> None:
    schedule = {"kind": "burst", "rate": 1, "every": 6}
    rows = of_bursts(run("a", retention={}, schedule=schedule))
    assert set(rows[rows.metric == "label_loss_before"].step) == {0, 6}


def test_a_window_is_one_long_burst(run: Callable[..., Path]) -> None:
    schedule = {"kind": "window", "rate": 2, "start": 1, "stop": 5}
    rows = of_bursts(run("a", retention={}, schedule=schedule))
    loss = rows[(rows.metric == "label_loss_lag") & (rows.split == "test")]
    assert dict(zip(loss.step, loss.lag, strict=True)) == {5: 0, 6: 1, 7: 2, 10: 5, 12: 7}
    assert set(rows.instances) == {8}


def test_every_third_burst_can_do_and_the_last_is_measured_anyway(
    run: Callable[..., Path],
) -> None:
    schedule = {"kind": "trace", "steps": [0, 2, 4, 6, 8, 10]}
    rows = of_bursts(run("a", retention={"every": 3, "min_gap": 1}, schedule=schedule))
    assert set(rows.burst) == {1, 4, 6}


def test_the_control_is_the_same_run_until_the_burst_it_leaves_out(
    run: Callable[..., Path],
) -> None:
    burst = run("burst", "train.run_name=burst", retention={})
    control = run(
        "control",
        "train.run_name=control",
        retention={"left_out": [7], "tasks": ["cmp"]},
        schedule=EVERY_5 | {"stop": 7},
    )
    frame = pd.concat([read_records(burst), read_records(control)], ignore_index=True)
    table = bursts(frame)
    assert set(table.run) == {"burst"}
    for split in ("test", "train"):  # on the instances that the burst would have had
        pair = table[(table.run == "burst") & (table.burst_step == 7) & (table.split == split)]
        assert pair.value_control.notna().all()
        at_7 = frame[(frame.step == 7) & (frame.metric == "label_loss_before")]
        before = at_7[at_7.split == split]
        assert sorted(before.instances) == [0, 5]
        assert before.value.nunique() == 1
        assert (pair.value != pair.value_control).all()
    # Of the two bursts of the full run only the one left out has a control.
    assert table[table.burst_step == 2].value_control.isna().all()


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lags", [[2, 1], [1, 1], [0, 1], [-3]])
def test_lags_that_do_not_rise_from_1_are_refused(lags: list[int]) -> None:
    with pytest.raises(ConfigError) as error:
        Retention(lags=lags)
    assert (error.value.key, error.value.value) == ("callbacks.retention.lags", lags)


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("min_gap", 0, 1), ("every", 0, 1), ("num_test", -1, 0), ("batch_rows", -1, 0)],
)
def test_a_number_too_small_is_refused(name: str, value: int, least: int) -> None:
    with refuses(key=f"callbacks.retention.{name}", value=value, rule=f"at least {least}"):
        Retention(**{name: value})


@pytest.mark.parametrize(
    ("retention", "key", "value", "rule"),
    [
        ({"tasks": ["sub"]}, "callbacks.retention.tasks", ["sub"], "['cmp', 'add']"),
        ({"lags": [1, 5]}, "callbacks.retention.lags", 5, "at most 4, the longest gap"),
        (
            {"left_out": [2], "tasks": ["cmp"]},
            "callbacks.retention.left_out",
            2,
            "places of bursts",
        ),
    ],
)
def test_what_the_plan_cannot_serve_is_refused_before_anything_is_written(
    retention: dict, key: str, value: Any, rule: str, run: Callable[..., Path], tmp_path: Path
) -> None:
    with refuses(key=key, value=value, rule=rule):
        run("a", retention=retention)
    assert not (tmp_path / "a").exists()


def test_a_run_without_bursts_is_warned_of(
    run: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        folder = run("a", retention={}, schedule={"rate": 2})
    assert "callbacks.retention measures nothing" in caplog.text
    lines = (folder / "records.jsonl").read_text().splitlines()
    assert not any("burst" in json.loads(line) for line in lines)
