"""What a student of width N learns of a mixture: features in order of utility (Theorem 3, Prop. 6).

    python -c "from theory.mixture import power_law; from theory.utility import critical_widths
    print(critical_widths(power_law(32, 8, a=1.25, b=.9))[:, 0])"

The best encoder of width N keeps the N features of largest utility u = pi lambda, whatever tasks
they belong to. So width N leaves the loss L_inf(N) = sum of the utilities ranked after N, and rare
task r's leading feature is learned from the critical width on: its own rank. Tasks and features are
counted from 0; the study counts from 1.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from theory.mixture import Floats, Ints, Mixture

TIE = 1e-9
"""Relative difference below which two utilities count as equal: their order is then arbitrary."""

Ties = Literal["worst", "best"]


def order_by_utility(mixture: Mixture) -> Ints:
    """Flat indices k m + j of all features, most useful first (K m,).

    Among ties the more frequent task comes first: an arbitrary choice, see `ties`.
    """
    utilities = mixture.utilities.ravel()
    # Rounded first, or noise of the last bit would decide between features that are tied.
    exponent = np.floor(np.log10(np.where(utilities > 0, utilities, 1.0)))
    rounded = np.round(utilities / 10.0**exponent, 9) * 10.0**exponent
    return np.argsort(-rounded, kind="stable").astype(np.int64)


def ranks(mixture: Mixture) -> Ints:
    """Rank (K, m) of each feature by utility, from 1."""
    order = order_by_utility(mixture)
    result = np.empty(len(order), dtype=np.int64)
    result[order] = np.arange(1, len(order) + 1)
    return result.reshape(mixture.spectra.shape)


def optimal_loss(mixture: Mixture, width: int | Ints) -> Floats:
    """L_inf(N): the sum of utilities ranked after N, in units of E|y|^2; shape of `width`."""
    utilities = np.sort(mixture.utilities.ravel())  # summed from the least up, for accuracy
    left = np.concatenate([[0.0], np.cumsum(utilities)])
    return np.asarray(left[np.maximum(mixture.num_features - np.asarray(width), 0)])


def retained_signal(mixture: Mixture, width: int) -> Floats:
    """l_k*(N) (K,) in [0, 1]: the share of each task that the best width-N encoder keeps."""
    kept = ranks(mixture) <= width
    return np.asarray((mixture.spectra * kept).sum(axis=1) / mixture.traces)


def critical_widths(mixture: Mixture, *, ties: Ties = "worst") -> Ints:
    """N_crit (K, m) of every feature by enumeration: the least width that keeps it (Prop. 6).

    `ties`: a feature that is tied with others is kept from "best" on at the earliest and from
    "worst" on for sure; without ties both are its rank. A feature with no utility is not learned at
    any width: K m + 1.
    """
    utilities = mixture.utilities.ravel()
    ascending = np.sort(utilities)
    if ties == "worst":
        widths = len(ascending) - np.searchsorted(ascending, utilities * (1 - TIE), side="left")
    else:
        widths = 1 + len(ascending) - np.searchsorted(ascending, utilities * (1 + TIE), "right")
    widths = np.where(utilities > 0, widths, mixture.num_features + 1)
    return np.asarray(widths.reshape(mixture.spectra.shape), dtype=np.int64)


def width_for_share(mixture: Mixture, share: float = 0.5) -> Ints:
    """The least width (K,) at which each task keeps at least `share` of its signal.

    K m + 1 where no width does (a task of frequency 0).
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    kept = np.cumsum(mixture.spectra, axis=1) / mixture.traces[:, None]
    # Within a task features are learned in order, so the first one past the share decides.
    last = (kept >= share - 1e-12).argmax(axis=1)
    return np.asarray(critical_widths(mixture)[np.arange(mixture.num_tasks), last])


def ties(mixture: Mixture) -> list[list[tuple[int, int]]]:
    """Groups of features (task, feature), from 0, whose utilities are equal; empty if none are.

    At a width inside a group the theory does not say which of its features are kept.
    """
    order = order_by_utility(mixture)
    utilities = mixture.utilities.ravel()[order]
    apart = (utilities[1:] <= 0) | (-np.diff(utilities) > TIE * utilities[:-1])
    return [
        [divmod(int(flat), mixture.rank) for flat in group]
        for group in np.split(order, 1 + np.flatnonzero(apart))
        if len(group) > 1
    ]


def describe_ties(mixture: Mixture) -> str:
    """One sentence about ties, for people; empty if there are none."""
    groups = ties(mixture)
    if not groups:
        return ""
    worst, best = critical_widths(mixture)[:, 0], critical_widths(mixture, ties="best")[:, 0]
    unsure = int((worst != best).sum())
    return (
        f"{sum(map(len, groups))} of {(mixture.utilities > 0).sum()} features are tied in utility "
        f"({len(groups)} groups); the critical width of {unsure} tasks is uncertain by up to "
        f"{int((worst - best).max())}"
    )
