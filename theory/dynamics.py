"""How fast a withheld task is forgotten, and how a gap moves its critical width.

    half_life(mixture, 32, task=31, rate=.1)        # steps until half of a burst's leverage is gone

While task r is withheld, the slot of its feature turns back to the weakest common feature that the
width has room for: in that plane d/dt log tan t = 2 (u_r - mu_N), so logit q_r falls by 4 eta mu_N
a step with u_r = 0. A burst does the opposite. Which of the two wins over a cycle of gap and burst
decides whether the task survives.
"""

from __future__ import annotations

import math

import numpy as np

from theory.bounds import weakest_common_utility
from theory.mixture import Mixture
from theory.stream import burst_length


def half_life(mixture: Mixture, width: int, *, task: int, rate: float) -> float:
    """ln 2 / (4 eta mu_N^F) steps; infinite where all common features fit."""
    weakest = weakest_common_utility(mixture, width, task=task)
    return math.log(2) / (4 * rate * weakest) if weakest > 0 else math.inf


def gap_critical_width(
    mixture: Mixture, *, task: int, gap: int, rate: float, length: int | None = None
) -> int:
    """N_crit(G) of a task that comes in bursts every `gap` steps, under optimal decoders.

    Per cycle of G steps with L of them the burst, feature r grows by L log(1 + 2 eta G u_r / L) and
    a common one by (G - L) log(1 + 2 eta u / (1 - pi_r)). The critical width is the number of
    features that grow at least as fast. log(1 + z) < z, so at equal frequency a larger gap asks for
    more width: where the burst grows stronger (L kept), not where it grows longer (L ~ G, as by
    default). Ties count against the task.
    """
    length = length or burst_length(mixture, task, gap)
    weight = gap * float(mixture.frequencies[task]) / length
    own = length * math.log1p(2 * rate * weight * float(mixture.spectra[task, 0]))
    common = mixture.without(task)[:, None] * mixture.spectra
    grown = (gap - length) * np.log1p(2 * rate * common)
    grown[task] = 0.0
    return 1 + int((grown >= own * (1 - 1e-9)).sum())
