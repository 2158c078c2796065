"""What a family of one's own lists is trained as it stands, or refused before a run starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from refusals import refuses

from data_injection.config import InjectionConfig, ScheduleConfig, TaskConfig
from data_injection.plan import InjectionPlan, compile_plan
from data_injection.tasks import build
from data_injection.tasks.base import IntArray, Task, all_pairs

VOCAB, EOS = 256, 0


class Own(Task):
    """Sums of two symbols; a test changes the table, or what the family says of it."""

    family = "own"

    @classmethod
    def param_names(cls) -> tuple[str, ...]:
        return ("change",)

    def examples(self) -> IntArray:
        i, j = all_pairs(len(self.symbols))
        rows = self.symbols[np.stack([i, j, (i + j) % len(self.symbols)], axis=1)]
        table: IntArray = TABLES.get(self.params.get("change", ""), lambda rows: rows)(rows)
        return table


class Said(Own):
    """What it says of its table is wrong."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for name, value in SAID[self.params["change"]].items():
            setattr(self, name, value)


def put(rows: IntArray, token: int) -> IntArray:
    rows[5, 0] = token
    return rows


TABLES: dict[str, Any] = {
    "beyond": lambda rows: put(rows, VOCAB),
    "negative": lambda rows: put(rows, -1),
    "eos": lambda rows: put(rows, EOS),
    "lists": lambda rows: rows.tolist(),
    "ragged": lambda rows: [row[: 2 + i % 2] for i, row in enumerate(rows.tolist())],
    "floats": lambda rows: rows.astype(float),
    "flat": lambda rows: rows.ravel(),
    "label alone": lambda rows: rows[:, 2:],
    "unordered": lambda rows: np.column_stack([np.sort(rows[:, :2], axis=1), rows[:, 2]]),
    "once": lambda rows: rows[rows[:, 0] <= rows[:, 1]],
    "unsigned": lambda rows: rows.astype(np.uint16),
}

SAID: dict[str, dict[str, Any]] = {
    "train": {"train": np.array([1, 64])},
    "test": {"test": np.array([-1])},
    "pool": {"_pool": np.array([True, False])},
    "label_tokens": {"label_tokens": np.array([3, VOCAB])},
    "mirror": {"mirror": np.array([0, 1])},
}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.TASKS, "own", Own)
    monkeypatch.setitem(build.TASKS, "said", Said)


def plan_of(change: str = "", family: str = "own", **arguments: Any) -> InjectionPlan:
    schedule = ScheduleConfig(rate=1)
    params = {"change": change} | arguments.pop("params", {})
    task = TaskConfig("t", family, num_symbols=8, params=params, schedule=schedule)
    arguments |= {"batch_size": 4, "seq_len": 16, "epoch_rows": 8}
    config = InjectionConfig(tasks=[task])
    return compile_plan(config, vocab_size=VOCAB, eos_token_id=EOS, **arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [("beyond", "[0, 256), the vocabulary"), ("negative", "[0, 256)"), ("eos", "EOS, 0")],
)
def test_ids_that_no_model_has_or_that_end_an_example_are_refused(change: str, words: str) -> None:
    with refuses(key="injection.tasks[0]: own.tokens", rule=words):
        plan_of(change)


@pytest.mark.parametrize("change", ["lists", "ragged", "floats", "flat", "label alone"])
@pytest.mark.parametrize("dealt", [False, True])
def test_what_is_no_table_of_whole_numbers_is_refused(change: str, dealt: bool) -> None:
    with refuses(key="injection.tasks[t]: own.examples", rule="2-D array of integers"):
        plan_of(change, params={"shuffle_labels": dealt})


def test_a_test_example_that_is_also_injected_is_refused_and_once_listed_it_is_not() -> None:
    with refuses(key="injection.tasks[0]: own.tokens", remedy="once") as caught:
        plan_of("unordered")
    plan = plan_of("unordered", tables={})  # a run that is there is still measured
    task = plan.tasks[0]
    injected = {tuple(row) for row in task.tokens[task.train].tolist()}
    both = [row for row in task.tokens[task.test].tolist() if tuple(row) in injected]
    assert f": {len(both)} of {len(task.test)}" in caught.value.rule
    assert caught.value.value in both
    assert plan_of("once")


@pytest.mark.parametrize("change", SAID)
def test_splits_and_labels_that_are_not_of_the_table_are_refused(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change == "pool":
        monkeypatch.setattr(Said, "pool", property(lambda task: task._pool))
    with refuses(key=f"injection.tasks[0]: said.{change}"):
        plan_of(change, family="said")


def test_any_whole_numbers_make_the_same_plan() -> None:
    plans = [plan_of("", tables=None), plan_of("unsigned")]
    assert plans[0].tasks[0].digest() == plans[1].tasks[0].digest()
