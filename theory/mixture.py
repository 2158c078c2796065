"""A mixture of linear regression tasks: how often each task comes, and how complex it is.

    python -c "from theory.mixture import power_law; print(power_law(32, 8, a=1.25, b=0.9))"

The model of the study's Section 3. Inputs x ~ N(0, I_d) are shared by all tasks. Task k comes with
frequency pi_k and asks for y = R_k Lambda_k^(1/2) B_k^T x, where the blocks B_k (d, m) are
orthonormal and orthogonal to one another; so C_k = B_k Lambda_k B_k^T has the spectrum lambda_k,
and feature (k, j) is column j of B_k. Everything here is in the feature basis, in which the B_k are
the first K m coordinates: a rotation of the inputs changes nothing
(tests/theory/lab/test_student.py).

Inputs must be shared. If those of task k lay in its own block only, task-specific decoders would
let one block's width serve all tasks, and nothing would compete for width (docs/theory.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SUM_TOLERANCE = 1e-6
"""How far frequencies may sum from 1: a table printed to six digits passes, a wrong one not."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """K tasks with frequencies and spectra; checked at construction.

    Raises ValueError for frequencies that are negative or do not sum to one, spectra that are
    negative, rising or empty, and for more features (K m) than input dimensions.
    """

    frequencies: Floats
    """pi (K,): the share of examples that are of each task; sums to 1."""

    spectra: Floats
    """lambda (K, m): eigenvalues of each task's covariance, not rising along m. A 0 is an absent
    feature, so that tasks may have fewer than m."""

    num_inputs: int = 0
    """d: input dimensions. Those beyond K m belong to no task (nuisance). 0 means K m."""

    def __post_init__(self) -> None:
        frequencies = np.array(self.frequencies, dtype=np.float64)
        spectra = np.array(self.spectra, dtype=np.float64)
        _check_frequencies(frequencies)
        _check_spectra(spectra, num_tasks=len(frequencies))
        num_inputs = self.num_inputs or spectra.size
        if num_inputs < spectra.size:
            raise ValueError(
                f"mixture.num_inputs must be at least K m = {len(spectra)} x {spectra.shape[1]} = "
                f"{spectra.size}, got {num_inputs}: the blocks of K tasks are orthogonal; raise "
                "num_inputs, or take fewer tasks or fewer features a task"
            )
        for array in (frequencies, spectra):
            array.flags.writeable = False
        object.__setattr__(self, "frequencies", frequencies)
        object.__setattr__(self, "spectra", spectra)
        object.__setattr__(self, "num_inputs", num_inputs)

    @property
    def num_tasks(self) -> int:
        """K."""
        return int(self.spectra.shape[0])

    @property
    def numbers(self) -> range:
        """The tasks' numbers in records and figures, from 1."""
        return range(1, self.num_tasks + 1)

    @property
    def rank(self) -> int:
        """m: features a task."""
        return int(self.spectra.shape[1])

    @property
    def num_features(self) -> int:
        """K m."""
        return int(self.spectra.size)

    @cached_property
    def utilities(self) -> Floats:
        """u_{k,j} = pi_k lambda_{k,j} (K, m): what a unit of width spent on the feature saves."""
        utilities = self.frequencies[:, None] * self.spectra
        utilities.flags.writeable = False
        return utilities

    @property
    def traces(self) -> Floats:
        """Tr C_k (K,): the loss of a task of which nothing is learned."""
        return np.asarray(self.spectra.sum(axis=1))

    def without(self, task: int) -> Floats:
        """Frequencies (K,) of the others, renormalised, while `task` (0-based) is withheld."""
        if self.num_tasks < 2:
            raise ValueError("the only task of a mixture cannot be withheld; take at least two")
        rest = self.frequencies.copy()
        rest[task] = 0.0
        return np.asarray(rest / rest.sum())

    def __repr__(self) -> str:
        return f"Mixture(K={self.num_tasks}, m={self.rank}, d={self.num_inputs})"


def power_law(
    num_tasks: int,
    rank: int,
    *,
    a: float,
    b: float | Sequence[float] | Floats,
    num_inputs: int = 0,
    unit_trace: bool = False,
) -> Mixture:
    """pi_k ~ k^-a and lambda_{k,j} = j^-b, j = 1..m.

    Args:
        b: one decay for all tasks, or one each: slow decay (small b) is a complex task.
        unit_trace: scale each spectrum to Tr C_k = 1, so that a complex task spreads the same
            signal over more features. Without it every lambda_{k,1} is 1 and the order of leading
            features is the order of frequencies whatever the complexity.
    """
    if num_tasks < 1 or rank < 1:
        raise ValueError(f"num_tasks and rank must be at least 1, got {num_tasks} and {rank}")
    decay = np.broadcast_to(np.asarray(b, dtype=np.float64), (num_tasks,))
    if (decay < 0).any():
        raise ValueError(f"b must be at least 0, got {decay.min():g}; spectra do not rise")
    spectra = np.arange(1, rank + 1)[None, :] ** -decay[:, None]
    if unit_trace:
        spectra = spectra / spectra.sum(axis=1, keepdims=True)
    frequencies = np.arange(1, num_tasks + 1, dtype=np.float64) ** -a
    return Mixture(frequencies / frequencies.sum(), spectra, num_inputs)


def given(
    frequencies: ArrayLike, spectra: Sequence[Sequence[float]], num_inputs: int = 0
) -> Mixture:
    """A mixture of listed tasks; spectra may differ in length (the short ones end in zeros)."""
    if not spectra or min(len(spectrum) for spectrum in spectra) == 0:
        raise ValueError("spectra must hold at least one eigenvalue a task")
    rank = max(len(spectrum) for spectrum in spectra)
    padded = [[*spectrum, *[0.0] * (rank - len(spectrum))] for spectrum in spectra]
    return Mixture(np.asarray(frequencies, dtype=np.float64), np.asarray(padded), num_inputs)


def _check_frequencies(frequencies: Floats) -> None:
    if frequencies.ndim != 1 or not len(frequencies):
        raise ValueError(
            f"mixture.frequencies must be a list of numbers, one a task, got shape "
            f"{frequencies.shape}"
        )
    if not np.isfinite(frequencies).all() or (frequencies < 0).any():
        raise ValueError(
            f"mixture.frequencies must be finite and at least 0, got {frequencies.tolist()}"
        )
    if abs(frequencies.sum() - 1) > SUM_TOLERANCE:
        raise ValueError(
            f"mixture.frequencies must sum to 1, got {frequencies.sum():.6g}; divide each by the "
            "sum, or add the task that takes up the rest"
        )


def _check_spectra(spectra: Floats, *, num_tasks: int) -> None:
    if spectra.ndim != 2 or len(spectra) != num_tasks or not spectra.size:
        raise ValueError(
            f"mixture.spectra must have one row of eigenvalues for each of the {num_tasks} "
            f"frequencies, got shape {spectra.shape}"
        )
    if not np.isfinite(spectra).all() or (spectra < 0).any():
        raise ValueError("mixture.spectra must be finite and at least 0")
    if (np.diff(spectra, axis=1) > 0).any():
        task = int((np.diff(spectra, axis=1) > 0).any(axis=1).argmax())
        raise ValueError(f"mixture.spectra[{task}] rises; list eigenvalues from the largest down")
    if (spectra[:, 0] <= 0).any():
        task = int((spectra[:, 0] <= 0).argmax())
        raise ValueError(
            f"mixture.spectra[{task}] is all zeros: the task asks for nothing; leave it out"
        )
