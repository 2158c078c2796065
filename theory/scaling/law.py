"""The scaling law L(N, D) = L0 + A/N^alpha + B/D^beta and what follows from it in closed form.

    law = Law.of(L0=1.69, A=406.4, alpha=.34, B=410.7, beta=.28)      # Hoffmann et al. 2022
    law.compute_optimal_loss(1e9), law.small_below(1e10, eps=0.0)

The study's Part 1 (its Eq. 1, Defs. 1 and 2). N: parameters, D: tokens, losses in nats per token,
C = 6 N D floating-point operations. Everything is worked out from Eq. 1; nothing uses the paper's
gamma = .34, which does not follow from it (docs/scaling.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONSTANTS = ("L0", "A", "alpha", "B", "beta")

FLOPS = 6.0
"""Floating-point operations per parameter and token: C = 6 N D (Kaplan et al. 2020)."""

PAPER_GAMMA = 0.34
"""The paper's exponent of L_C(N). Shown beside ours and used for nothing."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """One law, or as many as the fields are long (draws of a bootstrap, shape (S,)).

    The amplitudes are kept as logarithms: a draw with a large exponent has an A past any float.
    Methods take sizes that broadcast against the fields.
    """

    L0: Any
    """Irreducible loss, nats per token."""

    log_A: Any
    alpha: Any
    log_B: Any
    beta: Any

    @classmethod
    def of(cls, *, L0: float, A: float, alpha: float, B: float, beta: float) -> Law:
        """From the five constants. Raises ValueError if one is not positive."""
        given = {"L0": L0, "A": A, "alpha": alpha, "B": B, "beta": beta}
        for name, value in given.items():
            if not (np.isfinite(value) and (value > 0 or (name == "L0" and value == 0))):
                raise ValueError(f"{name} must be a positive number, got {value}")
        return cls(L0, float(np.log(A)), alpha, float(np.log(B)), beta)

    @property
    def A(self) -> Any:
        return _exp(self.log_A)

    @property
    def B(self) -> Any:
        return _exp(self.log_B)

    def constants(self) -> dict[str, Any]:
        """The five by name, in the order of CONSTANTS."""
        return {name: getattr(self, name) for name in CONSTANTS}

    def loss(self, params: ArrayLike, tokens: ArrayLike) -> Any:
        """L(N, D), the paper's Eq. 1."""
        return self.infinite_data_loss(params) + _power(self.log_B, self.beta, tokens)

    def infinite_data_loss(self, params: ArrayLike) -> Any:
        """L_inf(N) = L0 + A/N^alpha: all that data can do for a model of this size."""
        return self.L0 + _power(self.log_A, self.alpha, params)

    def compute_optimal_loss(self, params: ArrayLike) -> Any:
        """L_C(N) = L0 + (1 + alpha/beta) A/N^alpha, the loss at N and `optimal_tokens(N)`.

        Where N D is fixed and the loss least, alpha A/N^alpha = beta B/D^beta.
        """
        return self.L0 + (1 + self.alpha / self.beta) * _power(self.log_A, self.alpha, params)

    def optimal_tokens(self, params: ArrayLike) -> Any:
        """The D for which N is the compute-optimal size: (beta B N^alpha / (alpha A))^(1/beta)."""
        log_ratio = np.log(self.beta) + self.log_B - np.log(self.alpha) - self.log_A
        return _exp((log_ratio + self.alpha * np.log(params)) / self.beta)

    @property
    def params_exponent(self) -> Any:
        """The compute-optimal excess L_C - L0 falls as N to minus this: alpha."""
        return self.alpha

    @property
    def compute_exponent(self) -> Any:
        """The compute-optimal excess falls as C to minus this: alpha beta / (alpha + beta)."""
        return self.alpha * self.beta / (self.alpha + self.beta)

    @property
    def size_exponent(self) -> Any:
        """The compute-optimal size grows as C to this: beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def reach(self) -> Any:
        """N_l / N_s*(0) = (1 + alpha/beta)^(1/alpha): how much smaller a model can make up for
        its size with data."""
        return _exp(np.log1p(self.alpha / self.beta) / self.alpha)

    def small_below(self, large: ArrayLike, *, eps: ArrayLike = 0.0) -> Any:
        """N_s*(eps) of Def. 2: the largest N_s with L_inf(N_s) - L_C(N_l) > eps.

        Any smaller model stays more than eps above the large one's compute-optimal loss, whatever
        it reads. Args: large: N_l. eps: nats per token, at least 0. Raises ValueError for others.
        """
        if np.any(np.asarray(eps) < 0) or not np.all(np.isfinite(eps)):
            raise ValueError(f"eps must be at least 0 nats per token, got {eps!r}")
        above = (1 + self.alpha / self.beta) * _power(self.log_A, self.alpha, large) + eps
        return _exp((self.log_A - np.log(above)) / self.alpha)

    def data_gaps(self, small: ArrayLike, large: ArrayLike) -> tuple[Any, Any]:
        """L_C(N_s) - L_C(N_l) and L_inf(N_s) - L_C(N_l), in nats per token.

        Def. 1: the gap is learnable via data scaling if the first is above 0 and the second below.
        """
        target = self.compute_optimal_loss(large)
        return self.compute_optimal_loss(small) - target, self.infinite_data_loss(small) - target

    def tokens_to_match(self, small: ArrayLike, large: ArrayLike) -> Any:
        """The D at which a model of size N_s has the loss L_C(N_l); inf if none is enough."""
        room = -np.asarray(self.data_gaps(small, large)[1])
        with np.errstate(divide="ignore", invalid="ignore"):
            tokens = _exp((self.log_B - np.log(np.where(room > 0, room, np.nan))) / self.beta)
        return np.where(room > 0, tokens, np.inf)[()]


def _power(log_amplitude: Any, exponent: Any, size: ArrayLike) -> Any:
    return _exp(log_amplitude - exponent * np.log(np.asarray(size, dtype=float)))


def _exp(value: Any) -> Any:
    with np.errstate(over="ignore"):
        return np.exp(value)
