"""Tasks: known tables, exact splits, private tokens, and a refusal for what cannot be a task."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refuses

from data_injection.config import InjectionConfig, ScheduleConfig, TaskConfig
from data_injection.errors import ConfigError
from data_injection.order import RowOrder
from data_injection.plan import compile_plan
from data_injection.splice import SplicedStream
from data_injection.tasks import build as tasks_module
from data_injection.tasks.base import IntArray, Task
from data_injection.tasks.build import build_tasks
from data_injection.tasks.comparison import Comparison
from data_injection.tasks.modular_addition import ModularAddition

VOCAB = 50_280
EOS = 0


class Parity(Task):
    """A third-party family: whether the sum of four operands' ranks is even or odd."""

    family = "parity"
    num_labels = 2

    def examples(self) -> IntArray:
        ranks = np.array(list(itertools.product(range(len(self.symbols)), repeat=4)))
        label = self.labels[ranks.sum(axis=1) % 2]
        return np.column_stack([self.symbols[ranks], label])


def task(name: str = "a", **fields: Any) -> TaskConfig:
    return TaskConfig(**({"name": name, "num_symbols": 6} | fields))


def build(
    *configs: TaskConfig,
    seed: int = 0,
    vocab_size: int = VOCAB,
    reserved: tuple[int, ...] = (EOS,),
    exclude: tuple[int, ...] = (),
) -> list[Task]:
    config = InjectionConfig(seed=seed, tasks=list(configs), exclude_tokens=list(exclude))
    return build_tasks(config, vocab_size=vocab_size, reserved_tokens=reserved)


def refusal(*configs: TaskConfig, **arguments: Any) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        build(*configs, **arguments)
    return error.value


# -- the study's two tasks ---------------------------------------------------------------------


def test_comparison_has_the_studys_10k_instances_and_label_counts():
    [comparison] = build(task(num_symbols=100))
    assert comparison.tokens.shape == (10_000, 3)
    assert comparison.length == 3
    assert len(np.unique(comparison.tokens[:, :2], axis=0)) == 10_000
    counts = [(comparison.tokens[:, 2] == label).sum() for label in comparison.labels]
    assert counts == [4950, 100, 4950]
    assert comparison.label_tokens.tolist() == sorted(comparison.labels.tolist())


def test_a_comparison_label_agrees_with_the_rank_order():
    [comparison] = build(task(num_symbols=20))
    rank = {int(symbol): i for i, symbol in enumerate(comparison.symbols)}
    less, equal, greater = comparison.labels
    for first, second, label in comparison.tokens:
        a, b = rank[int(first)], rank[int(second)]
        assert label == (less if a < b else greater if a > b else equal)


def test_a_modular_addition_table_is_addition_of_residues():
    [addition] = build(task(num_symbols=100, family="modular_addition"))
    assert addition.tokens.shape == (10_000, 3)
    residue = {int(symbol): i for i, symbol in enumerate(addition.symbols)}
    table = np.vectorize(residue.__getitem__)(addition.tokens)
    np.testing.assert_array_equal((table[:, 0] + table[:, 1]) % 100, table[:, 2])
    assert len(np.unique(addition.tokens[:, :2], axis=0)) == 10_000
    assert (np.bincount(table[:, 2]) == 100).all()


# -- the split ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["comparison", "modular_addition"])
def test_a_split_is_exactly_half_and_covers_every_example_once(family: str):
    [built] = build(task(num_symbols=100, family=family))
    assert len(built.train) == len(built.test) == 5000
    both = np.concatenate([built.split("train"), built.split("test")])
    np.testing.assert_array_equal(np.sort(both), np.arange(10_000))
    with pytest.raises(ValueError, match="'train', 'test' or 'all', got 'dev'"):
        built.split("dev")


def test_another_seed_gives_another_split_and_the_same_seed_the_same():
    symbols, labels = list(range(10, 30)), [40, 41, 42]
    one, again, other = (
        build(task(symbols=symbols, labels=labels), seed=seed)[0] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.train, again.train)
    assert one.digest() == again.digest()
    np.testing.assert_array_equal(one.tokens, other.tokens)
    overlap = len(np.intersect1d(one.train, other.train))
    assert 60 < overlap < 140, "two random halves of 400 share about 100"
    assert one.digest() != other.digest()


def test_a_split_does_not_depend_on_the_other_tasks():
    alone = build(task("b"))[0]
    behind = build(task("a"), task("b"))[1]
    np.testing.assert_array_equal(alone.train, behind.train)


def test_two_tasks_of_one_run_have_different_splits():
    first, second = build(task("a", num_symbols=20), task("b", num_symbols=20))
    assert first.train.tolist() != second.train.tolist()


@pytest.mark.parametrize(
    ("fraction", "num_train"), [(0.57, 57), (0.29, 29), (0.5, 50), (0.999, 99), (0.01, 1)]
)
def test_a_train_fraction_is_exact_and_rounded_down(fraction: float, num_train: int):
    # int(100 * 0.57) is 56: the fraction must be taken as the decimal it was written as.
    [built] = build(task(num_symbols=10, train_fraction=fraction))
    assert len(built.train) == num_train


def test_mirror_in_train_has_the_known_answers_on_a_tiny_task():
    symbols, labels = np.array([10, 11]), np.array([20, 21, 22])
    tiny = Comparison("tiny", symbols=symbols, labels=labels, seed=0)
    assert tiny.tokens.tolist() == [[10, 10, 21], [10, 11, 20], [11, 10, 22], [11, 11, 21]]
    assert tiny.mirror.tolist() == [0, 2, 1, 3]
    known = {  # train split -> mirror_in_train of the pairs (0,0), (0,1), (1,0), (1,1)
        (0, 3): [False, False, False, False],
        (0, 1): [False, False, True, False],
        (2, 3): [False, True, False, False],
        (1, 2): [False, True, True, False],
    }
    for train, answer in known.items():
        tiny.train = np.array(train)
        assert tiny.mirror_in_train().tolist() == answer


def test_half_of_the_test_pairs_have_their_mirror_in_train():
    [addition] = build(task(num_symbols=100, family="modular_addition"))
    share = addition.mirror_in_train()[addition.test].mean()
    # The diagonal has no mirror: about 4,950 pairs in test, each with probability one half.
    assert abs(share - 0.495) < 5 * 0.5 / np.sqrt(5000)


def test_a_family_without_a_symmetry_has_no_mirrors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(tasks_module.TASKS, "parity", Parity)
    [parity] = build(task(family="parity", num_symbols=3))
    assert not parity.mirror_in_train().any()


# -- tokens ------------------------------------------------------------------------------------


def test_tokens_of_different_tasks_are_disjoint():
    families = ["comparison", "modular_addition"] * 3
    built = build(*(task(f"t{i}", family=f, num_symbols=50) for i, f in enumerate(families)))
    owned = np.concatenate([np.unique(t.tokens) for t in built])
    assert len(np.unique(owned)) == len(owned) == 3 * (53 + 50)


@pytest.mark.parametrize(
    "added",
    [
        task("c", num_symbols=30),
        task("c", family="modular_addition"),
        task("c", share_symbols_with="a"),
        task("c", symbols=[7, 8, 9]),
        task("c", symbols=[7, 8, 9], labels=[4, 5, 6]),
    ],
    ids=["more", "family", "sharing", "explicit", "all-explicit"],
)
def test_a_task_added_at_the_end_leaves_the_earlier_ones_unchanged(added: TaskConfig):
    vocabulary = 4000  # seed 3 gives none of 4..9 to a or b
    before = build(task("a"), task("b"), seed=3, vocab_size=vocabulary)
    after = build(task("a"), task("b"), added, seed=3, vocab_size=vocabulary)
    assert [t.digest() for t in before] == [t.digest() for t in after[:2]]


def test_an_explicit_symbol_that_an_earlier_task_drew_is_refused_not_taken_away():
    drawn = int(build(task("a"))[0].symbols[2])
    error = refusal(task("a"), task("b", symbols=[drawn, drawn + 1]))
    assert (error.key, error.value) == ("injection.tasks[1]", [drawn])
    assert "already belong to task 'a'" in error.rule
    # The remedy: listed first, the explicit task keeps its symbols and the other draws around it.
    explicit, random = build(task("b", symbols=[drawn, drawn + 1]), task("a"))
    assert explicit.symbols.tolist() == [drawn, drawn + 1]
    assert drawn not in random.tokens


def test_reserved_and_excluded_tokens_are_never_drawn():
    reserved, excluded = (EOS, *range(100, 150)), tuple(range(50, 90))
    for seed in range(20):
        [built] = build(
            task(num_symbols=105),
            seed=seed,
            vocab_size=200,
            reserved=reserved,
            exclude=excluded,
        )
        assert not set(np.unique(built.tokens).tolist()) & {*reserved, *excluded}


def test_the_end_of_text_token_is_reserved_by_the_plan_itself():
    config = InjectionConfig(tasks=[task(symbols=[1, 7, 9], schedule=ScheduleConfig(rate=1))])
    with refuses(key="injection.tasks[0]", value=[7], rule="EOS"):
        compile_plan(config, batch_size=4, seq_len=16, epoch_rows=8, vocab_size=50, eos_token_id=7)


def test_shared_symbols_keep_their_order_and_their_labels():
    owner, same, fewer, other = build(
        task("a"),
        task("b", share_symbols_with="a"),
        task("c", share_symbols_with="a", num_symbols=4),
        task("d", share_symbols_with="a", family="modular_addition"),
    )
    np.testing.assert_array_equal(owner.tokens, same.tokens)
    assert owner.train.tolist() != same.train.tolist()
    np.testing.assert_array_equal(fewer.symbols, owner.symbols[:4])
    np.testing.assert_array_equal(fewer.labels, owner.labels)
    np.testing.assert_array_equal(other.symbols, owner.symbols)


def test_a_sharing_task_with_labels_of_its_own_draws_fresh_ones():
    addition, comparison = build(
        task("a", family="modular_addition"), task("b", share_symbols_with="a")
    )
    np.testing.assert_array_equal(comparison.symbols, addition.symbols)
    assert len(comparison.labels) == 3
    assert not set(comparison.labels.tolist()) & set(addition.symbols.tolist())


# -- a family of one's own ---------------------------------------------------------------------


def test_a_third_party_family_with_longer_examples_reaches_the_spliced_row(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(tasks_module.TASKS, "parity", Parity)
    config = InjectionConfig(
        offset=3,
        tasks=[
            task("p", family="parity", num_symbols=3, schedule=ScheduleConfig(rate=2)),
            task("c", schedule=ScheduleConfig(rate=1)),
        ],
    )
    plan = compile_plan(
        config, batch_size=4, seq_len=16, epoch_rows=8, vocab_size=300, eos_token_id=EOS
    )
    parity = plan.tasks[0]
    assert parity.length == 5
    assert len(parity.tokens) == 81
    assert plan.rates(0)["task_tokens_per_token"] == 2 * 6 / (4 * 16)
    host = [torch.full((16,), 299) for _ in range(8)]
    stream = SplicedStream(
        [{"input_ids": row} for row in host],
        order=RowOrder(num_rows=8, batch_size=4, seed=0),
        plan=plan,
        num_positions=4,
        pad_token_id=1,
    )
    rows = plan.at(0)
    for slot, which, example in zip(rows.slots, rows.tasks, rows.examples, strict=True):
        tokens = plan.tasks[which].tokens[example].tolist()
        expected = [299] * 3 + tokens + [EOS]
        expected += [299] * (16 - len(expected))
        assert stream[int(slot)]["input_ids"].tolist() == expected


# -- what is refused ---------------------------------------------------------------------------


def test_an_unknown_family_is_refused_with_those_there_are():
    error = refusal(task(), task("b", family="sorting"))
    assert (error.key, error.value) == ("injection.tasks[1].family", "sorting")
    assert "['comparison', 'group_composition', 'modular_addition', 'sequences']" in error.rule


@pytest.mark.parametrize("name", ["a", "", "???"])
def test_a_repeated_or_missing_name_is_refused(name: str):
    error = refusal(task("a"), task(name))
    assert (error.key, error.value) == ("injection.tasks[1].name", name)
    assert error.rule == "must be given and unique in the run"


def test_more_symbols_than_the_vocabulary_holds_are_refused():
    error = refusal(task("a"), task("b", num_symbols=100), vocab_size=100)
    assert error.key == "injection.tasks[1]"
    assert "(b) needs 103 fresh tokens but only 90" in error.rule
    assert "lower num_symbols" in error.remedy


@pytest.mark.parametrize("num_symbols", [1, 0, -1, -150])
def test_fewer_symbols_than_a_family_needs_are_refused(num_symbols: int):
    error = refusal(task(num_symbols=num_symbols), vocab_size=200)
    assert (error.key, error.value) == ("injection.tasks[0].num_symbols", num_symbols)
    assert error.rule == "must be at least 2 for comparison"


def test_explicit_symbols_of_two_tasks_may_not_meet_unless_they_say_so():
    first = task("a", symbols=[5, 6, 7])
    error = refusal(first, task("b", symbols=[7, 8, 9]))
    assert (error.key, error.value) == ("injection.tasks[1]", [7])
    assert "share_symbols_with: a" in error.remedy
    shared = build(first, task("b", share_symbols_with="a", num_symbols=3))
    assert shared[1].symbols.tolist() == [5, 6, 7]


@pytest.mark.parametrize("token", [-1, 200, 70_000])
def test_a_symbol_outside_the_vocabulary_is_refused(token: int):
    error = refusal(task(symbols=[5, token]), vocab_size=200)
    assert (error.key, error.value) == ("injection.tasks[0]", [token])
    assert "in [0, 200)" in error.rule


@pytest.mark.parametrize("field", ["symbols", "labels"])
def test_a_reserved_or_excluded_token_is_refused(field: str):
    for token in (EOS, 33):
        error = refusal(task(**{field: [token, 5, 6]}), exclude=(33,))
        assert (error.key, error.value) == ("injection.tasks[0]", [token])
        assert error.remedy == "choose others"


def test_repeated_symbols_are_refused():
    error = refusal(task(symbols=[5, 6, 5]))
    assert (error.key, error.value) == ("injection.tasks[a]", [5])
    assert "remove" in error.remedy
    assert refusal(task(symbols=[5, 6], labels=[6, 7, 8])).value == [6]


@pytest.mark.parametrize(
    ("family", "labels", "needed"),
    [("comparison", [7], 3), ("comparison", [7, 8, 9, 10], 3), ("modular_addition", [7], 0)],
)
def test_explicit_labels_of_the_wrong_number_are_refused(
    family: str, labels: list[int], needed: int
):
    # Drawing others instead would look like a setting that works.
    error = refusal(task(family=family, labels=labels))
    assert (error.key, error.value) == ("injection.tasks[0].labels", len(labels))
    assert error.rule == f"must hold {needed} token ids for {family}"


def test_unknown_parameters_are_refused_with_those_the_family_knows():
    error = refusal(task(params={"modulus": 7}))
    assert (error.key, error.value) == ("injection.tasks[a].params", ["modulus"])
    assert error.rule == "must be of those that comparison has, ['shuffle_labels']"


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 2.0, 0.001, float("nan"), float("inf")])
def test_a_train_fraction_that_leaves_a_side_empty_is_refused(fraction: float):
    error = refusal(task(train_fraction=fraction))
    assert error.key == "injection.tasks[a].train_fraction"
    assert repr(error.value) == repr(fraction)
    assert error.rule == "must leave some of 36 examples on both sides"


def test_sharing_with_a_task_that_is_not_there_yet_is_refused():
    error = refusal(task("a", share_symbols_with="b"), task("b"))
    assert (error.key, error.value) == ("injection.tasks[0].share_symbols_with", "b")
    assert error.remedy == "earlier tasks: []"


def test_sharing_more_symbols_than_there_are_is_refused():
    error = refusal(task("a"), task("b", share_symbols_with="a", num_symbols=7))
    assert (error.key, error.value) == ("injection.tasks[1].num_symbols", 7)
    assert error.rule == "must be at most 6, the symbols of 'a', which it shares"


def test_sharing_beside_explicit_symbols_is_refused():
    error = refusal(task("a"), task("b", share_symbols_with="a", symbols=[1, 2]))
    assert error.key == "injection.tasks[1].share_symbols_with"
    assert "give either, not both" in error.rule


def test_the_families_are_registered_under_their_own_names():
    assert tasks_module.TASKS["comparison"] is Comparison
    assert tasks_module.TASKS["modular_addition"] is ModularAddition
    assert all(name == family.family for name, family in tasks_module.TASKS.items())


# -- the control whose labels are dealt out anew -----------------------------------------------


@pytest.mark.parametrize("family", ["comparison", "modular_addition"])
def test_shuffled_labels_keep_tokens_split_and_marginal_and_nothing_else(family: str) -> None:
    plain, again, dealt = (
        build(task(family=family, params=params))[0]
        for params in ({}, {"shuffle_labels": False}, {"shuffle_labels": True})
    )
    assert plain.digest() == again.digest() != dealt.digest()
    assert np.array_equal(plain.tokens[:, :-1], dealt.tokens[:, :-1])
    assert np.array_equal(np.sort(plain.tokens[:, -1]), np.sort(dealt.tokens[:, -1]))
    assert np.array_equal(plain.train, dealt.train)
    assert (dealt.mirror == -1).all()
    assert not dealt.mirror_in_train().any()
    assert dealt.digest() == build(task(family=family, params={"shuffle_labels": True}))[0].digest()


def test_dealing_labels_out_leaves_what_a_family_returned() -> None:
    plain = build(task(num_symbols=6))[0]
    plain.tokens.flags.writeable = plain.mirror.flags.writeable = False

    class Kept(Comparison):
        def examples(self) -> IntArray:
            return plain.tokens

        def mirrors(self) -> IntArray:
            return plain.mirror

    params = {"shuffle_labels": True}
    dealt = Kept("a", symbols=plain.symbols, labels=plain.labels, seed=1, params=params)
    assert (dealt.tokens != plain.tokens).any()
    assert (plain.mirror >= 0).any()


def test_shuffle_labels_is_true_or_false() -> None:
    error = refusal(task(family="comparison", params={"shuffle_labels": "yes"}))
    assert (error.key, error.value) == ("injection.tasks[a].params.shuffle_labels", "yes")
