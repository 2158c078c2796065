"""Comparison T_CMP: TOK1 TOK2 LABEL, where LABEL says how TOK1 stands to TOK2 in a hidden order.

The study, Part 3: TOK1 and TOK2 from 100 tokens drawn at random from the vocabulary, all 10K
ordered pairs, 50/50 split. The order is the (random) order of the drawn symbols. Three
labels: less, equal, greater; the majority level of 100 symbols is .495 (4,950 / 100 / 4,950).
"""

from __future__ import annotations

from math import factorial, log2

import numpy as np

from data_injection.tasks.base import FloatArray, IntArray, Task, all_pairs


class Comparison(Task):
    """Which of two symbols comes first in a hidden global order; labels (less, equal, greater)."""

    family = "comparison"
    num_labels = 3

    def examples(self) -> IntArray:
        i, j = all_pairs(len(self.symbols))
        label = np.sign(i - j) + 1
        return np.stack([self.symbols[i], self.symbols[j], self.labels[label]], axis=1)

    def mirrors(self) -> IntArray:
        """(j, i) is (i, j) with the label turned round."""
        i, j = all_pairs(len(self.symbols))
        return j * len(self.symbols) + i

    def targets(self) -> dict[str, FloatArray]:
        """order: a symbol's rank, (n, 1)."""
        return {"order": np.arange(len(self.symbols), dtype=np.float64)[:, None]}

    @property
    def bits(self) -> float:
        """log2 n!: an order of n symbols."""
        return log2(factorial(len(self.symbols)))
