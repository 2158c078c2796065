"""Pairs of examples that say what a model should answer if one of its variables were another's.

    pairs = draw_pairs(task, "tok1", among=task.test, num=512, seed=0)
    task.tokens[pairs.target, -1]          # the label that an interchange should give

In a pair (base, source) the value of one variable in the base is replaced by its value in the
source. The variable `tok1` of comparison: base (a, b) and source (c, d) give the label of (c, b),
which is the *target* example. The variable `label` is the answer itself; its target is the source.

Only pairs whose target has another label than the base are drawn, or doing nothing would score;
and every label is asked for equally often (as far as there are pairs), or naming the commonest
would.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_injection.philox import permutation, raw_words
from data_injection.tasks.base import IntArray, Task

ANSWER = "label"

DRAWS_AT_ONCE = 2**16
MAX_ROUNDS = 40
PATIENCE = 4
"""Rounds in a row that find no new pair: there are no more, or too rare to look for."""


@dataclass(frozen=True)
class Pairs:
    """Examples of a task by their indices, one entry a pair."""

    base: IntArray
    source: IntArray
    target: IntArray

    def __len__(self) -> int:
        return len(self.base)

    @property
    def examples(self) -> IntArray:
        """All examples that stand in a pair, ascending."""
        return np.unique(np.concatenate([self.base, self.source, self.target]))


def operands(task: Task) -> list[str]:
    """Names of the variables that a task's tokens give: tok1, tok2, ..."""
    return [f"tok{i + 1}" for i in range(task.length - 1)]


def token_of(task: Task, variable: str) -> int:
    """Position of the token that gives a variable; of the answer: the last before the label."""
    if variable == ANSWER:
        return task.length - 2
    if variable not in (known := operands(task)):
        known = [*known, ANSWER]
        raise ValueError(f"variable must be one of {known} for {task.name!r}, got {variable!r}")
    return known.index(variable)


def draw_pairs(
    task: Task, variable: str, *, among: IntArray, num: int, seed: int, minimal: bool = False
) -> Pairs:
    """Up to `num` distinct pairs whose base, source and target are all `among` these examples.

    Args:
        minimal: the source is the target itself, so that source and base differ in the variable
            alone; else the source's other tokens are as they come.

    Returns:
        as many pairs of each label as there are to find, at most num / number of labels (rounded
        up), in an order drawn by the seed; none if no pair can be found.
    """
    allowed = np.zeros(len(task.tokens) + 1, dtype=bool)  # the last: no such example
    allowed[among] = True
    labels = task.tokens[:, -1]
    quota = -(-num // len(task.label_tokens))
    purpose = f"interchange/{task.name}/{variable}"
    found, idle = np.zeros((0, 3), dtype=np.int64), 0
    for round_ in range(MAX_ROUNDS if len(among) else 0):
        words = raw_words(2 * DRAWS_AT_ONCE, seed=seed, purpose=purpose, counter=round_)
        base, source = among[(words % np.uint64(len(among))).astype(np.int64)].reshape(2, -1)
        target = source if variable == ANSWER else _replace(task, base, source, variable)
        if minimal:
            source = target
        keep = allowed[target]
        keep[keep] = labels[target[keep]] != labels[base[keep]]
        drawn = np.stack([base, source, target], axis=1)[keep]
        before, found = len(found), _first(np.concatenate([found, drawn]), labels, quota)
        idle = idle + 1 if len(found) == before else 0
        if idle == PATIENCE or len(found) == quota * len(task.label_tokens):
            break
    base, source, target = found[permutation(len(found), seed=seed, purpose=purpose + "/order")].T
    return Pairs(base, source, target)


def _replace(task: Task, base: IntArray, source: IntArray, variable: str) -> IntArray:
    """The example that is the base with the source's token for the variable, or -1."""
    tokens = task.tokens[:, :-1]
    column = token_of(task, variable)
    wanted = tokens[base].copy()
    wanted[:, column] = tokens[source, column]
    known, sought = (pd.MultiIndex.from_arrays([*rows.T]) for rows in (tokens, wanted))
    return known.get_indexer(sought)


def _first(rows: NDArray[np.int64], labels: IntArray, quota: int) -> NDArray[np.int64]:
    """The first distinct rows, at most `quota` of each label of the target, in their order."""
    distinct = pd.DataFrame(rows).drop_duplicates()
    return distinct[distinct.groupby(labels[distinct[2]]).cumcount() < quota].to_numpy()
