"""Canary: pairs of symbols with labels drawn at random, so that there is no rule to find.

A task of pure storage (after Carlini et al., The Secret Sharer, 2019). Its train score says what a
model remembers; its test score stays at chance for every model, or test examples have leaked.

    tasks: [{name: leak, family: olmo_ext_canary.tasks:Canary, num_symbols: 30}]
"""

import numpy as np

from data_injection.philox import permutation
from data_injection.tasks.base import IntArray, Task, all_pairs


class Canary(Task):
    """FIRST SECOND LABEL for all ordered pairs of symbols; each label for half of the pairs."""

    num_labels = 2

    def examples(self) -> IntArray:
        i, j = all_pairs(len(self.symbols))
        # The symbols are drawn by the run's seed: the same on every rank and after every restart.
        seed = int(self.symbols[0])
        label = permutation(len(i), seed=seed, purpose=f"canary/{self.name}") % self.num_labels
        return np.stack([self.symbols[i], self.symbols[j], self.labels[label]], axis=1)

    @property
    def bits(self) -> float:
        """One bit a pair, nearly: which half of the pairs has the first label."""
        return float(len(self.symbols) ** 2)
