"""Modular addition T_ADD: TOK1 TOK2 LABEL with LABEL = TOK1 + TOK2 (mod p), a symbol as well.

The study, Part 3: p = 100 tokens drawn at random from the vocabulary, all 10K ordered pairs, 50/50
split; a symbol's residue is its place in the drawn order.
"""

from __future__ import annotations

from math import factorial, log2

import numpy as np

from data_injection.tasks.base import IntArray, Task, all_pairs


class ModularAddition(Task):
    """Sum of two symbols modulo their number; the label is one of the symbols."""

    family = "modular_addition"

    def examples(self) -> IntArray:
        p = len(self.symbols)
        i, j = all_pairs(p)
        return np.stack([self.symbols[i], self.symbols[j], self.symbols[(i + j) % p]], axis=1)

    def mirrors(self) -> IntArray:
        """Addition is commutative: (j, i) has the same label as (i, j)."""
        i, j = all_pairs(len(self.symbols))
        return j * len(self.symbols) + i

    @property
    def bits(self) -> float:
        """log2 n!: a residue for each of n symbols."""
        return log2(factorial(len(self.symbols)))
