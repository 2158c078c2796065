"""Distributed alignment search with its controls, as records: which places hold which variable.

    for rows in score_alignment(model, task, untrained=random_model(path, seed=0), rank=1, seed=0):
        print(rows[0]["variable"], rows[0]["layer"], rows[0]["position"], rows[0]["value"])

An interchange accuracy alone says little. Beside each stand, on the same pairs: `random_subspace`
of the same rank, the same search in an untrained model (`random_model`: a search can also make a
path of its own), `full_vector` (the whole state swapped), `no_patch` (0 where the model answers
rightly) and `own_answer` (what the model itself answers to the target: no interchange at a place
that holds the variable should give more).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_injection.philox import permutation
from data_injection.tasks.base import FloatArray, IntArray, Task
from eval.alignment.counterfactuals import ANSWER, Pairs, draw_pairs, operands, token_of
from eval.alignment.das import STEPS, chosen_labels, interchange, learn_subspaces, random_subspaces
from eval.alignment.interventions import Site, num_blocks
from eval.statistics import share_fields

log = logging.getLogger(__name__)

METRIC = "interchange_accuracy"

HELD_OUT = ("pairs", "symbols")
"""What a search never saw. Either way the base, source and target of every pair that is counted are
of the test split, those it learned from of the train split; with "symbols" also no symbol is in
both."""

TRAIN_PAIRS = 2048
TEST_PAIRS = 600
DRAWS = 3
RANDOM_DRAWS = 20

_RANDOM = 10_000
"""Random subspaces must not be those that the searches start from."""

Place = tuple[str, Site, str]
"""A variable, where it is looked for, and what is held out."""


def places(model: torch.nn.Module, task: Task) -> Iterator[Place]:
    """Every place that can hold a variable and reach the answer, for each way of holding out.

    An operand can be at its own token, and from block 1 on at those after it; the answer from block
    1 on at the last token. After the last block only the last token is read.
    """
    return places_of(task, depth=num_blocks(model))


def places_of(task: Task, *, depth: int) -> Iterator[Place]:
    """`places` of any model of so many blocks."""
    last = task.length - 2
    for variable in [*operands(task), ANSWER]:
        own = token_of(task, variable)
        for position in range(own, last + 1):
            at_input = variable != ANSWER and position == own
            for layer in range(0 if at_input else 1, depth + (position == last)):
                for held_out in HELD_OUT:
                    yield variable, Site(layer, position), held_out


def feature_rank(task: Task, present: dict[str, IntArray]) -> int:
    """Dimensions of what a task's symbols hide: the columns of its units that probes found.

    Comparison's order has one; a Fourier mode two (the Nyquist mode one). Where nothing was found,
    those of one unit: the search must have something to fail with.

    present: units found, from 0, by target.
    """
    ranks = []
    for name, target in task.targets().items():
        columns = target if target.ndim == 3 else target[..., None]
        units = present.get(name, np.zeros(0, dtype=np.int64))
        chosen: FloatArray = columns[:, units if len(units) else [0]]
        flat = chosen.reshape(len(chosen), -1)
        ranks.append(int(np.linalg.matrix_rank(flat - flat.mean(axis=0))))
    return max(ranks, default=1)


def score_alignment(
    model: torch.nn.Module,
    task: Task,
    *,
    untrained: torch.nn.Module,
    rank: int,
    seed: int,
    draws: int = DRAWS,
    steps: int = STEPS,
    skip: Collection[Place] = (),
    known: dict[Any, NDArray[np.bool_]] | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """The fields of records, place by place: interchange accuracy and its controls.

    Args:
        untrained: a model of the same configuration with random weights.
        rank: of every subspace; never more than the width.
        draws: searches, each with its own start and order of pairs, in either model.
        skip: places that are not to be measured again.
        known: what the untrained model gave, kept between the checkpoints of a run; filled here.

    Returns:
        a row for each control and subset: "all" pairs, or those "answered", of which the model
        answers base, source and target rightly. `value` is the mean over draws with the Wilson
        interval over pairs, `least` and `most` are over draws, `above_majority` is the value's
        score over naming the commonest target label.
    """
    known = {} if known is None else known
    drawn: dict[tuple[str, str], tuple[Pairs, Pairs]] = {}
    undisturbed = cache(lambda *of: _undisturbed(model, task, drawn[of][1]))
    for place in places(model, task):
        if place in skip:
            continue
        variable, site, held_out = place
        if (variable, held_out) not in drawn:
            drawn[variable, held_out] = _draw(task, variable, held_out, seed=seed)
        train, pairs = drawn[variable, held_out]
        if not len(train) or not len(pairs):
            log.warning("%s is too small to hold out %s for %s", task.name, held_out, variable)
            continue
        own = undisturbed(variable, held_out)
        width = model.transformer.wte.weight.shape[1]  # type: ignore[union-attr, index]
        rank_here = min(rank, int(width))
        starts = [seed + i for i in range(draws)]
        options: dict[str, Any] = {"rank": rank_here, "seeds": starts, "steps": steps}
        key = (task.name, place, rank_here, draws, steps, seed)
        if key not in known:
            random_bases = learn_subspaces(untrained, task, train, site, **options)
            known[key] = interchange(untrained, task, pairs, site, random_bases)
        found = learn_subspaces(model, task, train, site, **options)
        seeds = [_RANDOM + seed + i for i in range(RANDOM_DRAWS)]
        chance = random_subspaces(int(width), rank=rank_here, seeds=seeds)
        right = {
            "das": interchange(model, task, pairs, site, found),
            "random_subspace": interchange(model, task, pairs, site, chance),
            "random_model": known[key],
            "no_patch": own["no_patch"][None],
            "own_answer": own["target"][None],
            # The last: a place that has this row is complete.
            "full_vector": interchange(model, task, pairs, site, None),
        }
        answered = own["base"] & own["source"] & own["target"]
        shared = {
            "metric": METRIC, "component": site.component, "layer": site.layer,
            "position": site.position, "variable": variable, "held_out": held_out,
            "rank": rank_here, "train_pairs": len(train),
        }  # fmt: skip
        labels = task.tokens[pairs.target, -1]
        yield [
            shared | {"control": control, "subset": subset} | _measure(right_SN, labels, keep)
            for control, right_SN in right.items()
            for subset, keep in (("all", np.ones_like(answered)), ("answered", answered))
        ]


def _draw(task: Task, variable: str, held_out: str, *, seed: int) -> tuple[Pairs, Pairs]:
    """The pairs to learn from and those to count on."""
    learn, test = _examples(task, held_out, seed=seed)
    return (
        draw_pairs(task, variable, among=learn, num=TRAIN_PAIRS, seed=seed),
        draw_pairs(task, variable, among=test, num=TEST_PAIRS, seed=seed),
    )


def _examples(task: Task, held_out: str, *, seed: int) -> tuple[IntArray, IntArray]:
    """The examples to learn from and those to count on."""
    if held_out == "pairs":
        return task.train, task.test
    order = permutation(len(task.symbols), seed=seed, purpose=f"symbols/{task.name}")
    half = len(order) // 2
    learn, test = (
        np.isin(task.tokens[:, :-1], task.symbols[part]).all(axis=1)
        for part in (order[:half], order[half:])
    )
    return task.train[learn[task.train]], task.test[test[task.test]]


def _undisturbed(model: torch.nn.Module, task: Task, pairs: Pairs) -> dict[str, NDArray[np.bool_]]:
    """Whether the model answers a side with its label; `no_patch`: the base with the target's."""
    sides = {"base": pairs.base, "source": pairs.source, "target": pairs.target}
    examples, place = np.unique(np.stack([*sides.values()]), return_inverse=True)
    answers = chosen_labels(model, task, examples)[place.reshape(3, -1)]
    chosen = dict(zip(sides, answers, strict=True))
    right = {name: chosen[name] == task.tokens[side, -1] for name, side in sides.items()}
    return right | {"no_patch": chosen["base"] == task.tokens[pairs.target, -1]}


def _measure(
    right_SN: NDArray[np.bool_], labels: IntArray, keep: NDArray[np.bool_]
) -> dict[str, Any]:
    n = int(keep.sum())
    if n == 0:
        names = ("value", "low", "high", "majority", "above_majority", "least", "most")
        return dict.fromkeys(names, float("nan")) | {"n": 0, "draws": len(right_SN)}
    by_draw = right_SN[:, keep].mean(axis=1)
    value = float(by_draw.mean())
    majority = float(np.unique(labels[keep], return_counts=True)[1].max() / n)
    return {
        **share_fields(value, n),
        "n": n,
        "draws": len(right_SN),
        "least": float(by_draw.min()),
        "most": float(by_draw.max()),
        "majority": majority,
        "above_majority": (value - majority) / (1 - majority) if majority < 1 else float("nan"),
    }
