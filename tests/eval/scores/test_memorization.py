"""Memorization: known answers of every measure, and the null that each must show.

Models are functions from ids to logits: one that knows texts by heart, one that knows nothing.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from data_injection.tasks.sequence_file import SequenceTable
from data_injection.tasks.sequences import Sequences
from eval.scores.memorization import (
    Readings,
    auc_interval,
    exposure,
    memorization_rows,
    null_exposure,
    read_sequences,
    references_of,
    rows_of_readings,
)

V, EOS = 200, 0


def task_of(copies: dict[int, int], *, twins: int, groups: int = 1, seed: int = 0) -> Sequences:
    """`copies[level]` sequences of each level and some twins, in every group; 9 to 14 tokens, the
    first another for each of up to V - 1."""
    rng = np.random.Generator(np.random.PCG64(seed))
    kinds = [(group, level, False) for group in range(groups) for level in copies]
    kinds = [kind for kind in kinds for _ in range(copies[kind[1]])]
    kinds += [(group, 0, True) for group in range(groups) for _ in range(twins)]
    tokens = tuple(
        np.append(1 + number % (V - 1), rng.integers(1, V, size=int(rng.integers(8, 14))))
        for number in range(len(kinds))
    )
    return Sequences(
        "seq",
        SequenceTable(
            sha256="",
            ids=tuple(str(number) for number in range(len(kinds))),
            tokens=tokens,
            copies=np.array([level for _, level, _ in kinds]),
            groups=tuple(f"g{group}" for group, _, _ in kinds),
            twins=tuple(twin for *_, twin in kinds),
        ),
    )


class ByHeart:
    """Knows the sequences of some levels: after any of their prefixes the next token, surely; all
    follow EOS, so that it cannot know the first."""

    def __init__(self, task: Sequences, levels: set[int], *, sure: float = 30.0) -> None:
        self.next: dict[tuple[int, ...], int] = {}
        self.sure = sure
        for tokens, copies in zip(task.table.tokens, task.table.copies, strict=True):
            if int(copies) in levels:
                text = [EOS, *tokens.tolist()]
                self.next |= {tuple(text[:end]): text[end] for end in range(2, len(text))}

    def __call__(self, ids_BT: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*ids_BT.shape, V)
        for row, ids in enumerate(ids_BT.tolist()):
            for end in range(1, len(ids) + 1):
                if (token := self.next.get(tuple(ids[:end]))) is not None:
                    logits[row, end - 1, token] = self.sure
        return logits


def untrained(seed: int) -> Any:
    """Logits that a hash of the prefix draws: the same text reads the same, whatever the batch."""

    def logits(ids_BT: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(*ids_BT.shape, V)
        for row, ids in enumerate(ids_BT.tolist()):
            for end in range(1, len(ids) + 1):
                state = [seed, *ids[max(0, end - 6) : end]]
                draw = np.random.Generator(np.random.PCG64(state)).normal(size=V)
                out[row, end - 1] = torch.as_tensor(draw)
        return out

    return logits


def values(rows: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    return {row["subset"]: row for row in rows if row["metric"] == metric}


# -- known answers -----------------------------------------------------------------------------


def test_a_model_that_knows_what_was_injected_by_heart():
    task = task_of({0: 4, 1: 4, 16: 4}, twins=31, groups=2)
    rows = memorization_rows(ByHeart(task, {1, 16}), task, prefix=3, eos=EOS)
    assert {k: r["value"] for k, r in values(rows, "extraction").items()} == {
        "copies=0": 0.0, "copies=1": 1.0, "copies=16": 1.0, "twins": 0.0
    }  # fmt: skip
    losses = values(rows, "sequence_loss")
    lengths = [
        len(tokens)
        for tokens, copies in zip(task.table.tokens, task.table.copies, strict=True)
        if copies == 16
    ]
    first_alone = np.mean([math.log(V) / length for length in lengths])
    assert losses["copies=16"]["value"] == pytest.approx(first_alone, rel=1e-6)
    assert losses["twins"]["value"] == pytest.approx(math.log(V), rel=1e-6)
    assert losses["twins"]["n"] == 62
    for subset in ("copies=1", "copies=16"):
        # Rank 1 of 32: log2 32 bits; no twin is ever as likely.
        assert values(rows, "exposure")[subset]["value"] == pytest.approx(5)
        auc = values(rows, "membership_auc")[subset]
        assert (auc["value"], auc["high"], auc["n"], auc["references"]) == (1, 1, 8, 62)
        assert 0.5 < auc["low"] < 1
    # What was never injected reads like its twins: all ties.
    assert values(rows, "membership_auc")["copies=0"]["value"] == 0.5
    assert {row["split"] for row in rows if row["copies"]} == {"train"}
    assert {row["split"] for row in rows if not row["copies"]} == {"test"}
    json.dumps(rows)


def test_extraction_is_what_greedy_decoding_gives_token_by_token():
    task = task_of({1: 30}, twins=0)
    known = ByHeart(task, {1})
    rng = np.random.Generator(np.random.PCG64(1))
    for key in list(known.next):  # forget here and there
        if rng.random() < 0.12:
            known.next[key] = int(rng.integers(1, V))
    for prefix in (1, 4, 8):
        extracted = []
        for tokens in task.table.tokens:
            text = [EOS, *tokens[:prefix].tolist()]
            while len(text) <= len(tokens):
                text.append(int(known(torch.tensor([text]))[0, -1].argmax()))
            extracted.append(text[1:] == tokens.tolist())
        row = values(memorization_rows(known, task, prefix=prefix, eos=EOS), "extraction")
        assert row["copies=1"]["value"] == np.mean(extracted)
    assert 0 < np.mean(extracted) < 1


def test_sequences_no_longer_than_the_prefix_are_not_counted_as_extracted():
    task = task_of({1: 20}, twins=2)
    longer = sum(len(tokens) > 12 for tokens in task.table.tokens[:20])
    row = values(memorization_rows(ByHeart(task, {1}), task, prefix=12, eos=EOS), "extraction")
    assert (row["copies=1"]["n"], row["copies=1"]["value"]) == (longer, 1.0)
    assert 0 < longer < 20
    assert not values(memorization_rows(ByHeart(task, {1}), task, prefix=14, eos=EOS), "extraction")


def test_exposure_by_hand():
    others = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert exposure(0.5, others) == 3  # rank 1 of 8
    assert exposure(7.5, others) == 0  # rank 8 of 8
    assert exposure(3.5, others) == 1  # rank 4 of 8
    assert exposure(4.0, others) == 3 - math.log2(4.5)  # a tie counts half
    assert null_exposure(2) == 0.5
    assert null_exposure(10**6) == pytest.approx(math.log2(math.e), abs=1e-4)


def test_the_reference_is_the_groups_twins_or_else_its_untouched_examples():
    task = task_of({0: 2, 4: 3}, twins=5, groups=2)
    of_first = references_of(task)["g0"]
    assert all(task.table.twins[i] for i in of_first)
    assert {task.table.groups[i] for i in of_first} == {task.table.groups[0]} == {"g0"}
    bare = task_of({0: 2, 4: 3}, twins=0, groups=2)
    assert [int(bare.table.copies[i]) for i in references_of(bare)["g0"]] == [0, 0]
    rows = memorization_rows(untrained(0), bare, prefix=3, eos=EOS)
    assert set(values(rows, "exposure")) == {"copies=4"}, "a level is no reference of its own"
    alone = memorization_rows(untrained(0), task_of({4: 3}, twins=0), prefix=3, eos=EOS)
    assert {row["metric"] for row in alone} == {"sequence_loss", "extraction"}


def test_readings_do_not_depend_on_the_batch():
    task = task_of({1: 6, 4: 6}, twins=6)
    one, many = (read_sequences(untrained(3), task, eos=EOS, batch_rows=n) for n in (1, 5))
    assert np.allclose(one.loss, many.loss, rtol=1e-6)
    assert one.known_from.tolist() == many.known_from.tolist()


def test_a_diverged_model_has_undefined_measures_and_says_so():
    task = task_of({1: 3}, twins=3)
    rows = memorization_rows(lambda ids: torch.full((*ids.shape, V), torch.nan), task, prefix=3,
                             eos=EOS)  # fmt: skip
    assert all(math.isnan(row["value"]) for row in rows)
    diverged = {row["metric"] for row in rows if row.get("diverged")}
    assert diverged == {"extraction", "exposure", "membership_auc"}


# -- nulls -------------------------------------------------------------------------------------


def test_an_untrained_model_is_at_the_null_of_every_measure():
    """400 sequences against 40 twins in each of 10 groups: bounds of four standard errors."""
    task = task_of({1: 20, 64: 20}, twins=40, groups=10)
    rows = memorization_rows(untrained(7), task, prefix=3, eos=EOS)
    for subset in ("copies=1", "copies=64"):
        auc = values(rows, "membership_auc")[subset]
        assert auc["low"] < 0.5 < auc["high"]
        told = values(rows, "exposure")[subset]
        assert told["null_mean"] == pytest.approx(null_exposure(41))
        assert 1.3 < told["null_mean"] < 1.44
        assert told["low"] < told["null_mean"] < told["high"]
        assert values(rows, "extraction")[subset]["value"] == 0


def test_intervals_of_the_auc_cover_the_true_one():
    """Normal scores half a standard deviation apart: the AUC is Phi(.5 / sqrt 2)."""
    rng = np.random.Generator(np.random.PCG64(0))
    truth, covered = 0.5 * (1 + math.erf(0.25)), 0
    for _ in range(400):
        a, b = rng.normal(0.5, 1, size=16), rng.normal(0, 1, size=24)
        low, high = auc_interval(float((a[:, None] > b).mean()), [len(a)], [len(b)])
        covered += low <= truth <= high
    assert 0.92 * 400 < covered < 0.985 * 400


@pytest.mark.parametrize(("groups", "each", "twins"), [(40, 1, 1), (12, 3, 2)])
def test_intervals_of_the_auc_cover_the_true_one_with_groups(groups: int, each: int, twins: int):
    """As above, each group at a loss of its own: only pairs within one are compared."""
    task = task_of({1: each}, twins=twins, groups=groups)
    held_out, of_group = np.array(task.table.twins), np.array(task.table.groups)
    rng = np.random.Generator(np.random.PCG64(1))
    truth, covered = 0.5 * (1 + math.erf(0.25)), 0
    for _ in range(400):
        shift = dict(zip(np.unique(of_group), rng.normal(scale=9, size=groups), strict=True))
        loss = rng.normal(size=len(held_out)) + 0.5 * held_out
        loss += np.array([shift[group] for group in of_group])
        rows = rows_of_readings(Readings(loss, np.zeros(len(loss), dtype=int)), task, prefix=3)
        auc = values(rows, "membership_auc")["copies=1"]
        assert (auc["n"], auc["references"]) == (groups * each, groups * twins)
        covered += auc["low"] <= truth <= auc["high"]
    assert 0.92 * 400 < covered < 0.985 * 400, covered


@pytest.mark.parametrize("auc", [0.0, 0.3, 0.5, 1.0])
def test_intervals_of_the_auc_are_inside_the_unit_and_mirror(auc: float):
    low, high = auc_interval(auc, [10], [30])
    assert 0 <= low <= auc <= high <= 1
    assert low < high
    assert auc_interval(1 - auc, [10], [30]) == pytest.approx((1 - high, 1 - low))
