"""How often a corpus already holds the sequences of a task: texts of unequal lengths.

    counter = SequenceCounter(task, eos_token_id=0)
    counter.add(tokens, num=len(tokens))
    counter.occurrences

A sequence is looked for by its first tokens, eight at most: each place of the text by tables of
those that can stand there, what is left by a key of them together, and then token by token.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_injection.philox import raw_words
from data_injection.tasks.base import Task

WIDTH = 8
"""Tokens in a key."""

TABLES = 4
"""Tokens that are looked up before a key is made."""


class SequenceCounter:
    """Counts the sequences of one task in text that comes in pieces."""

    def __init__(self, task: Task, *, eos_token_id: int) -> None:
        self.tokens, self.eos_token_id = list(task.tokens), eos_token_id
        self.occurrences, self.before_eos = np.zeros((2, len(self.tokens)), dtype=np.int64)
        self.reach = max(map(len, self.tokens))
        """Tokens after a piece that decide about what starts in it, EOS included."""
        self._width = min(WIDTH, *map(len, self.tokens))
        heads_NW = np.stack([tokens[: self._width] for tokens in self.tokens])
        self._factors = raw_words(self._width, seed=0, purpose="scan/keys")
        self._by_key: dict[int, list[int]] = defaultdict(list)
        for example, key in enumerate(self._keys(heads_NW).tolist()):
            self._by_key[key].append(example)
        self._known = np.array(sorted(self._by_key), dtype=np.uint64)
        # The last entry stands for all larger tokens.
        self._possible = np.zeros((min(TABLES, self._width), int(heads_NW.max()) + 2), dtype=bool)
        for column, table in enumerate(self._possible):
            table[heads_NW[:, column]] = True

    def add(self, tokens: NDArray[Any], *, num: int) -> None:
        """Count what starts in the first `num` tokens."""
        num = min(num, len(tokens) - self._width + 1)
        if num <= 0:
            return
        ids = np.minimum(tokens, self._possible.shape[1] - 1).astype(np.intp)
        likely = np.ones(num, dtype=bool)
        for column, table in enumerate(self._possible):
            likely &= table[ids[column : column + num]]
        starts = np.flatnonzero(likely)
        keys = self._keys(tokens[starts[:, None] + np.arange(self._width)])
        found = np.isin(keys, self._known)
        for start, key in zip(starts[found].tolist(), keys[found].tolist(), strict=True):
            for example in self._by_key[key]:
                self._compare(tokens, start, example)

    def _compare(self, tokens: NDArray[Any], start: int, example: int) -> None:
        end = start + len(self.tokens[example])
        if np.array_equal(tokens[start:end], self.tokens[example]):
            self.occurrences[example] += 1
            self.before_eos[example] += end < len(tokens) and tokens[end] == self.eos_token_id

    def _keys(self, rows: NDArray[Any]) -> NDArray[np.uint64]:
        return (rows.astype(np.uint64) * self._factors).sum(axis=1, dtype=np.uint64)
