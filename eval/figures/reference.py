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

from data_injection.errors import ConfigError
from eval.figures import style
from eval.scores.cells import LEARNED_SCORE, cells
from eval.scores.rows import task_rows
from eval.statistics import MIN_SEEDS
from eval.text import number

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
        rule = "hold no reference task"
        raise ConfigError(key="records", rule=rule, remedy="run `olmo-ext reference` on the runs")
    per_token = rows.rate_per_token / rows.rate_per_step.where(rows.rate_per_step > 0)
    per_token = per_token.fillna(1 / (rows.batch_size * rows.seq_len))
    rows = rows.assign(low=rows.rate_low * per_token, high=rows.rate_high * per_token)
    columns = ["task", "rate_per_token", "low", "high", "value", "corpus_hash"]
    latest = rows[columns].drop_duplicates(["task", "corpus_hash"], keep="last")
    return latest.reset_index(drop=True)


def beside_natural(frame: pd.DataFrame) -> Figure:
    """Test score by rate per token, a panel per rung, with dashed lines at natural frequencies.

    frame: records, as read. A band around a dashed line is the 95% interval of its rate; where
    none was found only the interval's upper end is drawn. Raises ConfigError if there is no
    reference task or no score.
    """
    natural = natural_frequencies(frame)
    table = cells(frame)
    rungs = style.sizes(table)
    abreast = style.abreast(len(rungs))
    height = 2.7 * math.ceil(len(rungs) / abreast) + 0.8
    figure = style.new_figure(style.WIDTHS[abreast - 1], height)
    axes = style.panels(figure, len(rungs), abreast=abreast, sharex=True, sharey=True).ravel()
    for axis, (params, rung) in zip(axes, rungs, strict=False):
        for (protocol, family), line in table[table.rung == rung].groupby(["protocol", "family"]):
            _draw_injected(axis, line.sort_values("rate_per_token"), f"{family}, {protocol}")
        for row in natural.itertuples():
            _draw_natural(axis, row)
        axis.set_xscale("log")
        axis.axhline(LEARNED_SCORE, zorder=1, **style.THRESHOLD)
        left = "test score" if axis is axes[0] else ""
        style.dress(axis, style.size_title(params, rung), "instances per token", left)
    axes[0].set_ylim(min(-0.12, float(np.nanmin(table.value)) - 0.05), 1.05)
    figure.suptitle("Injected tasks beside natural ones", fontsize=11.5, color=style.INK)
    handles, _ = axes[0].get_legend_handles_labels()
    style.legend_below(figure, handles, min(3, len(handles)))
    return figure


def _draw_injected(axis: Any, line: pd.DataFrame, label: str) -> None:
    axis.plot(line.rate_per_token, line.value, "o-", markersize=3.6, linewidth=1.6, zorder=3,
              label=style.plain(label))  # fmt: skip
    if (line.n_seeds >= MIN_SEEDS).all():
        axis.fill_between(line.rate_per_token, line.low, line.high, alpha=0.15, linewidth=0)


def _draw_natural(axis: Any, row: Any) -> None:
    colour = COLOURS.get(row.task, style.FAINT)
    if row.value == 0:
        axis.axvline(row.high, color=colour, linestyle=":", linewidth=1.2,
                     label=f"{row.task}: none found, below {number(row.high)}")  # fmt: skip
        return
    label = f"{row.task}: {number(row.rate_per_token)} per token ({row.value:,.0f} found)"
    axis.axvline(row.rate_per_token, color=colour, linestyle="--", linewidth=1.2, label=label)
    axis.axvspan(row.low, row.high, color=colour, alpha=0.1, linewidth=0)
