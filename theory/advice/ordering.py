"""Does the theory order a sweep's cells better than size x frequency does?

    margins = utility_margins(width=64, shares=(2e-3, 1e-3), bits=(79, 79))
    found = compare(theory, baseline, score, run)
    print(found.rho_theory, found.rho_baseline, found.difference, found.null_low, found.null_high)

Anything that rises with size and with frequency correlates with what was learned, so a rank
correlation of the theory says nothing by itself. It stands beside that of log width + log
frequency, and counts only if the difference is above what it is when the two predictors change
places at random.

**What the theory predicts for a cell**, fixed before it was held against any outcome: the margin
log N - log N_crit, from the frequencies and complexities of all tasks of that run.
- A task's frequency is its labels' share of the tokens; the host text has the rest.
- N is proportional to d_model. The factor shifts all margins alike, so that no order depends on it.
- A task is `bits` features of equal weight: what must be stored is spread over that many. It is
  learned when they rank high enough (ties count against it).
- Host text is one task of infinitely many features, lambda_j ~ j^-(1 + alpha) with the study's
  alpha = .46: under this theory a loss that falls as N^-alpha says just this.
Nothing in it is fitted. Other choices are as defensible; choosing among them by the outcome is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

HOST_EXPONENT = 1.46
"""1 + alpha, the study's exponent of the infinite-data loss."""

DRAWS = 4000


@dataclass(frozen=True)
class Ordering:
    """Two predictors of one outcome, by rank."""

    rho_theory: float
    rho_baseline: float
    difference: float
    """rho_theory - rho_baseline."""

    null_low: float
    null_high: float
    """95% of the differences when the two change places, run by run, at random."""

    p_value: float
    """Share of such differences at least as large in size, two-sided."""

    num_rows: int
    num_runs: int

    @property
    def claim(self) -> bool:
        """The theory orders these cells better than the baseline."""
        return self.difference > self.null_high


def utility_margins(
    *,
    width: float,
    shares: Sequence[float],
    bits: Sequence[float],
    host_exponent: float = HOST_EXPONENT,
) -> np.ndarray:
    """log N - log N_crit (tasks,) of all tasks of one run, with N = width (Prop. 6).

    shares: of the tokens, each above 0, at most 1 together; bits: each task's features, at least 1.
    Raises ValueError otherwise.
    """
    share, features = np.asarray(shares, dtype=float), np.asarray(bits, dtype=float)
    if not (width > 0 and (share > 0).all() and share.sum() <= 1 + 1e-9):
        raise ValueError(
            f"width must be above 0 and shares above 0 with a sum of 1 or less, got {width:g} and "
            f"{share.tolist()}"
        )
    known = np.isfinite(features) & (features >= 1)
    if len(share) != len(features) or not known.all() or not host_exponent > 1:
        raise ValueError(
            "there must be one number of bits of at least 1 for each share, and host_exponent must "
            f"be above 1, got {features.tolist()} and {host_exponent:g}"
        )
    from scipy.special import zeta

    utility = share / features
    host_leading = max(0.0, 1 - share.sum()) / zeta(host_exponent)
    host = np.floor((host_leading / utility) ** (1 / host_exponent) * (1 + 1e-9))
    # Its own features are among them: a task of equal weights is kept whole or not at all.
    ahead = utility[None, :] >= utility[:, None] * (1 - 1e-9)
    critical = host + ahead @ features
    return math.log(width) - np.log(critical)


def compare(
    theory: ArrayLike,
    baseline: ArrayLike,
    outcome: ArrayLike,
    cluster: ArrayLike,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Ordering:
    """The two rank correlations, and the permutation interval of their difference.

    All (rows,). If the two predictors are equally good, which of them is called the theory does not
    matter; so their ranks are exchanged, for whole clusters (runs), since a run's cells are not
    independent. Raises ValueError where an order is not defined: under three rows, under two
    clusters, or a constant.
    """
    values = [np.asarray(one, dtype=float) for one in (theory, baseline, outcome)]
    groups = np.unique(np.asarray(cluster), return_inverse=True)[1]
    num_rows, num_groups = len(groups), int(groups.max(initial=-1)) + 1
    if num_rows < 3 or num_groups < 2 or any(len(one) != num_rows for one in values):
        raise ValueError(
            f"an ordering needs at least three cells of two runs, got {num_rows} of {num_groups}"
        )
    for name, one in zip(("theory", "baseline", "outcome"), values, strict=True):
        if not np.isfinite(one).all() or np.ptp(one) == 0:
            raise ValueError(f"{name} must be numbers that differ; a constant orders nothing")
    first, second, target = (_ranks(one[None])[0] for one in values)
    flips = np.random.default_rng(seed).integers(0, 2, size=(draws, num_groups), dtype=bool)
    swapped = flips[:, groups]
    null = _correlation(np.where(swapped, second, first), target) - _correlation(
        np.where(swapped, first, second), target
    )
    rho = [float(_correlation(one[None], target)[0]) for one in (first, second)]
    difference = rho[0] - rho[1]
    # Either order is as likely as the other, so the null is symmetric by construction.
    high = float(np.quantile(np.abs(null), 0.95))
    as_large = int((np.abs(null) >= abs(difference) - 1e-12).sum())
    return Ordering(
        rho_theory=rho[0],
        rho_baseline=rho[1],
        difference=difference,
        null_low=-high,
        null_high=high,
        p_value=(1 + as_large) / (1 + draws),
        num_rows=num_rows,
        num_runs=num_groups,
    )


def _ranks(values: np.ndarray) -> np.ndarray:
    """Average ranks along the last axis; values that differ by rounding alone are tied."""
    from scipy.stats import rankdata

    scale = np.abs(values).max(axis=-1, keepdims=True)
    return np.asarray(rankdata(np.round(values / np.where(scale > 0, scale, 1), 12), axis=-1))


def _correlation(predictors: np.ndarray, target_ranks: np.ndarray) -> np.ndarray:
    """Spearman's rho (draws,) of each row of predictors with the outcome; 0 where one is tied."""
    ranks = _ranks(predictors)
    ranks = ranks - ranks.mean(axis=-1, keepdims=True)
    target = target_ranks - target_ranks.mean()
    size = np.sqrt((ranks**2).sum(axis=-1) * (target**2).sum())
    return np.asarray((ranks @ target) / np.where(size > 0, size, 1))
