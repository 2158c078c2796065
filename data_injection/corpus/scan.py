"""How often a corpus already holds the tasks' tokens and examples, before anything is injected.

    scan = scan_corpus(["corpus/tokens-00000.npy"], plan.tasks, dtype="uint16", eos_token_id=0)
    scan.tasks[0].symbols.min(), scan.tasks[0].occurrences.sum()

One pass over the token files in pieces of a few hundred thousand tokens, at more than half the
speed of a bincount over the same pieces (benchmarks/plan.py) and in memory that does not grow with
the corpus. Every place at which an example could start is looked at once; a piece is read with the
tokens after it, so that none is lost at its end. No example reaches from one file into the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from data_injection.corpus.scan_sequences import SequenceCounter
from data_injection.philox import raw_words
from data_injection.tasks.base import IntArray, Task
from data_injection.tasks.sequence_file import Encode
from data_injection.tasks.sequences import Sequences

Tokens = NDArray[np.unsignedinteger]

PIECE = 2**17
"""Tokens at a time: the buffers of one piece stay in a core's cache, larger pieces are slower."""

WINDOW = 2**16
"""Tokens of one stretch of a sample."""

DENSE = 20
"""Counting every token is faster than picking out the tasks' own from one in so many on."""

KEPT = 2**16
"""Candidates that are looked at together."""

LOOKED_AT = 4
"""Tokens of a longer example that the first, rough look compares."""


@dataclass(frozen=True)
class TaskCounts:
    """What the scanned tokens hold of one task."""

    name: str
    symbols: IntArray
    """Occurrences of each symbol, in the order of `task.symbols`."""

    labels: IntArray
    """Occurrences of each label token of the task's own; empty if the labels are symbols."""

    occurrences: IntArray
    """Occurrences of each example as a run of tokens, in the order of `task.tokens`."""

    before_eos: IntArray
    """Of them those that EOS follows, which are whole instances as they are injected."""


@dataclass(frozen=True)
class CorpusScan:
    """Counts over a corpus, or over the evenly spread sample that was scanned."""

    num_tokens: int
    """Of the corpus."""

    num_scanned: int
    """Tokens counted; an example is counted where it starts."""

    tasks: tuple[TaskCounts, ...]


def scan_corpus(
    files: Sequence[str | Path | Tokens], tasks: Sequence[Task], *, dtype: DTypeLike,
    eos_token_id: int, encode: Encode | None = None, max_tokens: int | None = None,
    piece: int = PIECE, progress: Callable[[int], object] = lambda num: None,
) -> CorpusScan:  # fmt: skip
    """Count the tasks' tokens and examples in raw token files.

    Args:
        files: headerless token files, or arrays, in the order of the stream.
        tasks: whose symbols, labels and examples are looked for.
        dtype: of the files, an unsigned integer type.
        encode: the corpus's tokenizer, for the forms of texts; None looks for their tokens alone.
        max_tokens: scan an evenly spread sample of so many tokens instead of all.
        piece: tokens at a time; the counts do not depend on it.
        progress: called with the number of tokens of every piece that is done.
    """
    total = sum(file_lengths(files, dtype=dtype))
    labelled = [task for task in tasks if task.has_label]
    counter = _Counter(labelled, eos_token_id=eos_token_id, room=min(piece, total))
    sequences = {
        task.name: SequenceCounter(task, eos_token_id=eos_token_id, encode=encode)
        for task in tasks
        if isinstance(task, Sequences)
    }
    num_scanned = 0
    for _, tokens, start, stop in pieces(files, dtype=dtype, max_tokens=max_tokens, piece=piece):
        if labelled:
            # A slice ends with its file, so that no example is made of two files' tokens.
            counter.add(tokens[start : stop + counter.reach], num=stop - start)
        for one in sequences.values():
            one.add(tokens[start : stop + one.reach], num=stop - start)
        num_scanned += stop - start
        progress(stop - start)
    counts = {count.name: count for count in counter.result(labelled)}
    none = np.zeros(0, dtype=np.int64)
    for name, one in sequences.items():
        counts[name] = TaskCounts(name, none, none, one.occurrences, one.before_eos)
    in_order = tuple(counts[task.name] for task in tasks)
    return CorpusScan(num_tokens=total, num_scanned=num_scanned, tasks=in_order)


def file_lengths(files: Sequence[str | Path | Tokens], *, dtype: DTypeLike) -> list[int]:
    """Tokens in each of some raw token files or arrays."""
    size = np.dtype(dtype).itemsize
    return [len(f) if isinstance(f, np.ndarray) else Path(f).stat().st_size // size for f in files]


def pieces(
    files: Sequence[str | Path | Tokens], *, dtype: DTypeLike, max_tokens: int | None, piece: int
) -> Iterator[tuple[int, Tokens, int, int]]:
    """(number of the file, its tokens, start, stop) of every stretch to scan, as `scan_corpus`."""
    opened = -1
    lengths = file_lengths(files, dtype=dtype)
    for index, start, stop in _stretches(lengths, max_tokens=max_tokens, piece=piece):
        if index != opened:
            file, opened = files[index], index
            # An empty file cannot be mapped, and has no stretch either.
            tokens = (
                file if isinstance(file, np.ndarray) else np.memmap(file, dtype=dtype, mode="r")
            )
        yield index, tokens, start, stop


def _stretches(
    lengths: Sequence[int], *, max_tokens: int | None, piece: int
) -> Iterator[tuple[int, int, int]]:
    """(file, start, stop) of every stretch to scan, cut at file ends and into pieces."""
    total = sum(lengths)
    ends = np.cumsum([0, *lengths]).tolist()
    for begin, end in _windows(total, max_tokens):
        for index, (low, high) in enumerate(pairwise(ends)):
            for start in range(max(begin, low), min(end, high), piece):
                yield index, start - low, min(start + piece, end, high) - low


def _windows(total: int, max_tokens: int | None) -> Iterator[tuple[int, int]]:
    """The whole stream, or evenly spread stretches of it with `max_tokens` tokens in all."""
    if max_tokens is None or max_tokens >= total:
        yield 0, total
        return
    num = -(-max_tokens // WINDOW)
    for window in range(num):
        start = window * total // num
        # Differences of rounded multiples: they differ by one at most and add up to max_tokens.
        share = (window + 1) * max_tokens // num - window * max_tokens // num
        yield start, start + share


class _Counter:
    """Tables over the vocabulary, and the counts so far.

    A corpus has billions of places and a handful of examples, so a place passes ever dearer looks:
    a table of owners, an AND of their bits over the run, the last token, a key, the tokens. Each
    may let a false one pass and never drops a true one; only the last decides.
    """

    def __init__(self, tasks: Sequence[Task], *, eos_token_id: int, room: int) -> None:
        self.eos_token_id = eos_token_id
        # Its symbols and labels too: some may be in no example, and are counted all the same.
        own = [np.concatenate([t.symbols, t.labels, t.tokens.ravel()]) for t in tasks]
        # One entry beyond the largest token of any task stands for all the others.
        self.top = 1 + max((int(tokens.max()) for tokens in own), default=0)
        self.owners = np.zeros(self.top + 1, dtype=np.uint8)
        """A bit for each task, modulo 8, that uses the token."""
        for index, tokens in enumerate(own):
            self.owners[tokens] |= np.uint8(1 << index % 8)
        by_length = sorted({task.length for task in tasks})
        self.patterns = {n: _Patterns([t for t in tasks if t.length == n]) for n in by_length}
        self.reach = max(by_length, default=0)
        """Tokens after a piece that decide about the examples that start in it, EOS included."""
        self.counts = np.zeros(self.top + 1, dtype=np.int64)
        room += self.reach
        self._ids, self._mask = np.empty(room, dtype=np.intp), np.empty(room, dtype=bool)
        self._owners, self._common = np.empty((2, room), dtype=np.uint8)

    def add(self, tokens: Tokens, *, num: int) -> None:
        """Count the first `num` tokens and the examples that start there."""
        ids, owners, mask = (a[: len(tokens)] for a in (self._ids, self._owners, self._mask))
        if tokens.dtype.itemsize > 2:  # a wild id must not ask for a table of its size
            np.minimum(tokens, self.top, out=ids, casting="unsafe")
        else:
            np.copyto(ids, tokens, casting="unsafe")
        # Written into buffers made once: a new array of each piece costs more than the arithmetic.
        # Clipped, every token that is no task's own reads the last entry, which has no owner; and
        # "clip" is the mode that writes into `out` without a copy.
        np.take(self.owners, ids, out=owners, mode="clip")
        if np.count_nonzero(owners) * DENSE > len(tokens):
            counted = ids[:num]
        else:
            np.not_equal(owners, 0, out=mask)
            counted = ids[np.flatnonzero(mask[:num])]
        self.counts += np.bincount(counted, minlength=self.top + 1)[: self.top + 1]
        for length, patterns in self.patterns.items():
            starts = self._candidates(owners, length, num=min(num, len(ids) - length + 1))
            if len(starts):
                # Sooner looked up than a key.
                labels = np.take(patterns.is_label, ids[starts + length - 1], mode="clip")
                self._match(tokens, starts[labels], length, patterns)

    def _candidates(self, owners: NDArray[Any], length: int, *, num: int) -> IntArray:
        """Which of the first `num` places begin a run of tokens of one task; most do not."""
        if num <= 0:
            return np.zeros(0, dtype=np.int64)
        # All tokens of an example have one task in common, so its bit survives the AND. Tasks that
        # share a bit (more than 8) give false candidates, never a missed one.
        common, mask = self._common[:num], self._mask[:num]
        np.bitwise_and(owners[:num], owners[length - 1 :][:num], out=common)
        for column in range(1, min(length - 1, LOOKED_AT - 1)):
            common &= owners[column : column + num]
        np.not_equal(common, 0, out=mask)
        return np.flatnonzero(mask)

    def _match(self, tokens: Tokens, starts: IntArray, length: int, patterns: _Patterns) -> None:
        """Keep the candidates, with the token after each, for looking at many together."""
        # The last token of a file has none after it, and stands in for itself until the AND.
        after = np.minimum(starts + length, len(tokens) - 1)
        ends = (tokens[after] == self.eos_token_id) & (after == starts + length)
        patterns.keep(tokens[starts[:, None] + np.arange(length)], before_eos=ends)

    def result(self, tasks: Sequence[Task]) -> tuple[TaskCounts, ...]:
        for patterns in self.patterns.values():
            patterns.count()
        return tuple(
            TaskCounts(
                name=task.name,
                symbols=self.counts[task.symbols],
                labels=self.counts[task.labels],
                occurrences=self.patterns[task.length].of(task, before_eos=False),
                before_eos=self.patterns[task.length].of(task, before_eos=True),
            )
            for task in tasks
        )


class _Patterns:
    """The distinct examples of one length: found by a 64-bit key, then compared token by token."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        rows = np.concatenate([task.tokens for task in tasks])
        self.is_label = np.zeros(int(rows.max()) + 2, dtype=bool)
        """Whether an example may end in a token; the last entry stands for all larger ones."""
        self.is_label[rows[:, -1]] = True
        attempt = 0
        while True:
            self._factors = raw_words(rows.shape[1], seed=attempt, purpose="scan/keys")
            keys = self._key(rows)
            self._keys = np.unique(keys)
            inverse = np.searchsorted(self._keys, keys)
            self._rows = np.zeros((len(self._keys), rows.shape[1]), dtype=np.int64)
            self._rows[inverse] = rows
            if np.array_equal(self._rows[inverse], rows):
                break
            attempt += 1  # two examples with one key: as good as never
        ends = np.cumsum([len(task.tokens) for task in tasks])[:-1]
        self._index = dict(zip([task.name for task in tasks], np.split(inverse, ends), strict=True))
        """Which pattern each example of a task is; two tasks may share some."""
        self._counts = np.zeros((2, len(self._keys)), dtype=np.int64)
        self._kept: list[tuple[NDArray[Any], NDArray[np.bool_]]] = []
        self._num_kept = 0

    def _key(self, rows: NDArray[Any]) -> NDArray[np.uint64]:
        # A multilinear hash: equal rows have equal keys, whatever the type of the file's tokens.
        return (rows.astype(np.uint64) * self._factors).sum(axis=1, dtype=np.uint64)

    def find(self, rows: NDArray[Any]) -> IntArray:
        """The pattern that each row is, or -1; rows has shape (n, length)."""
        keys = self._key(rows)
        # The key only says where to look: a host row that shares one with an example is told apart
        # by the tokens.
        found = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where((self._rows[found] == rows).all(axis=1), found, -1)

    def keep(self, rows: NDArray[Any], *, before_eos: NDArray[np.bool_]) -> None:
        """Rows that may be patterns; a piece has so few that the calls cost more than the rows."""
        self._kept.append((rows, before_eos))
        self._num_kept += len(rows)
        if self._num_kept >= KEPT:
            self.count()

    def count(self) -> None:
        """Count those kept that are patterns."""
        if not self._kept:
            return
        rows, before_eos = (np.concatenate(part) for part in zip(*self._kept, strict=True))
        self._kept, self._num_kept = [], 0
        found = self.find(rows)
        for index, patterns in enumerate((found[found >= 0], found[(found >= 0) & before_eos])):
            self._counts[index] += np.bincount(patterns, minlength=len(self._keys))

    def of(self, task: Task, *, before_eos: bool) -> IntArray:
        """Occurrences of each example of a task."""
        return self._counts[int(before_eos)][self._index[task.name]]
