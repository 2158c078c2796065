"""Schedules that chance lays out: an exact total on random rows, or every row by its own coin.

    Random(5000, start=0, stop=50_000, batch_size=2048, seed=0, purpose="schedule/rare")

Both are pure functions of (config, seed, task): the same on any rank and after any restart.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from data_injection.philox import raw_words, word_stream
from data_injection.schedules.base import Schedule


class Random(Schedule):
    """An exact total on distinct rows of the span [start, stop), chosen uniformly by the seed."""

    kind = "random"

    def __init__(
        self, total: int, *, start: int, stop: int, batch_size: int, seed: int, purpose: str
    ) -> None:
        self.total, self.start, self.stop, self.batch_size = total, start, stop, batch_size
        self.rate = Fraction(total, stop - start)
        self.label = f"random {start}-{stop}"
        rows = _distinct(total, (stop - start) * batch_size, seed=seed, purpose=purpose)
        counts = np.count_nonzero(rows.reshape(stop - start, batch_size), axis=1)
        self._before = np.concatenate([[0], np.cumsum(counts)])

    def before(self, step: int) -> int:
        return int(self._before[min(max(step - self.start, 0), self.stop - self.start)])

    def canonical(self) -> dict[str, Any]:
        return {"kind": "random", "total": self.total, "start": self.start, "stop": self.stop}

    @property
    def peak(self) -> int:
        return int(np.diff(self._before).max())


class Bernoulli(Schedule):
    """Every row is an instance with the same probability: the one schedule that is not exact.

    The realised count is `before`; it is stored block by block as steps are asked for, each block a
    pure function of (seed, task, block).
    """

    kind = "bernoulli"
    BLOCK = 256
    """Steps per stored block."""

    def __init__(
        self, rate: Fraction, *, start: int, stop: int | None, batch_size: int, seed: int,
        purpose: str,
    ) -> None:  # fmt: skip
        self.rate, self.start, self.stop, self.batch_size = rate, start, stop, batch_size
        self.seed, self.purpose = seed, purpose
        self.label = f"bernoulli {start}-{'end' if stop is None else stop}"
        self._threshold = min(int(rate / batch_size * 2**64), 2**64 - 1)
        self._before = np.zeros(1, dtype=np.int64)

    def before(self, step: int) -> int:
        if self.stop is not None:
            step = min(step, self.stop)
        step = max(step - self.start, 0)
        before = self._before  # one array throughout: another thread may store a longer one
        while len(before) <= step:
            block = (len(before) - 1) // self.BLOCK
            words = raw_words(
                self.BLOCK * self.batch_size, seed=self.seed, purpose=self.purpose, counter=block
            )
            counts = (words.reshape(self.BLOCK, -1) < np.uint64(self._threshold)).sum(axis=1)
            self._before = before = np.concatenate([before, before[-1] + np.cumsum(counts)])
        return int(before[step])

    def canonical(self) -> dict[str, Any]:
        return {
            "kind": "bernoulli",
            "rate_per_step": str(self.rate),
            "start": self.start,
            "stop": self.stop,
        }


def _distinct(num: int, span: int, *, seed: int, purpose: str) -> np.ndarray:
    """Which of range(span) are among `num` chosen uniformly: a mask, shape (span,).

    A pure function of the arguments: the first `num` distinct numbers of a stream of random words,
    which comes in blocks of num + 64 words, one a counter.
    """
    if 2 * num > span:  # choose the ones to leave out: rejection would hardly end
        out = _distinct(span - num, span, seed=seed, purpose=purpose)
        return np.logical_not(out, out=out)
    chosen = np.zeros(span, dtype=bool)
    counted, drawn, counter, left = 0, 0, -1, 0
    while counted < num:
        # A word chooses at most one number: as many as are missing never choose too many, and the
        # mask, which is long, need not be counted before they are drawn.
        missing = num - counted - drawn
        if missing == 0:
            counted, drawn = int(np.count_nonzero(chosen)), 0
            continue
        if left == 0:
            counter, left = counter + 1, num + 64
            bits = word_stream(seed=seed, purpose=purpose, counter=counter)
        size = min(missing, left, 2**17)
        rows = _remainder(bits.random_raw(size), span)  # the modulo's bias: span / 2^64
        left -= size
        if (
            drawn == 0 and missing * 128 < span
        ):  # so few are sooner told apart than the mask counted
            rows = np.unique(rows)
            rows = rows[~chosen[rows]]
            counted += len(rows)
        else:
            drawn += size
        chosen[rows] = True
    return chosen


def _remainder(words: np.ndarray, span: int) -> np.ndarray:
    """words % span as int64, which indexes faster; NumPy divides by one number faster, too."""
    quotients = words // np.uint64(span)
    quotients *= np.uint64(span)
    words -= quotients
    return words.view(np.int64)
