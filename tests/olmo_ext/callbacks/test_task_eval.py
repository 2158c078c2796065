"""When the task_eval callback measures, and what it says of exposures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import refuses

from eval.checkpoints.checkpoint import load_plan
from eval.records import read_records
from olmo_ext.callbacks.base import due
from olmo_ext.callbacks.task_eval import TaskEval
from olmo_ext.config import load_experiment
from olmo_ext.train import train

Write = Callable[..., Path]


def run(write_experiment: Write, *overrides: str) -> Path:
    return train(load_experiment(write_experiment(), list(overrides)))


def test_exposures_count_the_instances_seen_by_each_step(write_experiment: Write) -> None:
    folder = run(write_experiment, "train.max_duration=13")
    rows = read_records(folder).query("task == 'add'")
    exposures = {step: set(group) for step, group in rows.groupby("step").exposures_per_example}
    # Rate 1/2 of 50 train examples: an instance enters with every second step.
    assert exposures == {step: {(step // 2) / 50} for step in range(14)}
    assert {step: exposures[step] for step in (11, 12, 13)} == {
        11: {5 / 50},
        12: {6 / 50},
        13: {6 / 50},
    }
    plan = load_plan(folder)
    index = plan.task_index("add")
    placed = [int((plan.at(step).tasks == index).sum()) for step in range(13)]
    for step in range(14):
        assert exposures[step] == {sum(placed[:step]) / 50}, step


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["train.max_duration=13"], [0, 5, 10, 13]),
        (["train.max_duration=13", "train.stop_at=7"], [0, 5, 7]),
        (["train.max_duration=10", "callbacks.task_eval.at_start=false"], [5, 10]),
    ],
)
def test_the_last_step_is_evaluated_whatever_the_interval(
    overrides: list[str], steps: list[int], write_experiment: Write
) -> None:
    rows = read_records(run(write_experiment, "callbacks.task_eval.every=5", *overrides))
    for task in ("cmp", "add"):
        for split in ("train", "test"):
            of_task = rows[(rows.task == task) & (rows.split == split)]
            assert sorted(set(of_task.step)) == steps
    losses = rows[rows.metric == "train_loss"]
    assert sorted(losses.step) == [step for step in steps if step > 0]
    assert losses.value.notna().all()


def test_due_is_every_interval_and_the_last_step_once() -> None:
    assert [step for step in range(1, 14) if due(step, every=5, last_step=13)] == [5, 10, 13]
    assert [step for step in range(1, 11) if due(step, every=5, last_step=10)] == [5, 10]


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("every", 0, "at least 1"),
        ("splits", ["dev"], "of train and test"),
        ("batch_rows", -1, "at least 0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_at_construction(
    name: str, value: Any, rule: str
) -> None:
    with refuses(key=f"callbacks.task_eval.{name}", value=value, rule=rule):
        TaskEval(**{name: value})
    assert TaskEval(batch_rows=0).batch_rows == 0
