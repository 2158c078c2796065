"""Orthogonal iteration: the student with optimal decoders, every width in one run.

    reads = orthogonal_iteration(mixture, phases, rate=.5, seed=0, max_width=256, batch_size=64)
    reads[-1][:, N - 1]                   # leverage of each feature at width N

U <- qf((I + 2 eta Mhat_t) U) is gradient descent on the encoder under optimal decoders, up to a
scale. In the feature basis Mhat_t is diagonal, so the steps commute and
span U_T = span(diag(exp sum_t log(1 + 2 eta f_k(t) lambda_kj)) U_0): exact, cheap, and nested, the
first n columns of one QR being the width-n run. For the same reason it agrees with the theory
almost by construction (near-tautological): the genuine test is joint SGD (theory/lab/student.py).
fp64.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    read_at: Sequence[int] = (),
    start: Floats | None = None,
) -> list[Floats]:
    """Leverages (F, max_width) after each of the steps `read_at`; by default after the last.

    Entry [f, n - 1] is q_f = b_f^T P_U b_f of the width-n student.

    Args:
        batch_size: task shares are those of a drawn batch; None takes the frequencies themselves.
        read_at: numbers of steps taken, ascending, up to the phases' length.
        start: encoder (D, max_width) to begin with; default Gaussian, from the seed.
    Raises ValueError if max_width is above the input dimensions, or read_at is not ascending.
    """
    if not 1 <= max_width <= mixture.num_inputs:
        raise ValueError(
            f"max_width must be in [1, {mixture.num_inputs}], the input dimensions, got {max_width}"
        )
    wanted = list(read_at) or [phases.num_steps]
    if sorted(wanted) != wanted or not 0 <= wanted[0] <= wanted[-1] <= phases.num_steps:
        raise ValueError(f"read_at must ascend within 0..{phases.num_steps}, got {wanted}")
    if start is None:
        rng = np.random.default_rng([seed, 2])
        start = rng.standard_normal((max_width, mixture.num_inputs)).T
    basis, _ = np.linalg.qr(start)
    pending = np.zeros(mixture.num_features)
    reads: list[Floats] = []
    taken = 0
    for growth in _growths(mixture, phases, rate=rate, seed=seed, batch_size=batch_size):
        while wanted and wanted[0] <= taken + len(growth):
            part, growth = np.split(growth, [wanted.pop(0) - taken])
            taken += len(part)
            basis, pending = _grow(basis, pending, part)
            basis, pending = _orthonormal(basis, pending), np.zeros_like(pending)
            reads.append(np.cumsum(basis[: mixture.num_features] ** 2, axis=1))
        if not wanted:
            break
        taken += len(growth)
        basis, pending = _grow(basis, pending, growth)
    reads += [np.cumsum(basis[: mixture.num_features] ** 2, axis=1) for _ in wanted]  # no steps
    return reads


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
