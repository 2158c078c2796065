"""The student: a shared encoder of width N with a linear decoder a task, trained jointly by SGD.

    students = JointStudents(mixture, 32, seeds=(0, 1, 2), phases=steady(mixture, 6000), rate=1.0)
    students.run(6000)

yhat_k = V_k U^T x. Encoder and decoders start small and are trained together, which is the genuine
test of the theory; orthogonal iteration (theory/lab/orthogonal.py) takes optimal decoders for
granted. Two modes. "exact": the gradient of the population loss over x, for the task shares of a
drawn batch. "sampled": the gradient on a batch of drawn inputs. Gradients are written out, not
traced. Several seeds share one batched product up to width LOOP_ABOVE; above it one after the other
is as fast (benchmarks/lab.py). fp32; measures (theory/lab/measures.py) are taken in fp64.

Axes: E seeds, D inputs, F = K m features, N width, B batch. U_EDN, V_EFN; rows 0..F-1 of U are the
features in the order (k, j).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from theory.mixture import Mixture
from theory.stream import CHUNK, Phases, draw_tasks, shares

Mode = Literal["exact", "sampled"]

LOOP_ABOVE = 64
DRAWN_AT_ONCE = 16
"""Steps of inputs drawn at once; part of what a seed means, so not to be tuned."""


class JointStudents:
    """Students of one width, one a seed; a seed's student is the same in any ensemble.

    Args:
        phases: which tasks each step draws.
        rate: SGD's learning rate eta. Exact: stable below 1 / max_k(f_k sqrt(lambda_1)). Sampled:
            at most about .8 B / d.
        batch_size: B, examples a step.
        init: standard deviation of all weights at the start.
    Raises ValueError for an unknown mode, no seeds, or a width below 1.
    """

    def __init__(
        self,
        mixture: Mixture,
        width: int,
        *,
        seeds: Sequence[int],
        phases: Phases,
        rate: float,
        mode: Mode = "exact",
        batch_size: int = 64,
        init: float = 0.01,
    ) -> None:
        if mode not in ("exact", "sampled"):
            raise ValueError(f"mode must be exact or sampled, got {mode!r}")
        if not seeds or width < 1:
            raise ValueError(f"needs a seed and a width of at least 1, got {seeds} and {width}")
        self.mixture, self.width, self.seeds, self.mode = mixture, width, tuple(seeds), mode
        self.phases, self.rate, self.batch_size = phases, rate, batch_size
        self.step = 0
        self.amplitude_F1 = torch.tensor(np.sqrt(mixture.spectra).reshape(-1, 1)).float()
        """sqrt(lambda): what a feature contributes to its task's target."""
        started = [initial_weights(mixture, width, seed=seed, init=init) for seed in seeds]
        if mode == "exact":
            started = [(compress_nuisance(u, mixture.num_features), v) for u, v in started]
        self.U_EDN = torch.stack([u for u, _ in started])
        self.V_EFN = torch.stack([v for _, v in started])
        self._spare = (torch.empty_like(self.U_EDN), torch.empty_like(self.V_EFN))
        self._tasks = _Tasks(mixture, phases, batch_size=batch_size, seeds=self.seeds)
        self._inputs = _Inputs(mixture, batch_size=batch_size, seeds=self.seeds)

    def run(self, num_steps: int) -> None:
        """Take so many steps; raises FloatingPointError if the weights are no longer finite."""
        with _flushed_denormals():
            for _ in range(num_steps):
                if self.mode == "exact":
                    self._exact_step()
                else:
                    self._sampled_step()
                self.step += 1
        if not bool(torch.isfinite(self.V_EFN.sum())):
            raise FloatingPointError(
                f"training diverged by step {self.step} at width {self.width}; lower the learning "
                f"rate, {self.rate:g}"
            )

    def _exact_step(self) -> None:
        share_EF1 = self._tasks.shares()
        new_U, new_V = self._spare
        for part in self._parts():
            _exact_update(
                self.U_EDN[part], self.V_EFN[part], share_EF1[part], self.amplitude_F1,
                rate=self.rate, out=(new_U[part], new_V[part]),
            )  # fmt: skip
        self._spare = self.U_EDN, self.V_EFN
        self.U_EDN, self.V_EFN = new_U, new_V

    def _sampled_step(self) -> None:
        mask_EBF, X_EBD = self._tasks.masks(), self._inputs.next()
        step = 2 * self.rate / self.batch_size
        for part in self._parts():
            U, V, X = self.U_EDN[part], self.V_EFN[part], X_EBD[part]
            hidden, error = _forward(U, V, X, mask_EBF[part], self.amplitude_F1)
            back = error @ V
            _add_product(V, error.mT, hidden, -step)
            _add_product(U, X.mT, back, -step)

    def batch_gradient(self, *, in_x: bool = False) -> Tensor:
        """dL/dU (E, D, N) of the batch that the next step will see; nothing moves on.

        Args:
            in_x: of the batch's task shares, but with the expectation over inputs.
        """
        if self.mode == "exact" or in_x:
            share = self._tasks.shares(peek=True)
            return encoder_gradient(self.U_EDN, self.V_EFN, share, self.amplitude_F1)
        mask_EBF, X_EBD = self._tasks.masks(peek=True), self._inputs.next(peek=True)
        _, error = _forward(self.U_EDN, self.V_EFN, X_EBD, mask_EBF, self.amplitude_F1)
        return (2 / self.batch_size) * (X_EBD.mT @ (error @ self.V_EFN))

    def task_gradient(self, weights: np.ndarray) -> Tensor:
        """dL/dU (E, D, N) of the population loss sum_k w_k L_k at the current weights.

        With w = e_r this is the reference gradient G_r; with pi on a set F of tasks it is G_F.
        """
        share_F1 = torch.from_numpy(weights).float().repeat_interleave(self.mixture.rank)[:, None]
        return encoder_gradient(self.U_EDN, self.V_EFN, share_F1, self.amplitude_F1)

    def _parts(self) -> list[slice] | range:
        """All seeds at once, or one after the other where that is as fast and caches better."""
        if self.width <= LOOP_ABOVE and len(self.seeds) > 1:
            return [slice(None)]
        return range(len(self.seeds))


def initial_weights(
    mixture: Mixture, width: int, *, seed: int, init: float
) -> tuple[Tensor, Tensor]:
    """U (D, N) and V (F, N), Gaussian; the first n columns are those of width n."""
    rng = np.random.default_rng([seed, 1])
    rows = mixture.num_inputs + mixture.num_features
    both = init * torch.from_numpy(rng.standard_normal((width, rows), dtype=np.float32).T.copy())
    return both[: mixture.num_inputs].clone(), both[mixture.num_inputs :].clone()


def compress_nuisance(U_DN: Tensor, num_features: int) -> Tensor:
    """Replace the nuisance rows of U by the R of their QR: at most N rows, the same trajectory.

    In exact mode those rows enter by their Gram matrix alone, U_n^T U_n, and are only ever
    multiplied from the right, so a rotation among them changes nothing. (Not so with sampled x.)
    """
    nuisance = U_DN[num_features:]
    if nuisance.shape[0] <= U_DN.shape[1]:
        return U_DN
    R = torch.linalg.qr(nuisance.double(), mode="r").R
    return torch.cat([U_DN[:num_features], R.to(U_DN.dtype)])


def encoder_gradient(U: Tensor, V: Tensor, share_F1: Tensor, amplitude_F1: Tensor) -> Tensor:
    """dL/dU = 2 (U V^T f V - [sqrt(lambda) f V; 0]) of sum_k f_k ||W_k - V_k U^T||^2."""
    weighted = share_F1 * V
    gradient = 2 * (U @ (weighted.mT @ V))
    gradient[..., : V.shape[-2], :] -= 2 * amplitude_F1 * weighted
    return gradient


def _exact_update(
    U: Tensor,
    V: Tensor,
    share_F1: Tensor,
    amplitude_F1: Tensor,
    *,
    rate: float,
    out: tuple[Tensor, Tensor],
) -> None:
    """One step for one seed (matrices) or several (batches of matrices), into other buffers."""
    add = torch.baddbmm if U.dim() == 3 else torch.addmm
    weighted = share_F1 * V
    pull = (2 * rate) * amplitude_F1 * share_F1
    add(U, U, weighted.mT @ V, alpha=-2 * rate, out=out[0])
    out[0][..., : V.shape[-2], :].addcmul_(pull, V)
    add(V, weighted, U.mT @ U, alpha=-2 * rate, out=out[1])
    out[1].addcmul_(pull, U[..., : V.shape[-2], :])


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Numbers below 1e-38 count as 0: unlearned features shrink to there, at 20 times the cost."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _forward(
    U: Tensor, V: Tensor, X: Tensor, mask_BF: Tensor, amplitude_F1: Tensor
) -> tuple[Tensor, Tensor]:
    """Hidden values (.., B, N) and errors (.., B, F), 0 outside each example's own task."""
    hidden = X @ U
    error = hidden @ V.mT
    error.addcmul_(X[..., : V.shape[-2]], amplitude_F1[:, 0], value=-1).mul_(mask_BF)
    return hidden, error


def _add_product(target: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    if target.dim() == 3:
        target.baddbmm_(left, right, alpha=scale)
    else:
        target.addmm_(left, right, alpha=scale)


class _Tasks:
    """The drawn tasks of all seeds, a step at a time, as shares or as masks over features."""

    def __init__(
        self, mixture: Mixture, phases: Phases, *, batch_size: int, seeds: Sequence[int]
    ) -> None:
        self.mixture = mixture
        self._streams: list[Iterator[np.ndarray]] = [
            draw_tasks(phases, batch_size=batch_size, seed=seed) for seed in seeds
        ]
        self._next, self._shares = CHUNK, torch.empty(0)
        self._tasks = np.empty((0, 0, 0), dtype=np.int64)
        self._eye = torch.eye(mixture.num_tasks).repeat_interleave(mixture.rank, dim=1)

    def shares(self, *, peek: bool = False) -> Tensor:
        """(E, F, 1): each feature's task's share of the batch."""
        index = self._advance(peek)  # first: it may draw anew
        return self._shares[index]

    def masks(self, *, peek: bool = False) -> Tensor:
        """(E, B, F): 1 at the features of each example's task."""
        index = self._advance(peek)
        tasks = torch.from_numpy(self._tasks[:, index])
        return self._eye[tasks]

    def _advance(self, peek: bool) -> int:
        if self._next == CHUNK:
            self._tasks = np.stack([next(stream) for stream in self._streams])
            drawn = shares(self._tasks, self.mixture.num_tasks).transpose(1, 0, 2)
            per_feature = np.repeat(drawn, self.mixture.rank, axis=2)[..., None]
            self._shares = torch.from_numpy(per_feature).float()
            self._next = 0
        index = self._next
        self._next += not peek
        return index


class _Inputs:
    """Standard normal inputs of all seeds, a step at a time."""

    def __init__(self, mixture: Mixture, *, batch_size: int, seeds: Sequence[int]) -> None:
        self.shape = (DRAWN_AT_ONCE, batch_size, mixture.num_inputs)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._next, self._drawn = DRAWN_AT_ONCE, torch.empty(0)

    def next(self, *, peek: bool = False) -> Tensor:
        """(E, B, D)."""
        if self._next == DRAWN_AT_ONCE:
            drawn = [torch.randn(self.shape, generator=g) for g in self._generators]
            self._drawn = torch.stack(drawn, dim=1)
            self._next = 0
        index = self._next
        self._next += not peek
        return self._drawn[index]
