"""Equal frequency, unequal gaps: what a task's loss and score are when N instances come every N.

    matched_frequency(read_records("runs/matched_frequency"), metric="label_loss")

The study's Fig. 6b. Only runs that share everything but the gap stand beside one another: protocol,
family, parameters of the task, mean rate and the step at which they end. A run whose steps are a
multiple of its gap ends just before a burst (`when="end"`); what it reaches right after its last
one is `when="after"`, from the records of the retention callback. A claim about gaps is read at the
end: a larger burst also lifts higher, for some steps.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from data_injection.errors import ConfigError
from eval.statistics import MIN_SEEDS, seed_interval

GROUP = ("protocol", "family", "setting", "rate_per_step", "end")
"""What one panel may show."""


def matched_frequency(
    frame: pd.DataFrame,
    *,
    metric: str = "label_loss",
    split: str = "test",
    when: Literal["end", "after"] = "end",
) -> pd.DataFrame:
    """One row per group, rung and gap, ascending.

    Columns: GROUP (`end`: the run's last step), rung, params, gap, metric, split, value (mean over
    seeds), low, high (95%), change, change_low, change_high (against the smallest gap of the rung,
    seed by seed; NaN where the seeds differ), n_seeds, provisional, exposures_per_example, null
    (label entropy for the label loss: what knowing how often each label comes would lose; 0 for the
    score). Raises ConfigError where no task comes at one gap all through.
    """
    rows = _rows(frame, metric=metric, split=split, when=when)
    if rows.empty:
        raise ConfigError(
            f"records hold no {split} {metric!r} of a task with one gap all through; train a sweep "
            "over bursts such as configs/confirm/matched_frequency.yaml"
        )
    null = _rows(frame, metric="label_entropy", split=split, when="end").value.mean()
    table: list[dict[str, object]] = []
    for key, group in rows.groupby([*GROUP, "rung", "params"], sort=True):
        per_seed = {
            float(gap): of_gap.groupby("seed").value.mean()
            for gap, of_gap in group.groupby("gap", sort=True)
        }
        smallest = next(iter(per_seed.values()))
        for gap, values in per_seed.items():
            value, low, high = seed_interval(values.tolist())
            same = values.index.equals(smallest.index)
            change = seed_interval((values - smallest).tolist()) if same else (np.nan,) * 3
            exposures = group[group.gap == gap].exposures_per_example.mean()
            table.append(
                dict(zip([*GROUP, "rung", "params"], key, strict=True))
                | {"gap": int(gap), "metric": metric, "split": split}
                | {"value": value, "low": low, "high": high}
                | dict(zip(("change", "change_low", "change_high"), change, strict=True))
                | {"n_seeds": len(values), "provisional": len(values) < MIN_SEEDS}
                | {"exposures_per_example": float(exposures)}
                | {"null": null if metric == "label_loss" else 0.0}
            )
    order = [*GROUP, "params", "rung", "gap"]
    return pd.DataFrame(table).sort_values(order, ignore_index=True)


def _rows(
    frame: pd.DataFrame, *, metric: str, split: str, when: Literal["end", "after"]
) -> pd.DataFrame:
    """The rows of tasks with a gap, each run's at its end or right after its last burst."""
    if "gap" not in frame:
        return frame.iloc[:0].assign(gap=np.nan, setting="", end=0)
    run = [name for name in ("folder", "run", "seed") if name in frame]
    rows = frame[frame.gap.notna() & (frame.task != "") & (frame.split == split)]
    # Records of before have no schedule: then the variant names none either, or tells it apart.
    said = rows.reindex(columns=["variant", "schedule"]).fillna("").itertuples(index=False)
    setting = [one.variant.removeprefix(one.schedule).removeprefix(", ") for one in said]
    rows = rows.assign(end=rows.groupby(run).step.transform("max"), setting=setting)
    whole = rows.subset.fillna("all").isin(["all", "sampled"])
    if when == "end":
        return rows[whole & (rows.metric == metric) & (rows.step == rows.end)]
    if "burst" not in rows:
        return rows.iloc[:0]
    after = rows[whole & (rows.metric == f"{metric}_lag") & (rows.lag == 0)]
    return after[after.burst == after.groupby([*run, "task"]).burst.transform("max")]
