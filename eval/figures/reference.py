"""Injected and natural tasks on one axis of frequency, drawn from records.

    from eval.figures.reference import beside_natural
    beside_natural(read_records("runs/sweep")).savefig("reference.png", dpi=180)

After the study's Fig. 6a, whose dashed lines are its reference tasks. The heatmap's columns are
categories, between which a natural frequency has no place; here the axis is the rate per token.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from data_injection.config import ConfigError
from eval.figures.heatmap import FAINT, INK, THRESHOLD
from eval.scores.cells import LEARNED_SCORE, cells, task_rows
from eval.statistics import MIN_SEEDS
from eval.text import count, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"R_cmp": "#b3402a", "R_add": "#7a3fb3"}


def natural_frequencies(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per reference task and corpus: task, rate_per_token, low, high, value, corpus_hash.

    `value` is the number of true statements found; low and high are the 95% interval of the rate
    per token. Raises ConfigError if the records hold no reference task.
    """
    rows = task_rows(frame)
    rows = rows[rows.metric == "natural_count"]
    if rows.empty:
        raise ConfigError("records hold no reference task; run `olmo-ext reference` on the runs")
    per_token = rows.rate_per_token / rows.rate_per_step.where(rows.rate_per_step > 0)
    per_token = per_token.fillna(1 / (rows.batch_size * rows.seq_len))
    rows = rows.assign(low=rows.rate_low * per_token, high=rows.rate_high * per_token)
    columns = ["task", "rate_per_token", "low", "high", "value", "corpus_hash"]
    return rows[columns].drop_duplicates(["task", "corpus_hash"]).reset_index(drop=True)


def beside_natural(frame: pd.DataFrame) -> Figure:
    """Test score by rate per token, a panel per rung, with dashed lines at natural frequencies.

    frame: records, as read. A band around a dashed line is the 95% interval of its rate; where
    none was found only the interval's upper end is drawn. Raises ConfigError if there is no
    reference task or no score.
    """
    from matplotlib.figure import Figure

    natural = natural_frequencies(frame)
    table = cells(frame)
    rungs = sorted({*zip(table.params, table.rung, strict=True)})
    abreast = min(3, len(rungs))
    down = math.ceil(len(rungs) / abreast)
    figure = Figure(figsize=((5.6, 8.0, 9.3)[abreast - 1], 2.7 * down + 0.8), layout="constrained")
    axes = figure.subplots(down, abreast, sharex=True, sharey=True, squeeze=False).ravel()
    for axis in axes[len(rungs) :]:
        axis.set_visible(False)
    for axis, (params, rung) in zip(axes, rungs, strict=False):
        for (protocol, family), line in table[table.rung == rung].groupby(["protocol", "family"]):
            _draw_injected(axis, line.sort_values("rate_per_token"), f"{family}, {protocol}")
        for row in natural.itertuples():
            _draw_natural(axis, row)
        axis.set_xscale("log")
        axis.set_title(f"{rung} ({count(params)} parameters)", fontsize=9.5, color=INK)
        axis.axhline(LEARNED_SCORE, zorder=1, **THRESHOLD)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, colors=INK, length=3)
        axis.set_xlabel("instances per token", fontsize=9)
    axes[0].set_ylabel("test score", fontsize=9)
    axes[0].set_ylim(min(-0.12, float(np.nanmin(table.value)) - 0.05), 1.05)
    figure.suptitle("Injected tasks beside natural ones", fontsize=11.5, color=INK)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(3, len(labels)), fontsize=8.5,
        frameon=False,
    )  # fmt: skip
    return figure


def _draw_injected(axis: Any, line: pd.DataFrame, label: str) -> None:
    axis.plot(line.rate_per_token, line.value, "o-", markersize=3.6, linewidth=1.6, zorder=3,
              label=label.replace("_", " "))  # fmt: skip
    if (line.n_seeds >= MIN_SEEDS).all():
        axis.fill_between(line.rate_per_token, line.low, line.high, alpha=0.15, linewidth=0)


def _draw_natural(axis: Any, row: Any) -> None:
    colour = COLOURS.get(row.task, FAINT)
    if row.value == 0:
        axis.axvline(row.high, color=colour, linestyle=":", linewidth=1.2,
                     label=f"{row.task}: none found, below {number(row.high)}")  # fmt: skip
        return
    label = f"{row.task}: {number(row.rate_per_token)} per token ({row.value:,.0f} found)"
    axis.axvline(row.rate_per_token, color=colour, linestyle="--", linewidth=1.2, label=label)
    axis.axvspan(row.low, row.high, color=colour, alpha=0.1, linewidth=0)
