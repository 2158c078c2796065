"""The loss budget: who moved a task's loss in an AdamW step, in nats, split exactly by data source.

    parts = update_parts(before, after, firsts, seconds, steps)      # host, decay, task/NAME
    rows = budget(gradients, parts, layers)                          # <grad L, part> by layer

AdamW's first moment is linear in the gradients. Keep m_k, the same moving average of task k's part
of the (clipped) gradient alone, beside the engine's m; then with the step's own v

    Delta_k = -lr m_k_hat / (sqrt(v_hat) + eps)      Delta_decay = -lr weight_decay theta
    Delta_host = (theta_after - theta_before) - Delta_decay - sum_k Delta_k

are the parts of the update that the sources' data asked for, now and in the steps that momentum
remembers. With the mean of a loss's gradients along the step (`LOBATTO`), the inner products
<grad L, Delta> add up to its change, to third order in the step with two points. This is loss
change allocation (Lan et al., NeurIPS 2019), to sources of data where that is to parameters:
additive, in nats, so it compares across widths, tasks and optimizers' settings. By the signs of a
loss, positive harms: what the host does is *forgotten*, what the task's own rows do *gained*, what
the decay does *faded*. forgotten / -gained = 1 is update and forget, 0 accumulation.

What v owes to each source is not split: it scales all parts alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from data_injection.errors import ConfigError
from eval.interference.gradients import Vector, gram
from eval.scores.cells import CELL
from eval.scores.rows import once, run_names, task_rows
from eval.statistics import seed_fields, share

HOST, DECAY, OWN = "host", "decay", "task"
"""Sources: the rest of the batches, weight decay, the task's own rows; another task's rows are
"task/NAME"."""

LOBATTO: dict[int, list[tuple[float, float]]] = {
    2: [(0.0, 1 / 2), (1.0, 1 / 2)],
    3: [(0.0, 1 / 6), (0.5, 2 / 3), (1.0, 1 / 6)],
    4: [(0.0, 1 / 12), (0.5 - 20**-0.5, 5 / 12), (0.5 + 20**-0.5, 5 / 12), (1.0, 1 / 12)],
}
"""(place, weight) of the points of a mean over [0, 1] that has both ends: exact for polynomials of
degree 2 n - 3 (Gauss and Lobatto), which leaves out the step's power 2 n - 1 of a loss."""


@dataclass(frozen=True)
class AdamStep:
    """How AdamW took one step of one parameter."""

    lr: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    count: int
    """Steps it has taken, this one included: what the bias corrections go by."""

    def update(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """What a first moment adds to the parameter under this second moment."""
        of_first, of_second = (1 - beta**self.count for beta in self.betas)
        scale = (second / of_second).sqrt_().add_(self.eps)
        return first.mul(-self.lr / of_first).div_(scale)


@torch.no_grad()
def update_parts(
    before: Vector,
    after: Vector,
    firsts: Mapping[str, Vector],
    seconds: Vector,
    steps: Sequence[AdamStep],
) -> dict[str, Vector]:
    """The parts of an update by source: HOST, DECAY, and the keys of `firsts`.

    Args:
        before, after: the parameters on both sides of the step.
        firsts: each task's own first moment, this step's gradient included.
        seconds: the optimizer's second moment after the step.
    """
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in (HOST, DECAY, *firsts)}
    for index, how in enumerate(steps):
        host = after[index] - before[index]
        parts[DECAY].append(before[index] * (-how.lr * how.weight_decay))
        host -= parts[DECAY][-1]
        for name, first in firsts.items():
            parts[name].append(how.update(first[index], seconds[index]))
            host -= parts[name][-1]
        parts[HOST].append(host)
    return dict(parts)


def products(
    gradients: Mapping[str, Vector], parts: Mapping[str, Vector], layers: Sequence[int]
) -> torch.Tensor:
    """<gradient, part> of this rank's shards, shape (layers + 1, gradients, parts), double.

    Row 0 is the whole model, row 1 what is in no layer (-1), row l + 2 layer l.
    """
    table_PVV = gram([*gradients.values(), *parts.values()])
    num = len(gradients)
    table_PGS = table_PVV[:, :num, num:]
    rows = torch.zeros(max(layers) + 3, *table_PGS.shape[1:], dtype=torch.float64)
    rows = rows.to(table_PGS.device)
    rows[0] = table_PGS.sum(0)
    return rows.index_add_(0, torch.tensor(layers, device=rows.device) + 2, table_PGS)


def closure(parts: Sequence[float], actual: float) -> float:
    """|sum of the parts - actual change| / sum of |parts|: what the first order left out.

    Of the turnover, not of the change: at equilibrium gains and losses of a nat leave no change.
    Not-a-number where nothing moved.
    """
    turnover = sum(abs(part) for part in parts)
    return abs(sum(parts) - actual) / turnover if turnover else float("nan")


@once
def budgets(frame: pd.DataFrame, *, since: float = 0.5) -> pd.DataFrame:
    """One row per cell: the budget of its runs' steps after `since`, means over seeds in nats.

    Read between two steps at which all runs of a cell have a record, the last such one and one
    before: a run that ended early, or is undefined from some step on, would bring fewer steps' nats
    into the mean.

    Columns: CELL, split, then forgotten, gained, faded, others (of other tasks' rows), actual, each
    with _low and _high (95% over seeds); ratio, ratio_low, ratio_high (forgotten / -gained with
    Fieller's interval; NaN where the gain is not clear of 0); null_labels and null_signs
    (`forgotten` of a loss with permuted labels, and of host parts with random signs); closure (the
    largest of any record), n_seeds. Raises ConfigError if the callback measured nothing.
    """
    measured = frame[frame.metric.isin(["budget", "budget_actual"])]
    if measured.empty:
        rule = "hold no loss budget"
        remedy = "add `loss_budget: {}` to the callbacks of a run"
        raise ConfigError(key="records", rule=rule, remedy=remedy)
    undefined = measured.assign(of=run_names(measured))[measured.value.isna()]
    told = task_rows(frame)
    told = told.assign(of=run_names(told))
    told = told[~(told.step >= told.of.map(undefined.groupby("of").step.min()))]
    whole = told[told.metric.isin(["budget", "budget_actual"]) & told.layer.isna()]
    names = {HOST: "forgotten", OWN: "gained", DECAY: "faded"}
    kind = whole.source.map(names).fillna("others").where(whole.metric == "budget", "actual")
    rows: list[dict[str, Any]] = []
    for key, group in whole.assign(kind=kind).groupby([*CELL, "split"], sort=True):
        steps = [set(of_run) for _, of_run in group.groupby("of").step]
        common = set.intersection(*steps) or set.union(*steps)  # as in `cells`
        # A record is of all steps since the one before, which may be more in one run.
        first = max((step for step in common if step <= since * max(common)), default=0)
        group = group[(group.step > first) & (group.step <= max(common))]
        # A seed is one draw, in however many runs or like tasks it was measured.
        each = ["seed", "of", "task"]
        parts = group.pivot_table("value", index=each, columns="kind", aggfunc="sum", fill_value=0)
        seeds = parts.groupby("seed").mean()
        row: dict[str, Any] = dict(zip([*CELL, "split"], key, strict=True))
        for name in ("forgotten", "gained", "faded", "others", "actual"):
            row |= seed_fields(seeds[name].tolist() if name in seeds else [], name)
        ratio = share(seeds.forgotten.tolist(), (-seeds.gained).tolist())
        row |= {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high}
        host = group[group.kind == "forgotten"].groupby(each)
        for null in ("null_labels", "null_signs"):
            row[null] = float(host[null].sum().groupby("seed").mean().mean())
        rows.append(row | {"closure": float(group.closure.max()), "n_seeds": len(seeds)})
    return pd.DataFrame(rows)
