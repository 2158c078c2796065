"""The graded family: its groups, its examples, its grade, and what it refuses."""

from __future__ import annotations

from itertools import product
from math import comb, log2

import numpy as np
import pytest
from refusals import refuses

from data_injection.config import InjectionConfig, TaskConfig
from data_injection.tasks.build import Task, build_tasks
from data_injection.tasks.group_composition import GroupComposition, cayley_table


def build(num_symbols: int = 12, **params: object) -> Task:
    config = TaskConfig(
        "g", family="group_composition", num_symbols=num_symbols, params=dict(params)
    )
    return build_tasks(InjectionConfig(tasks=[config]), vocab_size=500)[0]


ORDERS = {"C2": 2, "C7": 7, "C100": 100, "D4": 8, "S3": 6, "S4": 24, "A4": 12, "A5": 60, "S5": 120}


@pytest.mark.parametrize("group", ORDERS)
def test_every_table_is_a_group(group: str) -> None:
    table = cayley_table(group)
    n = ORDERS[group]
    assert table.shape == (n, n)
    everything = np.arange(n)
    assert (table[0] == everything).all()
    assert (table[:, 0] == everything).all()
    for row in (*table, *table.T):  # a Latin square: every element has an inverse
        assert sorted(row) == everything.tolist()
    rng = np.random.default_rng(0)
    for a, b, c in rng.integers(0, n, size=(500, 3)):
        assert table[table[a, b], c] == table[a, table[b, c]]


def test_cyclic_groups_commute_and_the_symmetric_one_does_not() -> None:
    assert (cayley_table("C5") == np.add.outer(range(5), range(5)) % 5).all()
    assert not np.array_equal(cayley_table("S3"), cayley_table("S3").T)


@pytest.mark.parametrize(("operands", "distractors"), [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0)])
@pytest.mark.parametrize("group", ["C2", "C3", "S3"])
def test_the_label_is_the_product_of_the_operands_alone(
    group: str, operands: int, distractors: int
) -> None:
    task = build(8, group=group, operands=operands, distractors=distractors)
    assert isinstance(task, GroupComposition)
    table, element = cayley_table(group), task.elements()
    meaning = dict(zip(task.symbols.tolist(), element.tolist(), strict=True))
    rows = {tuple(row[:-1]): row[-1] for row in task.tokens.tolist()}
    assert len(rows) == 8 ** (operands + distractors) == len(task.tokens)
    for symbols in product(task.symbols.tolist(), repeat=operands + distractors):
        result = meaning[symbols[0]]
        for symbol in symbols[1:operands]:
            result = table[result, meaning[symbol]]
        assert rows[symbols] == task.labels[result]


def test_elements_have_equally_many_symbols_to_within_one() -> None:
    task = build(11, group="C3")
    assert isinstance(task, GroupComposition)
    assert sorted(np.bincount(task.elements())) == [3, 4, 4]


def test_with_two_operands_no_single_token_tells_the_label() -> None:
    task = build(12, group="C3", operands=2)
    for place in (0, 1):
        for symbol in task.symbols:
            labels = task.tokens[task.tokens[:, place] == symbol, -1]
            assert (np.unique(labels, return_counts=True)[1] == 4).all()


def test_the_grade_is_the_information_in_the_assignment() -> None:
    assert build(12, group="C2").bits == pytest.approx(log2(comb(12, 6)))
    assert build(12, group="C12").bits == pytest.approx(log2(479_001_600))
    assert build(40, group="C2", operands=1, distractors=1).bits == pytest.approx(37.0, abs=0.1)
    for family, labels in (("comparison", 3), ("modular_addition", 0)):
        config = TaskConfig("t", family=family, num_symbols=100)
        (task,) = build_tasks(InjectionConfig(tasks=[config]), vocab_size=500)
        assert len(task.labels) == labels
        assert task.bits == pytest.approx(524.765, abs=1e-3)


def test_swapped_operands_are_mirrors_where_the_group_commutes() -> None:
    task = build(6, group="C2")
    i, j = np.divmod(np.arange(36), 6)
    assert (task.mirror == j * 6 + i).all()
    for other in (
        build(6, group="S3"),
        build(6, group="C2", operands=1, distractors=1),
        build(6, group="C2", operands=3),
    ):
        assert (other.mirror == -1).all()


@pytest.mark.parametrize(
    ("num_symbols", "params", "key", "value", "rule", "remedy"),
    [
        (12, {"group": "Z2"}, "[0].params.group", "Z2", "C2 to C120", ""),
        (12, {"group": "C1"}, "[0].params.group", "C1", "C2 to C120", ""),
        (12, {"group": "S9"}, "[0].params.group", "S9", "C2 to C120", ""),
        (12, {"group": 3}, "[0].params.group", 3, "C2 to C120", ""),
        (12, {"operands": 0}, "[g].params.operands", 0, "at least 1", ""),
        (12, {"operands": 1.5}, "[g].params.operands", 1.5, "whole number", ""),
        (12, {"operands": True}, "[g].params.operands", True, "whole number", ""),
        (12, {"distractors": -1}, "[g].params.distractors", -1, "at least 0", ""),
        (12, {"modulus": 3}, "[g].params", ["modulus"], "'operands'", ""),
        (5, {"group": "C6"}, "[0].num_symbols", 5, "at least 6", ""),
        (100, {"operands": 4}, "[g].num_symbols", 100, "100,000,000", "num_symbols to 31 or less"),
    ],
)
def test_what_cannot_be_is_refused(
    num_symbols: int, params: dict, key: str, value: object, rule: str, remedy: str
) -> None:
    with refuses(key=f"injection.tasks{key}", value=value, rule=rule, remedy=remedy):
        build(num_symbols, **params)


def test_labels_can_be_given_and_must_be_as_many_as_the_elements() -> None:
    config = TaskConfig(
        "g", family="group_composition", num_symbols=9, labels=[7, 8, 9], params={"group": "C3"}
    )
    (task,) = build_tasks(InjectionConfig(tasks=[config]), vocab_size=500)
    assert task.labels.tolist() == [7, 8, 9]
    config.labels = [7, 8]
    with refuses(key="injection.tasks[0].labels", value=2, rule="3 token ids"):
        build_tasks(InjectionConfig(tasks=[config]), vocab_size=500)


def test_two_tasks_can_share_the_label_tokens_and_not_the_symbols() -> None:
    """The mixture design "one label format": what findings compare transfer with."""
    first = TaskConfig("a", num_symbols=9, labels=[7, 8, 9])
    second = TaskConfig("b", num_symbols=9, share_labels_with="a")
    a, b = build_tasks(InjectionConfig(tasks=[first, second]), vocab_size=500)
    assert a.labels.tolist() == b.labels.tolist() == [7, 8, 9]
    assert not set(a.symbols) & set(b.symbols)


def test_a_lender_of_another_number_of_labels_is_refused() -> None:
    first = TaskConfig("a", num_symbols=9)
    second = TaskConfig("b", family="group_composition", num_symbols=9, share_labels_with="a")
    key = "injection.tasks[1].share_labels_with"
    with refuses(key=key, value="a", rule=("2 labels", "'b'", "not of 3")):
        build_tasks(InjectionConfig(tasks=[first, second]), vocab_size=500)
    second.share_labels_with = "c"
    with refuses(key=key, value="c", remedy="['a']"):
        build_tasks(InjectionConfig(tasks=[first, second]), vocab_size=500)
