"""The pairs ask for what an intervention must give, and can be passed by nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from data_injection.tasks.base import Task
from eval.alignment.controls import _examples
from eval.alignment.counterfactuals import draw_pairs


@pytest.mark.parametrize(("variable", "column"), [("tok1", 0), ("tok2", 1)])
def test_the_target_is_the_base_with_the_sources_token(
    ranks: Task, variable: str, column: int
) -> None:
    pairs = draw_pairs(ranks, variable, among=ranks.test, num=300, seed=0)
    base, source, target = (ranks.tokens[side] for side in (pairs.base, pairs.source, pairs.target))
    assert (target[:, column] == source[:, column]).all()
    assert (target[:, 1 - column] == base[:, 1 - column]).all()
    assert (source[:, 1 - column] != base[:, 1 - column]).mean() > 0.9


def test_the_answers_target_is_the_source(ranks: Task) -> None:
    pairs = draw_pairs(ranks, "label", among=ranks.test, num=300, seed=0)
    assert np.array_equal(pairs.target, pairs.source)


@pytest.mark.parametrize("variable", ["tok1", "tok2", "label"])
def test_no_pair_is_passed_by_doing_nothing_and_every_label_is_asked_for_equally(
    ranks: Task, sums: Task, variable: str
) -> None:
    for task, num in ((ranks, 300), (sums, 23 * 10)):
        pairs = draw_pairs(task, variable, among=task.test, num=num, seed=0)
        labels = task.tokens[:, -1]
        assert (labels[pairs.target] != labels[pairs.base]).all()
        _, counts = np.unique(labels[pairs.target], return_counts=True)
        assert (counts == num / len(task.label_tokens)).all()
        rows = np.stack([pairs.base, pairs.source], axis=1)
        assert len(np.unique(rows, axis=0)) == len(rows) == num


def test_minimal_pairs_differ_in_the_variable_alone(ranks: Task) -> None:
    pairs = draw_pairs(ranks, "tok1", among=ranks.test, num=300, seed=0, minimal=True)
    assert np.array_equal(pairs.source, pairs.target)
    base, target = ranks.tokens[pairs.base], ranks.tokens[pairs.target]
    assert (base[:, 1] == target[:, 1]).all()
    assert (base[:, 0] != target[:, 0]).all()


def test_every_example_of_a_pair_is_among_those_allowed(ranks: Task) -> None:
    learn = draw_pairs(ranks, "tok1", among=ranks.train, num=300, seed=0)
    test = draw_pairs(ranks, "tok1", among=ranks.test, num=300, seed=0)
    assert set(learn.examples) <= set(ranks.train)
    assert set(test.examples) <= set(ranks.test)


def test_held_out_symbols_share_no_symbol_and_no_example(ranks: Task) -> None:
    learn, test = _examples(ranks, "symbols", seed=0)
    assert set(learn) <= set(ranks.train)
    assert set(test) <= set(ranks.test)
    assert not set(ranks.tokens[learn, :-1].flat) & set(ranks.tokens[test, :-1].flat)
    assert min(len(learn), len(test)) > 150


def test_the_same_seed_gives_the_same_pairs_and_another_others(ranks: Task) -> None:
    one, same, other = (
        draw_pairs(ranks, "tok1", among=ranks.test, num=300, seed=seed) for seed in (0, 0, 1)
    )
    assert np.array_equal(one.base, same.base)
    assert np.array_equal(one.source, same.source)
    assert not np.array_equal(one.base, other.base)


def test_where_there_is_no_pair_there_is_none(ranks: Task) -> None:
    assert len(draw_pairs(ranks, "tok1", among=ranks.test[:1], num=300, seed=0)) == 0
    assert len(draw_pairs(ranks, "tok1", among=ranks.test[:0], num=300, seed=0)) == 0


def test_a_variable_that_the_task_does_not_have_is_refused(ranks: Task) -> None:
    with pytest.raises(ValueError, match=r"one of \['tok1', 'tok2', 'label'\] .* got 'tok3'"):
        draw_pairs(ranks, "tok3", among=ranks.test, num=300, seed=0)
