"""Fourier modes: which frequencies of their residue the symbols' representations carry.

    found = find_modes(symbol_states(read, task), np.arange(31), modulus=31, seed=0)
    found.count, found.frequencies

A mode is the pair cos, sin of 2 pi k r / modulus (for an even modulus also the Nyquist mode, which
has no sine). It counts at a layer when the held-out R^2 of the pair exceeds the 99th percentile of
the largest R^2 that permuted residues reach at any frequency and layer, so that noise counts 0 in
99 measurements of 100; the count over layers is of their union (the study, Fig. 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_injection.tasks.base import IntArray
from data_injection.tasks.modular_addition import fourier_modes
from eval.features.activations import SymbolStates
from eval.features.probes import Probe, probe


@dataclass(frozen=True)
class Modes:
    """The modes found in some representations."""

    probe: Probe
    """Units are frequencies: unit k - 1 is frequency k."""

    @property
    def frequencies(self) -> NDArray[np.int64]:
        """Frequencies present at one layer or more, ascending."""
        return self.probe.units + 1

    @property
    def count(self) -> int:
        return len(self.frequencies)

    @property
    def per_layer(self) -> NDArray[np.int64]:
        """Number of modes at each layer, shape (L,)."""
        return self.probe.present.sum(axis=1)


def find_modes(
    states: SymbolStates, residues_S: IntArray, *, modulus: int, seed: int, **options: Any
) -> Modes:
    """Modes of the residues, in [0, modulus), that stand beside the rows of `states`.

    For modular addition, where a symbol's residue is its place in `task.symbols`, they are
    arange(modulus), and this is what the features callback counts. `options` are `probe`'s.
    """
    return Modes(probe(states, fourier_modes(modulus)[residues_S], seed=seed, **options))
