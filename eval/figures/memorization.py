"""What was learned by heart, by number of copies: loss, extraction, exposure, membership.

from eval.figures.memorization import memorization
memorization(read_records("runs/canaries")).savefig("memorization.png", dpi=180)
"""

from __future__ import annotations

import re
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from data_injection.errors import ConfigError
from eval.figures import style
from eval.scores.memorization import METRICS, TWINS
from eval.scores.rows import CONTROLS, one_precision, run_names, told_apart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "sequence_loss": "Loss of a token, nats",
    "extraction": "Extracted, share",
    "exposure": "Exposure, bits",
    "membership_auc": "Membership, AUC",
}

TEXTS = CONTROLS | {"step": ", to step {:g}", "prefix": ", prefix {:g}"}


def memorization(frame: pd.DataFrame) -> Figure:
    """A panel a measure over the number of copies, a line per rung, at each run's last step.

    frame: records, as read. A block of panels per protocol, task and variant, and per what else a
    rung has several of (TEXTS): such runs are never averaged. Bars: 95% over sequences where a rung
    has one seed, else a band over seeds. Raises ConfigError if nothing was measured.
    """
    rows = frame[frame.metric.isin(METRICS)] if "copies" in frame else frame[:0]
    if rows.empty:
        rule = "hold no memorization"
        raise ConfigError(key="records", rule=rule, remedy="inject a task of family sequences")
    run = run_names(one_precision(rows))
    rows = rows[rows.step == rows.groupby(run).step.transform("max")]
    rows = rows.assign(family=list(map(_name, rows.task, rows.variant, rows.step)))
    if "prefix" in rows:  # the extraction's alone
        rows["prefix"] = rows.groupby(run).prefix.transform("max")
    blocks = list(rows.groupby(["protocol", rows.family + told_apart(rows, TEXTS)]))
    shown = [metric for metric in METRICS if (rows.metric == metric).any()]
    figure = style.new_figure(style.WIDTHS[1], (5.6 if len(shown) > 2 else 3.2) * len(blocks))
    looks = style.rung_looks(rows)
    seeds = [style.span(block.groupby("rung").seed.nunique()) for _, block in blocks]
    names = [f"{name}, {protocol} protocol" for (protocol, name), _ in blocks]
    titles = [fill(", ".join(one), 80) for one in zip(names, seeds, strict=True)]
    for part, (_, block) in zip(style.headed(figure, titles), blocks, strict=True):
        _draw_block(part, block, shown, looks)
    handles = style.handles_of(looks)
    handles.append(style.handle("of that colour, twins; grey, chance", **style.THRESHOLD))
    style.legend_below(figure, handles, max(2, len(handles)))
    return figure


def _name(task: str, variant: str, step: int) -> str:
    """Task and variant, "random 0-40" of 80 steps as 0%-50%: sizes may train for other lengths."""
    steps, whole = r"\d+(?=-\d)|(?<=\d-)\d+", max(step, 1)
    return f"{task}, " + re.sub(steps, lambda n: f"{100 * int(n[0]) / whole:.4g}%", variant)


def _draw_block(
    part: Any, block: pd.DataFrame, shown: list[str], looks: dict[str, dict[str, Any]]
) -> None:
    levels = sorted(block.copies[block.subset != TWINS].unique().tolist())
    for axis, metric in zip(style.panels(part, len(shown), abreast=2).ravel(), shown, strict=False):
        for (_, rung), rows in block[block.metric == metric].groupby(["params", "rung"]):
            _draw(axis, rows, levels, looks[rung])
            _draw_null(axis, rows, metric, looks[rung]["color"])
        style.dress(axis, TITLES[metric], "copies", grid=True)
        style.place_ticks(axis.xaxis, range(len(levels)), [f"{level:g}" for level in levels])


def _draw(axis: Any, rows: pd.DataFrame, levels: list[float], look: dict[str, Any]) -> None:
    rows = rows[rows.subset != TWINS]
    if rows.empty:
        return
    rows = rows.assign(place=rows.copies.map(levels.index))
    style.mean_over_seeds(axis, style.by_seed(rows, x="place"), markersize=4, **look)
    if rows.seed.nunique() == 1:
        mean = rows.groupby("place")[["value", "low", "high"]].mean()
        # Of a share of 0 rounding puts the lower bound above it.
        # In one array: of a list's arrays of one number each NumPy refuses to make numbers.
        reach = np.stack([mean.value - mean.low, mean.high - mean.value]).clip(min=0)
        axis.errorbar(mean.index, mean.value, reach, color=look["color"], linewidth=1, fmt="none")


def _draw_null(axis: Any, rows: pd.DataFrame, metric: str, color: str) -> None:
    """A rung's own twins; in grey what a sequence like its twins would have."""
    own = rows.value[rows.subset == TWINS].groupby(rows.seed).mean().mean()
    alike = rows.get("null_mean", pd.Series(dtype=float)).mean()
    chance = {"exposure": alike, "membership_auc": 0.5}.get(metric)
    null, told = (own, {"color": color}) if chance is None else (chance, {})
    if null == null:
        axis.axhline(null, zorder=1, **style.THRESHOLD | told)
