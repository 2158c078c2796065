"""What was learned by heart, by number of copies: loss, extraction, exposure, membership.

from eval.figures.memorization import memorization
memorization(read_records("runs/canaries")).savefig("memorization.png", dpi=180)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from data_injection.errors import ConfigError
from eval.figures import style
from eval.scores.memorization import METRICS, TWINS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "sequence_loss": "Loss of a token, nats",
    "extraction": "Extracted, share",
    "exposure": "Exposure, bits",
    "membership_auc": "Membership, AUC",
}


def memorization(frame: pd.DataFrame) -> Figure:
    """A panel a measure over the number of copies, a line per rung, at each run's last step.

    frame: records, as read. Bars: 95% over sequences where a rung has one seed, else a band over
    seeds. Several tasks of a run are averaged. Raises ConfigError if nothing was measured.
    """
    rows = frame[frame.metric.isin(METRICS)] if "copies" in frame else frame[:0]
    if rows.empty:
        rule = "hold no memorization"
        raise ConfigError(key="records", rule=rule, remedy="inject a task of family sequences")
    rows = rows[rows.step == rows.groupby("run").step.transform("max")]
    levels = sorted(rows.copies[rows.subset != TWINS].unique().tolist())
    shown = [metric for metric in METRICS if (rows.metric == metric).any()]
    figure = style.new_figure(style.WIDTHS[1], 5.6 if len(shown) > 2 else 3.2)
    axes = style.panels(figure, len(shown), abreast=2)
    looks = style.rung_looks(rows)
    for axis, metric in zip(axes.ravel(), shown, strict=False):
        of_metric = rows[rows.metric == metric]
        for rung, look in looks.items():
            _draw(axis, of_metric[of_metric.rung == rung], levels, look)
        _draw_null(axis, of_metric, metric)
        style.dress(axis, TITLES[metric], "copies", grid=True)
        style.place_ticks(axis.xaxis, range(len(levels)), [f"{level:g}" for level in levels])
    seeds = rows.groupby("rung").seed.nunique()
    figure.suptitle(f"By number of copies, {style.span(seeds)}", fontsize=11.5, color=style.INK)
    handles = style.handles_of(looks)
    handles.append(style.handle("twins, or chance", **style.THRESHOLD))
    style.legend_below(figure, handles, max(2, len(handles)))
    return figure


def _draw(axis: Any, rows: pd.DataFrame, levels: list[float], look: dict[str, Any]) -> None:
    rows = rows[rows.subset != TWINS]
    if rows.empty:
        return
    rows = rows.assign(place=rows.copies.map(levels.index))
    style.mean_over_seeds(axis, style.by_seed(rows, x="place"), markersize=4, **look)
    if rows.seed.nunique() == 1:
        mean = rows.groupby("place")[["value", "low", "high"]].mean()
        # Of a share of 0 rounding puts the lower bound above it.
        ends = [mean.value - mean.low, mean.high - mean.value]
        reach = [end.clip(lower=0) for end in ends]
        axis.errorbar(mean.index, mean.value, reach, color=look["color"], linewidth=1, fmt="none")


def _draw_null(axis: Any, rows: pd.DataFrame, metric: str) -> None:
    """The twins' own value, or what a sequence like its twins would have."""
    null = {
        "exposure": rows.null_mean.mean() if "null_mean" in rows else float("nan"),
        "membership_auc": 0.5,
    }.get(metric, rows.value[rows.subset == TWINS].mean())
    if null == null:
        axis.axhline(null, zorder=1, **style.THRESHOLD)
