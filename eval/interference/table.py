"""Interference by cell: what each size's gradients say of a task, late in training and over seeds.

    from eval.interference.table import interference_table
    interference_table(read_records("runs/confirm/mechanism")).to_csv("interference.csv")

A cosine alone is no finding: before a task is learned g_r is mostly the label marginal. So every
cosine stands beside the one with permuted labels (`_null`), the difference (`_excess`) and the one
with what the permuted labels do not say (`_perp`), and every cell says how much of g_r that part is
(`perp_share`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from data_injection.errors import ConfigError
from eval.scores.rows import once, task_rows
from eval.statistics import MIN_SEEDS, per_group, seed_fields

COSINES = ("cos_g_nt", "cos_g_t_all", "cos_g_t_label", "cos_update")
"""Metrics of eval.interference.measure that the table and the figure show."""

PARTS = ("", "_null", "_excess", "_perp")
"""Of each: the cosine, its permuted-labels twin, their difference, the part beyond the twin."""

PLACE = ("protocol", "family", "rate_per_step", "group", "layer", "split", "n")
"""What one figure block may show; split and n say which instances g_r is made of."""

LAYERLESS = -1
"""The layer of the group `model` while tables are joined: pandas drops NaN keys."""

SINCE = 0.5
"""Cells are read after this share of a run: past warm-up, when most of what is learned is."""


@once
def interference_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per protocol, family, task rate, place and rung: the mean of a run's later steps.

    frame: records, as read. Of each run the measured steps after SINCE of its last step are
    averaged (a seed is one draw, however many of them), then the seeds.

    Columns: PLACE (layer NaN: the whole model), rung, params, then each of COSINES with each of
    PARTS, abs_cos_g_nt (mean size of a step's cosine, whatever its sign) and perp_share, all with
    `_low` and `_high` (Student's t at 95%, NaN for one seed), dim, random_spread, n_seeds, n_steps
    (fewest of a seed), provisional. What was not measured is NaN. Raises ConfigError if nothing
    was measured there.
    """
    steps = measured_steps(frame)
    late = steps[steps.step > SINCE * steps.last_step]
    if late.empty:
        rule = f"hold no interference after {SINCE:g} of a run's steps"
        remedy = "let the runs go on, or measure more often (callbacks.interference.every)"
        raise ConfigError(key="records", rule=rule, remedy=remedy)
    rows = per_group(late, [*PLACE, "rung", "params"], _cell)
    return pd.DataFrame(rows).sort_values([*PLACE, "params", "rung"], ignore_index=True)


@once
def measured_steps(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per run, task, place and measured step: what `interference_table` averages.

    Columns: PLACE, rung, params, run, seed, plan_hash, task, step, last_step (the run's), each of
    COSINES with each of PARTS, abs_cos_g_nt, perp_share, random_spread, dim. Raises ConfigError if
    no interference was measured.
    """
    run = [name for name in ("folder", "run", "seed", "plan_hash") if name in frame]
    rows = task_rows(frame.assign(last_step=frame.groupby(run).step.transform("max")))
    if not (rows.metric == "cos_g_nt").any():
        rule = "hold no interference"
        remedy = "train with `callbacks.interference` set"
        raise ConfigError(key="records", rule=rule, remedy=remedy)
    rows = rows.assign(layer=rows.layer.fillna(LAYERLESS).astype(int))
    key = [*PLACE, "rung", "params", *run, "task", "step", "last_step"]
    of_metric = {
        metric: rows[rows.metric == metric].set_index(key) for metric in (*COSINES, "norm_g_r")
    }
    table = of_metric["cos_g_nt"][["random_spread", "dim"]]
    for metric in COSINES:
        one = of_metric[metric]
        table = table.join(
            pd.DataFrame(
                {
                    metric: one.value,
                    f"{metric}_null": one.null_labels,
                    f"{metric}_excess": one.value - one.null_labels,
                    f"{metric}_perp": one.perp,
                }
            )
        )
    table = table.join(of_metric["norm_g_r"].perp_share).assign(abs_cos_g_nt=table.cos_g_nt.abs())
    table = table.reset_index()
    return table.assign(layer=table.layer.where(table.layer != LAYERLESS))


def _cell(group: pd.DataFrame) -> dict[str, object]:
    per_seed = group.groupby("seed").mean(numeric_only=True)
    names = [f"{metric}{part}" for metric in COSINES for part in PARTS]
    cell: dict[str, object] = {}
    for name in (*names, "abs_cos_g_nt", "perp_share"):
        cell |= seed_fields(per_seed[name].dropna().tolist(), name)
    num_seeds = len(per_seed)
    return cell | {
        "dim": float(np.mean(group.dim)),
        "random_spread": float(np.mean(group.random_spread)),
        "n_seeds": num_seeds,
        "n_steps": int(group.groupby("seed").step.nunique().min()),
        "provisional": num_seeds < MIN_SEEDS,
    }
