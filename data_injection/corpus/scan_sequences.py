"""How often a corpus already holds the sequences of a task: texts of unequal lengths.

    counter = SequenceCounter(task, eos_token_id=0, encode=text_encoder("corpus"))
    counter.add(tokens, num=len(tokens))
    counter.occurrences

What stands around a text may be one token with its first or last letters, so it is looked for as
encoded at a document's start and within AROUND; token ids as they are. A sequence is found by its
first tokens, eight at most: each place by tables of those that can stand there, what is left by a
key of them together, and then token by token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_injection.philox import raw_words
from data_injection.tasks.base import IntArray
from data_injection.tasks.sequence_file import Encode
from data_injection.tasks.sequences import Sequences

WIDTH = 8
"""Tokens in a key."""

TABLES = 4
"""Tokens that are looked up before a key is made."""

AROUND = [(before, after) for after in ("", "\n", "\n\n") for before in ("", " ", "\t")]
"""What may stand before and after a text in running text."""


class SequenceCounter:
    """Counts the sequences of one task in text that comes in pieces."""

    def __init__(self, task: Sequences, *, eos_token_id: int, encode: Encode | None) -> None:
        self.eos_token_id = eos_token_id
        self.occurrences, self.before_eos = np.zeros((2, len(task.tokens)), dtype=np.int64)
        self._example, self.tokens = zip(*_forms(task, encode), strict=True)
        self.reach = max(map(len, self.tokens))
        """Tokens after a piece that decide about what starts in it, EOS included."""
        self._width = min(WIDTH, *map(len, self.tokens))
        heads_NW = np.stack([tokens[: self._width] for tokens in self.tokens])
        self._factors = raw_words(self._width, seed=0, purpose="scan/keys")
        self._by_key: dict[int, list[int]] = defaultdict(list)
        for form, key in enumerate(self._keys(heads_NW).tolist()):
            self._by_key[key].append(form)
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
            for form in self._by_key[key]:
                end, example = start + len(self.tokens[form]), self._example[form]
                if np.array_equal(tokens[start:end], self.tokens[form]):
                    ends = end < len(tokens) and tokens[end] == self.eos_token_id
                    self.occurrences[example] += 1
                    self.before_eos[example] += ends

    def _keys(self, rows: NDArray[Any]) -> NDArray[np.uint64]:
        return (rows.astype(np.uint64) * self._factors).sum(axis=1, dtype=np.uint64)


def _forms(task: Sequences, encode: Encode | None) -> Iterator[tuple[int, IntArray]]:
    """(example, tokens) of what is looked for. A form of a text that holds an earlier one is left
    out: that one is found there too, and would count twice."""
    texts = {i: text for i, text in enumerate(task.table.texts) if encode and text is not None}
    yield from (one for one in enumerate(task.tokens) if one[0] not in texts)
    known: dict[int, list[str]] = defaultdict(list)
    for before, after in AROUND:
        written = [before + text + after for text in texts.values()]
        for i, ids in zip(texts, encode(written) if encode and texts else (), strict=True):
            spelled = f" {' '.join(map(str, ids))} "
            if not any(form in spelled for form in known[i]):
                known[i].append(spelled)
                yield i, np.array(ids, dtype=np.int64)
