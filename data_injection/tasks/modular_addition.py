"""Modular addition T_ADD: TOK1 TOK2 LABEL with LABEL = TOK1 + TOK2 (mod p), a symbol as well.

The study, Part 3: p = 100 tokens drawn at random from the vocabulary, all 10K ordered pairs, 50/50
split; a symbol's residue is its place in the drawn order.
"""

from __future__ import annotations

from math import factorial, log2

import numpy as np

from data_injection.tasks.base import FloatArray, IntArray, Task, all_pairs


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

    def targets(self) -> dict[str, FloatArray]:
        """fourier: the residue's modes, (n, n // 2, 2); unit k - 1 is frequency k."""
        return {"fourier": fourier_modes(len(self.symbols))}

    @property
    def bits(self) -> float:
        """log2 n!: a residue for each of n symbols."""
        return log2(factorial(len(self.symbols)))


def fourier_modes(modulus: int) -> FloatArray:
    """cos and sin of 2 pi k r / modulus by residue r and frequency k = 1 .. modulus // 2.

    Shape (modulus, modulus // 2, 2). For an even modulus the last frequency is the Nyquist mode,
    (-1)^r, whose sine is zero everywhere: 49 pairs and it for 100 symbols. The constant is no mode.
    """
    residue, frequency = np.arange(modulus), np.arange(1, modulus // 2 + 1)
    # Reduced in whole numbers first: the Nyquist sine is then zero to the last bit or two.
    angle = 2 * np.pi / modulus * (np.multiply.outer(residue, frequency) % modulus)
    modes = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    modes[np.abs(modes) < 1e-12] = 0.0
    return modes
