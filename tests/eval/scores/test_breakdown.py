"""The breakdown of models that know a known part: a memory, a symmetry, a habit, everything."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from data_injection.tasks.base import Task
from data_injection.tasks.comparison import Comparison
from data_injection.tasks.group_composition import GroupComposition
from data_injection.tasks.modular_addition import ModularAddition
from eval.scores.accuracy import Answers
from eval.scores.breakdown import breakdown, mirrored_label

LESS, EQUAL, GREATER = LABELS = np.array([7, 29, 3])


def comparison(num: int = 40) -> Comparison:
    return Comparison("cmp", symbols=100 + np.arange(num), labels=LABELS, seed=0)


def addition(p: int = 41) -> ModularAddition:
    return ModularAddition("add", symbols=100 + np.arange(p), labels=np.array([]), seed=0)


def answers(task: Task, choice: np.ndarray) -> Answers:
    right = choice == task.tokens[:, -1]
    loss = np.where(right, 0.25, 2.0)
    return Answers(right, right, loss, loss / 2, choice)


def table(task: Task, choice: np.ndarray) -> dict[tuple[str, str, str], dict]:
    rows = {}
    for row in breakdown(answers(task, choice), task):
        key = row["split"], row["subset"], row["metric"]
        assert key not in rows
        rows[key] = row
    return rows


def in_train(task: Task) -> np.ndarray:
    mask = np.zeros(len(task.tokens), dtype=bool)
    mask[task.train] = True
    return mask


MEMORISED, MIRROR = ("", "all", "memorised_gap"), ("", "all", "mirror_gap")
WITHIN = ("test", "no_mirror", "mirror_consistency")
ACROSS = ("test", "mirror_in_train", "mirror_consistency")


@pytest.mark.parametrize("task", [comparison(), addition()], ids=["cmp", "add"])
def test_a_memory_of_the_train_split_is_a_memorised_gap_without_a_mirror_gap(task: Task) -> None:
    noise = np.random.default_rng(0).choice(task.label_tokens, len(task.tokens))
    rows = table(task, np.where(in_train(task), task.tokens[:, -1], noise))
    chance = 1 / len(task.label_tokens)
    assert rows[MEMORISED]["value"] == pytest.approx(1 - chance, abs=0.06)
    assert rows[MEMORISED]["low"] > 0.5
    assert rows[MIRROR]["low"] < 0 < rows[MIRROR]["high"]
    # The side in train is right, the other a guess; in train both are right.
    assert rows[ACROSS]["value"] == pytest.approx(chance, abs=0.06)
    assert rows["train", "mirror_in_train", "mirror_consistency"]["value"] == 1


@pytest.mark.parametrize("task", [comparison(), addition()], ids=["cmp", "add"])
def test_a_memory_with_the_symmetry_is_a_mirror_gap(task: Task) -> None:
    noise = np.random.default_rng(0).choice(task.label_tokens, len(task.tokens))
    knows = in_train(task) | task.mirror_in_train()
    rows = table(task, np.where(knows, task.tokens[:, -1], noise))
    chance = 1 / len(task.label_tokens)
    assert rows[MIRROR]["value"] == pytest.approx(1 - chance, abs=0.06)
    assert rows[MIRROR]["low"] > 0.5
    assert rows[MEMORISED]["value"] == pytest.approx(1 - chance, abs=0.06)
    assert rows[ACROSS]["value"] == 1


def test_the_symmetry_alone_is_consistency_without_any_gap() -> None:
    """A model that turns its answer with the pair, but knows nothing of the pairs."""
    task = comparison()
    i, j = np.divmod(np.arange(len(task.tokens)), 40)
    coin = np.random.default_rng(0).integers(2, size=(40, 40))
    first = np.where(coin[np.minimum(i, j), np.maximum(i, j)] == 1, LESS, GREATER)
    turned = np.where(first == LESS, GREATER, LESS)
    choice = np.where(i < j, first, np.where(i == j, EQUAL, turned))
    rows = table(task, choice)
    assert rows[WITHIN]["value"] == rows[ACROSS]["value"] == 1
    assert rows[WITHIN]["chance"] == pytest.approx(0.5, abs=0.03)
    for gap in (MEMORISED, MIRROR):
        assert rows[gap]["low"] < 0 < rows[gap]["high"]


def test_a_habit_has_no_gap_and_its_consistency_is_no_more_than_chance() -> None:
    for task, consistency in ((comparison(), 0.0), (addition(), 1.0)):
        rows = table(task, np.full(len(task.tokens), task.label_tokens[0]))
        for gap in (MEMORISED, MIRROR):
            assert rows[gap]["low"] < 0.06
            assert rows[gap]["high"] > -0.06
        for key in (WITHIN, ACROSS):
            assert rows[key]["value"] == rows[key]["chance"] == consistency
        # Right in all of its own label, wrong in all others.
        for label in task.label_tokens:
            share = rows["test", f"label={label}", "label_accuracy"]["value"]
            assert share == float(label == task.label_tokens[0])


@pytest.mark.parametrize("task", [comparison(), addition()], ids=["cmp", "add"])
def test_knowing_all_has_neither_gap_and_is_consistent(task: Task) -> None:
    rows = table(task, task.tokens[:, -1])
    assert rows[MEMORISED]["value"] == rows[MIRROR]["value"] == 0
    assert {r["value"] for (_, _, metric), r in rows.items() if "consistency" in metric} == {1.0}
    assert {r["value"] for (_, _, metric), r in rows.items() if metric == "label_loss"} == {0.25}


def test_knowing_nothing_but_being_wrong_alike_is_consistent() -> None:
    """Consistency asks whether the two sides agree, not whether they are right."""
    task = comparison()
    wrong = np.array([EQUAL, LESS, GREATER])  # to what less, equal and greater are answered
    label = np.searchsorted([3, 7, 29], task.tokens[:, -1])
    by_token = {3: wrong[1], 7: wrong[2], 29: EQUAL}  # greater -> less, less -> greater
    rows = table(task, np.array([by_token[[3, 7, 29][k]] for k in label]))
    assert rows[WITHIN]["value"] == 1
    assert rows["test", f"label={LESS}", "label_accuracy"]["value"] == 0


def test_every_pair_is_counted_once_and_none_with_itself() -> None:
    task = comparison()
    rows = table(task, task.tokens[:, -1])
    train = in_train(task)
    i, j = np.divmod(np.arange(len(task.tokens)), 40)
    other = j * 40 + i
    both_test = sum(1 for k in range(1600) if i[k] < j[k] and not train[k] and not train[other[k]])
    across = sum(1 for k in range(1600) if i[k] != j[k] and not train[k] and train[other[k]])
    assert (rows[WITHIN]["n"], rows[ACROSS]["n"]) == (both_test, across)
    counts = [rows["test", f"label={label}", "label_loss"]["n"] for label in LABELS]
    assert sum(counts) == len(task.test)


def test_a_label_turns_round_in_the_mirror_as_the_task_says() -> None:
    assert mirrored_label(comparison()) == {LESS: GREATER, GREATER: LESS, EQUAL: EQUAL}
    assert mirrored_label(addition(5)) == {k: k for k in range(100, 105)}


def test_a_task_without_mirrors_has_a_memorised_gap_alone() -> None:
    task = GroupComposition(
        "one",
        symbols=10 + np.arange(24),
        labels=np.array([5, 6]),
        seed=0,
        params={"group": "C2", "operands": 1, "distractors": 1},
    )
    assert mirrored_label(task) is None or (task.mirror >= 0).any()
    rows = table(task, np.where(in_train(task), task.tokens[:, -1], 5))
    if not task.mirror_in_train().any():
        assert MIRROR not in rows
        assert rows[MEMORISED]["n"] == len(task.tokens)


def test_shares_of_labels_have_wilson_intervals() -> None:
    task = comparison()
    choice = task.tokens[:, -1].copy()
    choice[task.test[::3]] = EQUAL
    row = table(task, choice)["test", f"label={LESS}", "label_accuracy"]
    expected = binomtest(round(row["value"] * row["n"]), row["n"]).proportion_ci(method="wilson")
    assert 0 < row["value"] < 1
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
