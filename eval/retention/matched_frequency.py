"""Equal frequency, unequal gaps: what a task's loss and score are when N instances come every N.

    matched_frequency(read_records("runs/matched_frequency"), metric="choice_loss")

The study's Fig. 6b. Only runs that share everything but the gap stand beside one another: protocol,
family, parameters of the task, mean rate, learning rate, corpus and the step at which they end. A
run whose steps are a multiple of its gap ends just before a burst (`when="end"`); what it reaches
right after its last one is `when="after"`, from the records of the retention callback. A claim
about gaps is read at the end: a larger burst also lifts higher, for some steps.
"""

from __future__ import annotations

import math
from typing import Literal

import pandas as pd

from data_injection.errors import ConfigError
from eval.retention.retained import loss_metric
from eval.scores.rows import once, setting, told_apart
from eval.statistics import MIN_SEEDS, seed_fields

GROUP = ("protocol", "family", "setting", "rate_per_step", "end")
"""What one panel may show."""


@once
def matched_frequency(
    frame: pd.DataFrame,
    *,
    metric: str | None = None,
    split: str = "test",
    when: Literal["end", "after"] = "end",
) -> pd.DataFrame:
    """One row per group, rung and gap, ascending.

    Columns: GROUP (`end`: the run's last step), rung, params, gap, metric, split, value (mean over
    seeds), low, high (95%), change, change_low, change_high (against the smallest gap of the rung,
    seed by seed; NaN where the seeds differ), n_seeds, provisional, exposures_per_example, null
    (label entropy for a loss: what knowing how often each label comes would lose; 0 for the
    score). `metric` None is `loss_metric`'s. Raises ConfigError where no task comes at one gap all
    through.
    """
    metric = metric or loss_metric(frame)
    rows = _rows(frame, metric=metric, split=split, when=when)
    if rows.empty:
        rule = f"hold no {split} {metric!r} of a task with one gap all through"
        remedy = "train a sweep over bursts such as configs/confirm/matched_frequency.yaml"
        raise ConfigError(key="records", rule=rule, remedy=remedy)
    entropy = _rows(frame, metric="label_entropy", split=split, when="end")
    null = entropy.groupby(["family", "setting"]).value.mean()
    table: list[dict[str, object]] = []
    for key, group in rows.groupby([*GROUP, "rung", "params"], sort=True):
        smallest = group[group.gap == group.gap.min()].groupby("seed").value.mean()
        for gap, of_gap in group.groupby("gap", sort=True):
            values = of_gap.groupby("seed").value.mean()
            same = values.index.equals(smallest.index)
            table.append(
                dict(zip([*GROUP, "rung", "params"], key, strict=True))
                | {"gap": int(gap), "metric": metric, "split": split}
                | seed_fields(values.tolist())
                | seed_fields((values - smallest).tolist() if same else [], "change")
                | {"n_seeds": len(values), "provisional": len(values) < MIN_SEEDS}
                | {"exposures_per_example": float(of_gap.exposures_per_example.mean())}
                | {"null": 0.0 if metric == "score" else null.get(key[1:3], math.nan)}
            )
    return pd.DataFrame(table).sort_values([*GROUP, "params", "rung", "gap"], ignore_index=True)


def _rows(
    frame: pd.DataFrame, *, metric: str, split: str, when: Literal["end", "after"]
) -> pd.DataFrame:
    """The rows of tasks with a gap, each run's at its end or right after its last burst."""
    run = [name for name in ("folder", "run", "seed") if name in frame]
    wanted = {*frame, "gap", "variant", "schedule", "subset", "burst", "lag"}
    rows = frame.reindex(columns=sorted(wanted))
    rows = rows[rows.gap.notna() & (rows.task != "") & (rows.split == split)]
    rows = rows.assign(end=rows.groupby(run).step.transform("max"), setting=setting(rows))
    rows["family"] += told_apart(rows)
    whole = rows.subset.fillna("all").isin(["all", "sampled"])
    if when == "end":
        return rows[whole & (rows.metric == metric) & (rows.step == rows.end)]
    after = rows[whole & (rows.metric == f"{metric}_lag") & (rows.lag == 0)]
    return after[after.burst == after.groupby([*run, "task"]).burst.transform("max")]
