"""How strongly a set of tasks can pull on the encoder: Theorem 4, Corollary 5, and the residual.

    bound = gradient_bounds(basis, mixture, tasks=range(8))

For an encoder with orthonormal columns U and decoders at their optimum, the gradient of a set S of
tasks is G_S = -2 (I - P) M_S U with M_S = sum_{k in S} pi_k C_k. All its size comes from R_S =
Tr((I - P) M_S), the variance of S that the encoder leaves unexplained: ||G_S|| <= 2 sqrt(R_S ...).
So common tasks pull less the more of them a wider encoder holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from theory.mixture import Floats, Mixture
from theory.utility import ranks


@dataclass(frozen=True)
class GradientBounds:
    """||G_S||_F and what bounds it, for one encoder and one set of tasks."""

    norm: float
    """||G_S||_F itself."""

    residual: float
    """R_S."""

    split: float
    """2 sqrt(R_S Tr(P M_S)): an equality where M_S has rank one."""

    operator: float
    """2 sqrt(||M_S||_op R_S)."""

    trace: float
    """2 sqrt(R_S Tr M_S), the loosest: what is left if nothing is known of P."""

    residual_norm: float
    """2 ||(I - P) M_S||_F."""


def covariance(mixture: Mixture, tasks: Iterable[int]) -> Floats:
    """Diagonal (F,) of M_S = sum_{k in S} pi_k C_k in the feature basis."""
    chosen = np.zeros(mixture.num_tasks, dtype=bool)
    chosen[list(tasks)] = True
    return np.asarray((mixture.utilities * chosen[:, None]).ravel())


def gradient_bounds(basis: Floats, mixture: Mixture, *, tasks: Iterable[int]) -> GradientBounds:
    """Theorem 4 at an encoder.

    Args:
        basis: (D, N), orthonormal columns; rows 0..F-1 are the features. Raises ValueError if the
            columns are not orthonormal: the bounds are stated for those.
    """
    if not np.allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-6):
        raise ValueError("basis must have orthonormal columns; take the Q of the encoder's QR")
    moment = covariance(mixture, tasks)
    rows = basis[: len(moment)]
    moved = moment[:, None] * rows  # M_S U; rows of nuisance inputs are zero
    kept = float((moment * (rows**2).sum(axis=1)).sum())
    residual = max(float(moment.sum()) - kept, 0.0)
    # (I - P) M_S U, without ever forming the projector.
    outside = -basis @ (rows.T @ moved)
    outside[: len(moment)] += moved
    # ||(I - P) M||_F^2 = Tr M^2 - Tr(M P M)
    residual_square = float((moment**2).sum() - (moved**2).sum())
    return GradientBounds(
        norm=2 * float(np.linalg.norm(outside)),
        residual=residual,
        split=2 * float(np.sqrt(residual * kept)),
        operator=2 * float(np.sqrt(moment.max() * residual)),
        trace=2 * float(np.sqrt(residual * moment.sum())),
        residual_norm=2 * float(np.sqrt(max(residual_square, 0.0))),
    )


def residual_at_optimum(mixture: Mixture, width: int, *, tasks: Iterable[int]) -> float:
    """R_S(N) of the best width-N encoder: the utilities of S's features ranked after N (Cor. 5)."""
    left = (ranks(mixture) > width).ravel()
    return float((covariance(mixture, tasks) * left).sum())


def weakest_common_utility(mixture: Mixture, width: int, *, task: int) -> float:
    """mu_N^F: the N-th largest utility among the features of all tasks but `task`; 0 past them."""
    common = np.sort(np.delete(mixture.utilities, task, axis=0).ravel())[::-1]
    return float(common[width - 1]) if width <= len(common) else 0.0
