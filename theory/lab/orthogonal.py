"""Orthogonal iteration: the student with optimal decoders, every width in one run.

    spanned = orthogonal_iteration(mixture, phases, rate=.5, seed=0, max_width=256, batch_size=64)
    spanned[:, N - 1]                     # leverage of each feature at width N

U <- qf((I + 2 eta Mhat_t) U) is gradient descent on the encoder under optimal decoders, up to a
scale. In the feature basis Mhat_t is diagonal, so the steps commute and
span U_T = span(diag(exp sum_t log(1 + 2 eta f_k(t) lambda_kj)) U_0): exact, cheap, and nested, the
first n columns of one QR being the width-n run. For the same reason it agrees with the theory
almost by construction (near-tautological): the genuine test is joint SGD (theory/lab/student.py).
fp64.
"""

from __future__ import annotations

import numpy as np

from theory.mixture import Floats, Mixture
from theory.stream import CHUNK, Phases, draw_tasks, shares

RANGE = 18.0
"""Log growth between two QRs: e^18 leaves fp64 eight digits for the slowest direction."""


def orthogonal_iteration(
    mixture: Mixture,
    phases: Phases,
    *,
    rate: float,
    seed: int,
    max_width: int,
    batch_size: int | None = None,
    start: Floats | None = None,
) -> Floats:
    """Leverages (F, max_width) after the last step.

    Entry [f, n - 1] is q_f = b_f^T P_U b_f of the width-n student.

    Args:
        batch_size: task shares are those of a drawn batch; None takes the frequencies themselves.
        start: encoder (D, max_width) to begin with; default Gaussian, from the seed.
    Raises ValueError if max_width is above the input dimensions.
    """
    if not 1 <= max_width <= mixture.num_inputs:
        raise ValueError(
            f"max_width must be in [1, {mixture.num_inputs}], the input dimensions, got {max_width}"
        )
    if start is None:
        start = np.random.default_rng([seed, 2]).standard_normal((max_width, mixture.num_inputs)).T
    basis, _ = np.linalg.qr(start)
    pending = np.zeros(mixture.num_features)
    for growth in _growths(mixture, phases, rate=rate, seed=seed, batch_size=batch_size):
        basis, pending = _grow(basis, pending, growth)
    basis = _orthonormal(basis, pending)
    return np.asarray(np.cumsum(basis[: mixture.num_features] ** 2, axis=1))


def _growths(
    mixture: Mixture, phases: Phases, *, rate: float, seed: int, batch_size: int | None
) -> list[Floats]:
    """log(1 + 2 eta f lambda) (steps, F), in chunks of steps."""

    def growth(share: Floats) -> Floats:
        per_feature = share[:, :, None] * mixture.spectra
        return np.asarray(np.log1p(2 * rate * per_feature).reshape(len(share), -1))

    if batch_size is None:
        kinds = growth(phases.distributions)
        starts = range(0, phases.num_steps, CHUNK)
        return [kinds[phases.of_step[start : start + CHUNK]] for start in starts]
    tasks = draw_tasks(phases, batch_size=batch_size, seed=seed)
    return [growth(shares(chunk, mixture.num_tasks)) for chunk in tasks]


def _grow(basis: Floats, pending: Floats, growth: Floats) -> tuple[Floats, Floats]:
    """Add steps' growth to what is pending, with a QR each time it has spread over RANGE."""
    while len(growth):
        reached = np.maximum.accumulate((pending + np.cumsum(growth, axis=0)).max(axis=1))
        fit = max(1, int(np.searchsorted(reached, RANGE, side="right")))
        pending = pending + growth[:fit].sum(axis=0)
        growth = growth[fit:]
        if len(growth):
            basis, pending = _orthonormal(basis, pending), np.zeros_like(pending)
    return basis, pending


def _orthonormal(basis: Floats, pending: Floats) -> Floats:
    scaled = basis.copy()
    scaled[: len(pending)] *= np.exp(pending)[:, None]
    return np.asarray(np.linalg.qr(scaled)[0])
