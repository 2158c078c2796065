"""The run as a run: the loss of ordinary text, and how fast it went.

from eval.figures.training import training
training(load_runs("runs/sweep")[0]).savefig("training.png", dpi=180)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from data_injection.errors import ConfigError
from eval.figures import style
from eval.scores.rows import run_names
from eval.text import count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = {"train_loss": "loss of the whole batch, nats", "tokens_per_second": "tokens per second"}


def training(frame: pd.DataFrame) -> Figure:
    """A panel per metric of SHOWN that the records hold: a thin line per run, a colour per rung.

    frame: records, as read. Raises ConfigError if they hold none of both.
    """
    rows = frame[frame.metric.isin(SHOWN) & (frame.task == "") & frame.value.notna()]
    # One point is no course: a run of before that was evaluated at its end alone.
    rows = rows[rows.groupby("metric").step.transform("nunique") > 1]
    if rows.empty:
        rule = "hold no training loss"
        raise ConfigError(key="records", rule=rule, remedy="train with the task_eval callback")
    shown = [metric for metric in SHOWN if (rows.metric == metric).any()]
    figure = style.new_figure(style.WIDTHS[len(shown) - 1], 3.3)
    looks = {rung: {"color": look["color"]} for rung, look in style.rung_looks(rows).items()}
    for axis, metric in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        part = rows[rows.metric == metric]
        for (rung, _), line in part.groupby([part.rung, run_names(part)]):
            axis.plot(line.step, line.value, linewidth=1, alpha=0.8, **looks[rung])
        style.dress(axis, SHOWN[metric], "step", grid=True)
        if metric == "tokens_per_second":
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(lambda value, _: count(value))
            axis.yaxis.set_minor_formatter(lambda value, _: count(value))
            axis.tick_params(axis="y", which="minor", labelsize=7)
    style.legend_below(figure, style.handles_of(looks, linewidth=1.6), min(6, len(looks)))
    return figure
