"""Alignment search finds the subspace that was planted, and none where there is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from data_injection.philox import permutation
from data_injection.tasks.base import Task
from eval.alignment.controls import HELD_OUT, feature_rank, places, score_alignment
from eval.alignment.counterfactuals import Pairs, draw_pairs
from eval.alignment.das import (
    BATCH_PAIRS,
    LEARNING_RATE,
    chosen_labels,
    interchange,
    learn_subspaces,
    random_subspaces,
)
from eval.alignment.interventions import Site, label_logits, patched, read_states

Make = Callable[..., nn.Module]

EMBEDDING = Site(layer=0, position=0)


def pairs_of(task: Task, variable: str) -> tuple[Pairs, Pairs]:
    return (
        draw_pairs(task, variable, among=task.train, num=1500, seed=0),
        draw_pairs(task, variable, among=task.test, num=300, seed=0),
    )


def overlap(one_DK: torch.Tensor, other_DK: torch.Tensor) -> float:
    """Cosine of the largest principal angle between two subspaces: 1 if they are the same."""
    return float(torch.linalg.svdvals(one_DK.T @ other_DK).min())


def search(model: nn.Module, task: Task, variable: str, site: Site, rank: int) -> tuple:
    train, test = pairs_of(task, variable)
    bases = learn_subspaces(model, task, train, site, rank=rank, seeds=[0, 1])
    return bases, interchange(model, task, test, site, bases).mean(axis=1)


def test_the_planted_models_answer_everything(planted: Make, ranks: Task, sums: Task) -> None:
    for task in (ranks, sums):
        everything = np.arange(len(task.tokens))
        assert (chosen_labels(planted(task), task, everything) == task.tokens[:, -1]).all()


def test_a_planted_direction_is_recovered_and_its_interchange_is_near_the_ceiling(
    planted: Make, ranks: Task
) -> None:
    model = planted(ranks)
    bases, accuracy = search(model, ranks, "tok1", EMBEDDING, rank=1)
    assert all(overlap(basis, model.feature_DK) > 0.99 for basis in bases)
    assert accuracy.min() > 0.95
    assert interchange(model, ranks, pairs_of(ranks, "tok1")[1], EMBEDDING, None).all()


def test_a_planted_plane_needs_two_dimensions(planted: Make, sums: Task) -> None:
    model = planted(sums)
    bases, accuracy = search(model, sums, "tok1", EMBEDDING, rank=2)
    # Less than of an order: once every answer is right there is little left to follow.
    assert all(overlap(basis, model.feature_DK) > 0.97 for basis in bases)
    assert accuracy.min() > 0.95
    assert search(model, sums, "tok1", EMBEDDING, rank=1)[1].max() < 0.4


def test_random_subspaces_and_a_random_model_stay_at_chance(planted: Make, ranks: Task) -> None:
    test = pairs_of(ranks, "tok1")[1]
    chance = random_subspaces(16, rank=1, seeds=range(20))
    accuracy = interchange(planted(ranks), ranks, test, EMBEDDING, chance).mean(axis=1)
    assert accuracy.mean() < 1 / 3
    assert accuracy.max() < 0.6  # one of twenty may lean towards the feature
    untrained = planted(ranks, scramble=True)
    assert search(untrained, ranks, "tok1", EMBEDDING, rank=1)[1].max() < 0.45


def test_a_feature_that_a_probe_would_find_but_nothing_reads_moves_no_answer(
    planted: Make, ranks: Task
) -> None:
    """After block 1 the first token's state still holds its rank, but the second has read it."""
    assert search(planted(ranks), ranks, "tok1", Site(1, 0), rank=1)[1].max() == 0


def test_the_variables_part_where_the_model_parts_them(planted: Make, ranks: Task) -> None:
    """At the second token after block 1 both operands are there, on directions of their own."""
    model, site = planted(ranks), Site(1, 1)
    bases, accuracy = search(model, ranks, "tok1", site, rank=1)
    assert accuracy.min() > 0.85
    assert all(overlap(basis, model.feature_DK) < 0.1 for basis in bases)
    # The whole state brings both operands: it is the answer's ceiling, not one operand's.
    whole = {
        name: interchange(model, ranks, pairs_of(ranks, name)[1], site, None).mean()
        for name in ("tok1", "label")
    }
    assert whole["label"] == 1
    assert whole["tok1"] < 0.6


def test_seeds_learned_side_by_side_are_those_learned_alone(planted: Make, ranks: Task) -> None:
    model, (train, _) = planted(ranks), pairs_of(ranks, "tok1")
    options = {"rank": 1, "steps": 20}
    together = learn_subspaces(model, ranks, train, EMBEDDING, seeds=[3, 4], **options)
    alone = learn_subspaces(model, ranks, train, EMBEDDING, seeds=[4], **options)
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=0)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("site", [EMBEDDING, Site(1, 1), Site(2, 1)])
def test_a_search_is_the_plain_one_that_runs_the_whole_model_at_every_step(
    site: Site, planted: Make, ranks: Task
) -> None:
    model, (train, test) = planted(ranks), pairs_of(ranks, "tok1")
    steps, places = 8, np.searchsorted(ranks.label_tokens, ranks.tokens[:, -1])
    ids, labels_L = torch.from_numpy(ranks.tokens[:, :-1]), torch.from_numpy(ranks.label_tokens)
    states_ND = read_states(model, ids, [site])[site]

    def label(pairs: Pairs, rows: np.ndarray, basis_DK: torch.Tensor) -> torch.Tensor:
        source_BD = states_ND[pairs.source[rows]]

        def swap(base_BD: torch.Tensor) -> torch.Tensor:
            return base_BD + (source_BD - base_BD) @ basis_DK @ basis_DK.T

        with patched(model, site, swap):
            return label_logits(model, ids[pairs.base[rows]], labels_L)

    free_DK = nn.Parameter(random_subspaces(16, rank=2, seeds=[5])[0])
    optimizer = torch.optim.Adam([free_DK], lr=LEARNING_RATE)
    order = permutation(len(train), seed=5, purpose="das/batches", counter=0)
    for step in range(steps):
        rows = order[step * BATCH_PAIRS : (step + 1) * BATCH_PAIRS]
        logits_BL = label(train, rows, torch.linalg.qr(free_DK)[0])
        loss = nn.functional.cross_entropy(logits_BL, torch.from_numpy(places[train.target[rows]]))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward(inputs=[free_DK])
        optimizer.step()
    slow_DK = torch.linalg.qr(free_DK.detach())[0]
    found_SDK = learn_subspaces(model, ranks, train, site, rank=2, seeds=[5], steps=steps)
    torch.testing.assert_close(found_SDK[0], slow_DK, atol=1e-4, rtol=0)
    with torch.no_grad():
        chosen = label(test, np.arange(len(test)), slow_DK).argmax(dim=-1).numpy()
    counted = interchange(model, ranks, test, site, slow_DK[None])[0]
    assert np.array_equal(counted, chosen == places[test.target])


def test_a_search_leaves_the_model_as_it_was(planted: Make, ranks: Task) -> None:
    model = planted(ranks).train()
    model.transformer.wte.weight.requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    search(model, ranks, "tok1", EMBEDDING, rank=1)
    assert model.training
    assert not model.transformer.wte.weight.requires_grad
    assert model.transformer.ff_out.weight.requires_grad
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_rank_that_the_width_does_not_have_is_refused(planted: Make, ranks: Task) -> None:
    with pytest.raises(ValueError, match=r"rank must be in \[1, 16\], .* got 17"):
        search(planted(ranks), ranks, "tok1", EMBEDDING, rank=17)


@pytest.mark.slow
def test_pyvene_finds_the_same_direction_and_counts_the_same_answers(
    planted: Make, ranks: Task
) -> None:
    import pyvene

    model, (train, test) = planted(ranks), pairs_of(ranks, "tok1")
    model.config, model.device = None, torch.device("cpu")  # pyvene looks for them
    torch.manual_seed(0)
    rotation = pyvene.LowRankRotatedSpaceIntervention(embed_dim=16, low_rank_dimension=1)
    where = pyvene.RepresentationConfig(
        0, "transformer.blocks[0].input", "pos", 1, intervention=rotation
    )
    theirs = pyvene.IntervenableModel(pyvene.IntervenableConfig([where]), model)
    ids = torch.from_numpy(ranks.tokens[:, :-1])
    labels = torch.from_numpy(ranks.label_tokens)

    def label_logits(base: np.ndarray, source: np.ndarray) -> torch.Tensor:
        rows = ({"input_ids": ids[base]}, [{"input_ids": ids[source]}])
        return theirs(*rows, {"sources->base": 0})[1].logits[:, -1, labels]

    answers = torch.searchsorted(labels, torch.from_numpy(ranks.tokens[:, -1].copy()))
    optimizer = torch.optim.Adam(rotation.parameters(), lr=0.05)
    for step in range(200):
        rows = np.arange(64 * step, 64 * step + 64) % len(train)
        logits = label_logits(train.base[rows], train.source[rows])
        loss = nn.functional.cross_entropy(logits, answers[train.target[rows]])
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    basis_DK = rotation.rotate_layer.weight.detach()
    assert overlap(basis_DK, model.feature_DK) > 0.99
    with torch.no_grad():
        chosen = label_logits(test.base, test.source).argmax(dim=-1)
    counted = (chosen == answers[test.target]).numpy()
    ours = interchange(model, ranks, test, EMBEDDING, basis_DK[None])
    assert np.array_equal(ours[0], counted)
    learned = search(model, ranks, "tok1", EMBEDDING, rank=1)[1]
    assert abs(learned - counted.mean()).max() < 0.03


# -- with all controls -----------------------------------------------------------------------------


def test_every_interchange_stands_beside_its_controls(planted: Make, ranks: Task) -> None:
    model, untrained = planted(ranks), planted(ranks, scramble=True)
    skip = {place for place in places(model, ranks) if place[:2] != ("tok1", EMBEDDING)}
    batches = list(score_alignment(model, ranks, untrained=untrained, rank=1, seed=0, skip=skip))
    assert [rows[0]["held_out"] for rows in batches] == list(HELD_OUT)
    for rows in batches:
        by_control = {row["control"]: row for row in rows if row["subset"] == "all"}
        value = {control: row["value"] for control, row in by_control.items()}
        assert value["das"] > 0.9
        assert value["random_subspace"] < 1 / 3
        assert value["random_model"] < 0.5
        assert value["no_patch"] == 0
        assert value["full_vector"] == value["own_answer"] == 1
        assert by_control["das"]["above_majority"] > 0.85
        assert 0.3 < by_control["das"]["majority"] < 0.4
        assert by_control["das"]["low"] < value["das"] <= by_control["das"]["high"]
        assert {c: r["draws"] for c, r in by_control.items() if r["draws"] > 1} == {
            "das": 3, "random_subspace": 20, "random_model": 3,
        }  # fmt: skip
        # This model answers everything, so that either subset is the whole.
        answered = {r["control"]: r["value"] for r in rows if r["subset"] == "answered"}
        assert answered == value


def test_the_random_models_control_is_the_same_search_in_the_model_that_is_given(
    planted: Make, ranks: Task
) -> None:
    model = planted(ranks)
    skip = {place for place in places(model, ranks) if place != ("tok1", EMBEDDING, "pairs")}
    options = {"rank": 1, "seed": 0, "skip": skip, "steps": 10, "known": {}}
    (rows,) = score_alignment(model, ranks, untrained=model, **options)
    measured = {
        row["control"]: {name: row[name] for name in ("value", "least", "most", "draws")}
        for row in rows
    }
    assert measured["random_model"] == measured["das"]
    assert measured["das"]["value"] > 0.1


def test_places_that_cannot_hold_a_variable_or_reach_the_answer_are_left_out(
    planted: Make, ranks: Task
) -> None:
    found = {(name, site.layer, site.position) for name, site, _ in places(planted(ranks), ranks)}
    assert found == {
        ("tok1", 0, 0), ("tok1", 1, 0), ("tok1", 1, 1), ("tok1", 2, 1),
        ("tok2", 0, 1), ("tok2", 1, 1), ("tok2", 2, 1),
        ("label", 1, 1), ("label", 2, 1),
    }  # fmt: skip


def test_the_rank_is_that_of_what_the_probes_found(ranks: Task, sums: Task) -> None:
    assert feature_rank(ranks, {}) == 1
    assert feature_rank(ranks, {"order": np.array([0])}) == 1
    assert feature_rank(sums, {}) == 2
    assert feature_rank(sums, {"fourier": np.array([1, 4, 6])}) == 6
