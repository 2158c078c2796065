"""Linear probes: what can be read off a symbol's representation, on symbols the probe never saw.

    found = probe(symbol_states(read, task), task.targets()["order"], seed=0)
    found.r2[1, 0], found.null99[1]         # after block 1, against its own permutation null

One row per symbol, and `SymbolStates` has no other kind: 10K pairs of 100 symbols split by row put
each symbol on both sides, and random embeddings then score .38. Components and the ridge penalty
are fitted inside the training folds: 50 components of pure noise explain .52 of 100 ranks in
sample, and without a penalty they score -1.58 out of it.

Axes: L layers, S symbols, D width, U units of a target, C columns of a unit (a frequency's cosine
and sine), P draws (0: the target; the rest: the null's permutations), N = P U C, K components.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from data_injection.philox import permutation
from eval.features.activations import SymbolStates

FloatArray = NDArray[np.float64]

PENALTIES = 10.0 ** np.arange(-5, 6)
"""Ridge penalties to choose from, as multiples of the components' mean variance. The largest
predicts the mean, so that a probe of noise scores about 0 and not far below."""

FOLDS = 5
MAX_COMPONENTS = 50
"""The study's K."""

MIN_PERMUTATIONS = 200
"""Fewer say little about a 99th percentile."""


@dataclass(frozen=True)
class Probe:
    """How well each unit of a target can be read at each layer, and how well chance does."""

    r2: FloatArray
    """Held-out R^2, raw (negative where the mean does better), shape (L, U)."""

    null_mean: FloatArray
    """Mean over permutations of the best unit's R^2, shape (L,)."""

    null99: FloatArray
    """99th percentile over permutations of the best unit's R^2, shape (L,)."""

    threshold: float
    """99th percentile over permutations of the largest R^2 of any unit at any layer."""

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which units count at which layers: above what chance reaches anywhere; shape (L, U)."""
        return self.r2 > self.threshold

    @property
    def best(self) -> FloatArray:
        """R^2 of the best unit at each layer, shape (L,): what null_mean and null99 are of."""
        return self.r2.max(axis=1)

    @property
    def units(self) -> NDArray[np.int64]:
        """Units that count at one layer or more, ascending."""
        return np.flatnonzero(self.present.any(axis=0))


def probe(
    states: SymbolStates,
    target: FloatArray,
    *,
    seed: int,
    permutations: int = MIN_PERMUTATIONS,
    folds: int = FOLDS,
    num_components: int = MAX_COMPONENTS,
) -> Probe:
    """Cross-validated ridge on principal components, for all units, layers and permutations.

    All permutations and units are columns of one regression, so that a fold and layer cost one
    singular value decomposition. The null permutes whole rows of the target: the same permutations
    at every layer, and the units of one permutation stay together.

    Args:
        target: shape (S, U) or (S, U, C), rows as in `states`; see `Task.targets`.
        seed: of the folds and permutations; the same seed gives the same ones.
        num_components: at most this many; never more than D or the training symbols less one.

    Raises:
        ValueError: another number of rows, too few symbols or permutations, a constant unit.
    """
    hidden_LSD = states.hidden_LSD
    check_target(target, num_symbols=hidden_LSD.shape[1], folds=folds)
    if permutations < MIN_PERMUTATIONS:
        raise ValueError(f"permutations must be at least {MIN_PERMUTATIONS}, got {permutations}")
    target_SUC = target[..., None] if target.ndim == 2 else target
    num_layers, num_symbols, _ = hidden_LSD.shape
    num_units, num_columns = target_SUC.shape[1:]
    # One scale for the columns of a unit: a mode's phase is arbitrary and must not matter.
    target_SUC = target_SUC - target_SUC.mean(axis=0)
    target_SUC = target_SUC / np.sqrt((target_SUC**2).sum(axis=(0, 2), keepdims=True))
    orders_PS = np.stack(
        [np.arange(num_symbols)]
        + [
            permutation(num_symbols, seed=seed, purpose="probe/null", counter=i)
            for i in range(permutations)
        ]
    )
    target_SN = target_SUC[orders_PS.T].reshape(num_symbols, -1).astype(np.float32)
    fold_S = permutation(num_symbols, seed=seed, purpose="probe/folds") % folds
    error_LPU = np.zeros((num_layers, len(orders_PS), num_units))
    for fold in range(folds):
        train, test = fold_S != fold, fold_S == fold
        columns_SN, held_SN = target_SN[train], target_SN[test]
        mean_N = columns_SN.mean(axis=0)
        columns_SN -= mean_N
        held_SN -= mean_N
        for layer in range(num_layers):
            error_N = _held_out_error(
                hidden_LSD[layer, train],
                hidden_LSD[layer, test],
                columns_SN,
                held_SN,
                num_components=num_components,
                num_columns=num_columns,
            )
            error_LPU[layer] += error_N.reshape(len(orders_PS), num_units, -1).sum(axis=-1)
    r2_LPU = 1 - error_LPU  # each unit's sum of squares is 1
    best_LP = r2_LPU[:, 1:].max(axis=2)
    return Probe(
        r2=r2_LPU[:, 0],
        null_mean=best_LP.mean(axis=1),
        null99=_percentile99(best_LP),
        threshold=float(_percentile99(best_LP.max(axis=0))),
    )


def _held_out_error(
    train_SD: FloatArray,
    test_SD: FloatArray,
    target_SN: NDArray[np.float32],
    held_SN: NDArray[np.float32],
    *,
    num_components: int,
    num_columns: int,
) -> FloatArray:
    """Sum over the test symbols of each column's squared error; targets are centred. Shape (N,).

    The penalty of each unit is the one under which the training symbols are likeliest (restricted
    maximum likelihood, the noise profiled out; it has a closed form in the target's projections on
    the components and needs no second split). With about as many components as training symbols,
    generalised cross-validation and leave-one-out too often choose to interpolate: on untrained
    models of widths 16 to 128 and 40 symbols the worst order R^2 was -17 and -4.8, with this -.4.
    """
    mean_D = train_SD.mean(axis=0)
    left_SK, scale_K, right_KD = np.linalg.svd(train_SD - mean_D, full_matrices=False)
    # Centred rows have rank n - 1; what lies below rounding is no direction at all.
    num = min(num_components, train_SD.shape[1], len(train_SD) - 1)
    num = min(num, int((scale_K > 1e-6 * max(scale_K[0], 1e-30)).sum()))
    if num == 0:  # all symbols look alike: the mean is all there is to predict
        return (held_SN**2).sum(axis=0)
    left_SK, scale_K, right_KD = left_SK[:, :num], scale_K[:num], right_KD[:num]
    variance_K = scale_K**2
    penalty_M1 = PENALTIES[:, None] * variance_K.mean()
    shrunk_MK = penalty_M1 / (variance_K + penalty_M1)
    onto_KN = left_SK.T.astype(np.float32) @ target_SN
    power_KN = onto_KN**2
    rest_N = np.maximum((target_SN**2).sum(axis=0) - power_KN.sum(axis=0), 0)
    misfit_MN = shrunk_MK.astype(np.float32) @ power_KN + rest_N
    misfit_MG = misfit_MN.reshape(len(PENALTIES), -1, num_columns).sum(axis=-1)
    misfit_MG = np.log(np.maximum(misfit_MG, 1e-12))
    volume_M1 = np.log(shrunk_MK).sum(axis=1, keepdims=True)
    choice_G = ((len(train_SD) - 1) * misfit_MG - volume_M1).argmin(axis=0)
    onto_KN *= (1 - shrunk_MK).T.astype(np.float32)[:, np.repeat(choice_G, num_columns)]
    scores_SK = (test_SD - mean_D) @ right_KD.T / scale_K
    return ((held_SN - scores_SK.astype(np.float32) @ onto_KN) ** 2).sum(axis=0)


def _percentile99(values: FloatArray) -> FloatArray:
    """Over the last axis, rounded up to a value that was drawn: never too lenient."""
    return np.quantile(values, 0.99, axis=-1, method="higher")


def check_target(target: FloatArray, *, num_symbols: int, folds: int = FOLDS) -> None:
    """Raise ValueError if a target cannot be probed for: before a run rather than in it."""
    if target.ndim not in (2, 3) or len(target) != num_symbols or target.shape[1] < 1:
        raise ValueError(
            f"a target must be of shape (symbols, units) or (symbols, units, columns) for "
            f"{num_symbols} symbols, got {target.shape}"
        )
    if folds < 2 or num_symbols < 2 * folds:
        raise ValueError(
            f"{folds} folds need at least two symbols each, got {num_symbols} symbols; use "
            f"{2 * folds} or more"
        )
    span_U = np.ptp(target.reshape(*target.shape[:2], -1), axis=0).max(axis=-1)
    if not np.isfinite(target).all() or (span_U == 0).any():
        raise ValueError(
            f"a target must be finite and no unit the same for all symbols, but units "
            f"{np.flatnonzero(~(span_U > 0)).tolist()[:5]} are not; leave them out"
        )


@cache
def planted_r2(width: int, *, num_symbols: int = 100, amplitude: float = 2.0) -> float:
    """What the probe reads of an order that is there: along one direction of states of a width, of
    `amplitude` standard deviations of the noise in every direction. It falls with the width, as
    the same signal stands among more noise: to be laid beside what was measured. Mean of 8 draws.
    """
    rank_S1 = np.arange(num_symbols, dtype=float)[:, None]
    standard_S1 = (rank_S1 - rank_S1.mean()) / rank_S1.std()
    found = []
    for seed in range(8):
        rng = np.random.default_rng([width, seed])
        direction_D = rng.normal(size=width)
        direction_D /= np.linalg.norm(direction_D)
        hidden_SD = rng.normal(size=(num_symbols, width)) + amplitude * standard_S1 * direction_D
        states = SymbolStates(hidden_SD[None], np.arange(num_symbols))
        found.append(probe(states, rank_S1, seed=seed).r2[0, 0])
    return float(np.mean(found))
