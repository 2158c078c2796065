"""What a student has learned: leverage, retained signal, R^2 and loss, read from its weights.

    leverage_EF = leverage(students.U_EDN, num_features)

All in fp64, whatever the weights are in. Axes as in theory/lab/student.py.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from theory.mixture import Floats, Mixture


def leverage(U: Tensor, num_features: int) -> Floats:
    """q_f = b_f^T P_U b_f (E, F) in [0, 1]: the share of each feature that the encoder spans.

    P_U = U (U^T U)^+ U^T. Of a random encoder it is N / D, not 0.
    """
    U = U.double()
    factor, info = torch.linalg.cholesky_ex(U.mT @ U)
    rows = U[..., :num_features, :]
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    # Squaring the condition number costs half the digits; where none are left, take the long way.
    if bool((info != 0).any()) or bool((diagonal.amin(-1) < 1e-6 * diagonal.amax(-1)).any()):
        left, singular, _ = torch.linalg.svd(U, full_matrices=False)
        kept = singular > 1e-12 * singular[..., :1]
        return _numpy((left[..., :num_features, :].square() * kept[..., None, :]).sum(-1))
    return _numpy(torch.linalg.solve_triangular(factor, rows.mT, upper=False).square().sum(-2))


def retained(leverage_EF: Floats, mixture: Mixture) -> Floats:
    """l_k = Tr(P_U C_k) / Tr C_k (E, K)."""
    per_task = leverage_EF.reshape(-1, *mixture.spectra.shape)
    return np.asarray((per_task * mixture.spectra).sum(-1) / mixture.traces)


def feature_losses(U: Tensor, V: Tensor, mixture: Mixture) -> Floats:
    """||sqrt(lambda) b - U v||^2 (E, F): the population loss of each feature's output."""
    U, V = U.double(), V.double()
    amplitude = torch.tensor(np.sqrt(mixture.spectra).ravel())
    match = (V * U[..., : V.shape[-2], :]).sum(-1)
    size = (V * (V @ (U.mT @ U))).sum(-1)
    return _numpy(amplitude.square() - 2 * amplitude * match + size)


def r_squared(U: Tensor, V: Tensor, mixture: Mixture) -> Floats:
    """1 - loss / lambda (E, F) of each feature's output; 0 for no output, 1 for the right one."""
    spectra = mixture.spectra.ravel()
    return 1 - feature_losses(U, V, mixture) / np.where(spectra > 0, spectra, np.nan)


def population_loss(U: Tensor, V: Tensor, mixture: Mixture) -> Floats:
    """L(U, V) = sum_k pi_k ||W_k - V_k U^T||_F^2 (E,)."""
    weights = np.repeat(mixture.frequencies, mixture.rank)
    return np.asarray((feature_losses(U, V, mixture) * weights).sum(-1))


def cosine(first: Tensor, second: Tensor) -> Floats:
    """Cosine (E,) between two gradients (E, D, N); NaN where one is zero."""
    a, b = first.double().flatten(1), second.double().flatten(1)
    size = a.norm(dim=1) * b.norm(dim=1)
    return _numpy((a * b).sum(1) / torch.where(size > 0, size, torch.nan))


def norm(gradient: Tensor) -> Floats:
    """Frobenius norm (E,)."""
    return _numpy(gradient.double().flatten(1).norm(dim=1))


def _numpy(tensor: Tensor) -> Floats:
    return np.asarray(tensor.numpy(), dtype=np.float64)
