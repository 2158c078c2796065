"""Modes that were planted are counted, all of them and no others."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from data_injection.tasks.modular_addition import fourier_modes
from eval.features.activations import SymbolStates
from eval.features.probes import Probe, probe


def states(*layers: NDArray) -> SymbolStates:
    return SymbolStates(np.stack(layers), np.arange(len(layers[0])))


def planted(
    frequencies: list[int],
    *,
    modulus: int = 100,
    width: int = 64,
    scale: float = 2.0,
    seed: int = 0,
) -> NDArray:
    """Noise and, for each frequency, its two waves at a random phase along random directions."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(modulus, width))
    for frequency in frequencies:
        angle = 2 * np.pi * frequency * np.arange(modulus) / modulus + rng.uniform(0, 2 * np.pi)
        plane = np.linalg.qr(rng.normal(size=(width, 2)))[0] * np.sqrt(width / 2)
        hidden += scale * np.stack([np.cos(angle), np.sin(angle)], axis=1) @ plane.T
    return hidden


def modes(*layers: NDArray) -> Probe:
    """Unit k - 1 is frequency k of the residue, which is a symbol's place."""
    return probe(states(*layers), fourier_modes(len(layers[0])), seed=0)


def frequencies_of(found: Probe) -> list[int]:
    return (found.units + 1).tolist()


def test_100_symbols_have_49_pairs_and_the_nyquist_mode() -> None:
    basis = fourier_modes(100)
    assert basis.shape == (100, 50, 2)
    flat = np.concatenate([basis[..., 0], basis[:, :49, 1]], axis=1)
    gram = flat.T @ flat
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-9)
    assert (basis[:, 49, 1] == 0).all()
    assert basis[:, 49, 0].tolist() == [1, -1] * 50
    np.testing.assert_allclose(flat.sum(axis=0), 0, atol=1e-9)


def test_an_odd_prime_has_pairs_alone() -> None:
    assert fourier_modes(31).shape == (31, 15, 2)
    np.testing.assert_allclose((fourier_modes(31) ** 2).sum(axis=0), 15.5)


@pytest.mark.parametrize("width", [32, 64, 128])
@pytest.mark.parametrize("frequencies", [[7], [3, 50], [1, 2, 20, 31, 49], [*range(4, 40, 4)]])
def test_exactly_the_planted_modes_are_counted(frequencies: list[int], width: int) -> None:
    found = modes(planted(frequencies, width=width))
    assert frequencies_of(found) == frequencies


def test_a_prime_modulus_counts_its_planted_modes() -> None:
    assert frequencies_of(modes(planted([2, 11, 28], modulus=59))) == [2, 11, 28]


@pytest.mark.parametrize("width", [16, 32, 64, 128, 256, 512])
def test_noise_has_no_modes(width: int) -> None:
    layers = np.random.default_rng(width).normal(size=(3, 100, width))
    assert frequencies_of(modes(*layers)) == []


def test_layers_are_counted_apart_and_joined_in_the_union() -> None:
    found = modes(planted([3, 5]), planted([], seed=1), planted([5, 9, 11], seed=2))
    assert found.present.sum(axis=1).tolist() == [2, 0, 3]
    assert frequencies_of(found) == [3, 5, 9, 11]


def test_a_modes_phase_does_not_matter() -> None:
    hidden = planted([6], width=16)
    r2 = [
        probe(states(hidden), fourier_modes(100)[(np.arange(100) + shift) % 100], seed=0).r2
        for shift in (0, 13, 50)
    ]
    np.testing.assert_allclose(r2[0], r2[1], atol=1e-5)
    np.testing.assert_allclose(r2[0], r2[2], atol=1e-5)


def test_several_symbols_may_share_a_residue() -> None:
    waves = planted([2], modulus=12, width=16, scale=3.0)
    residues = np.arange(96) % 12
    hidden = waves[residues] + 0.5 * np.random.default_rng(1).normal(size=(96, 16))
    # Symbols of one residue are copies of each other: every mode of the residue can be told.
    found = probe(states(hidden), fourier_modes(12)[residues], seed=0)
    assert 2 in frequencies_of(found)


def test_the_order_of_the_residues_is_what_makes_a_mode() -> None:
    shuffled = np.random.default_rng(0).permutation(planted([3, 5, 9]))
    assert frequencies_of(modes(shuffled)) == []
