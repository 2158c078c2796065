"""Whether the rest of a batch pushes against a rare task, drawn from records.

    from eval.figures.interference import interference
    interference(read_records("runs/sweep")).savefig("interference.png", dpi=180)

The study's Fig. 9 (and the cosines of its Fig. 8), with the nulls without which they say little.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eval.figures import style
from eval.interference.table import PLACE, interference_table, measured_steps
from eval.statistics import MIN_SEEDS
from eval.text import count, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABREAST = 4

SMALL_SHARE = 0.1
"""Below it the part of g_r beyond the label marginal is under 1% of its squared length."""

LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "": (
        "cosine with the task's gradient $g_r$",
        {"color": style.BLUE, "linestyle": "-", "marker": "o"},
    ),
    "_null": (
        "null: the same, the task's labels permuted",
        {"color": style.RED, "linestyle": (0, (4, 2)), "marker": "s"},
    ),
    "_perp": (
        "perp: with the part of $g_r$ that the null does not have",
        {"color": style.GREEN, "linestyle": (0, (1, 1)), "marker": "^"},
    ),
}
"""By the part of a cosine (eval.interference.table.PARTS)."""

SUMMARIES = {
    "cos_g_nt": "of the rest of the batch, $g_{nt}$",
    "cos_g_t_label": "of the task's own rows, $g_t$",
    "cos_update": "of the step taken, after AdamW",
}
"""Panels against size, one each."""

SIZE: dict[str, Any] = {"color": style.INK, "linewidth": 0.9, "marker": "x", "markersize": 4.5}
"""The mean |cosine| of a step: collisions are random in sign, so that the mean hides them."""

BAND: dict[str, Any] = {"color": style.BAND, "alpha": 0.45, "linewidth": 0, "zorder": 0}


def interference(frame: pd.DataFrame) -> Figure:
    """A block per protocol, family, rate and group: cos_g_nt over steps per rung, then by size.

    frame: records, as read. Lines are means over seeds with a 95% band from three seeds on; where
    seeds were measured at different steps each has a line of its own; a wide band may leave the
    panel. Lower row: means of the last half of each run, by size. Grey: ±2 standard deviations of a
    random direction's cosine, which is narrow, since gradients share few directions. Groups are
    mlp_top and model, layers only where there is neither. Raises ConfigError if no interference
    was measured in a last half.
    """
    steps, table = measured_steps(frame), interference_table(frame)
    if steps.group.isin(["mlp_top", "model"]).any():
        steps = steps[steps.group != "layers"]
    blocks = list(steps.groupby(list(PLACE), dropna=False))
    sizes = [rows.rung.nunique() for _, rows in blocks]
    down = [math.ceil(num / style.abreast(num, ABREAST)) + 1 for num in sizes]
    figure = style.new_figure(9.3, sum(2.3 * n + 0.6 for n in down) + 0.4)
    parts = style.headed(figure, [_title(rows) for _, rows in blocks], down)
    for part, num, (key, rows) in zip(parts, down, blocks, strict=True):
        _draw_block(part, num, rows, style.panel_rows(table, PLACE, key))
    _legend(figure)
    return figure


def _draw_block(part: Any, down: int, rows: pd.DataFrame, cells: pd.DataFrame) -> None:
    rungs = style.sizes(rows)
    upper, lower = part.subfigures(2, 1, height_ratios=(down - 1, 1))
    grid = style.panels(upper, len(rungs), abreast=style.abreast(len(rungs), ABREAST), sharey=True)
    for axis, (params, rung) in zip(grid.ravel(), rungs, strict=False):
        _draw_over_steps(axis, rows[rows.rung == rung])
        _say_share(axis, cells[cells.rung == rung])
        _dress(axis, style.size_title(params, rung), "step")
    for axis in grid[:, 0]:
        axis.set_ylabel("cosine of $g_{nt}$,\nthe rest of the batch", fontsize=9)
    grid[0, 0].set_ylim(*_limits(rows))
    axes = lower.subplots(1, len(SUMMARIES))
    for axis, (metric, what) in zip(axes, SUMMARIES.items(), strict=True):
        _draw_by_size(axis, metric, cells)
        _dress(axis, what, "parameters")
    axes[0].set_ylabel("mean of the last half", fontsize=9)


def _draw_over_steps(axis: Any, rows: pd.DataFrame) -> None:
    spread = rows.groupby("step").random_spread.mean()
    axis.fill_between(spread.index, -2 * spread, 2 * spread, **BAND)
    for part, (_, look) in LINES.items():
        line = {"color": look["color"], "linestyle": look["linestyle"]}
        by_seed = style.by_seed(rows, value=f"cos_g_nt{part}")
        whole = by_seed.dropna()
        # Bernoulli and random schedules let every seed be measured at steps of its own.
        if 2 * len(whole) < by_seed.count().min():
            for _, of_seed in by_seed.items():
                axis.plot(of_seed.dropna(), linewidth=0.9, alpha=0.7, **line)
            continue
        style.mean_over_seeds(axis, whole, linewidth=1.5, alpha=0.13, **line)


def _limits(rows: pd.DataFrame) -> tuple[float, float]:
    """Room for the means: Student's t over three seeds would flatten them to a line at 0."""
    names = [f"cos_g_nt{part}" for part in LINES]
    means = rows.groupby(["rung", "step"])[names].mean().abs().to_numpy()
    top = 2.2 * max(float(np.nanmax(means)), 2 * float(rows.random_spread.max()))
    return -top, top


def _draw_by_size(axis: Any, metric: str, cells: pd.DataFrame) -> None:
    axis.set_xscale("log")
    if cells.empty or cells[metric].isna().all():
        style.say(axis, "not measured\nin the last half")
        return
    x = cells.params.to_numpy(dtype=float)
    edges = np.array([x.min() / 1.35, *x, x.max() * 1.35])
    band = 2 * cells.random_spread.to_numpy()[[0, *range(len(x)), -1]]
    axis.fill_between(edges, -band, band, **BAND)
    for index, (part, (_, look)) in enumerate(LINES.items()):
        value, low, high = (cells[f"{metric}{part}{end}"] for end in ("", "_low", "_high"))
        shown = cells.n_seeds >= MIN_SEEDS
        bars = np.array([(value - low).where(shown, 0), (high - value).where(shown, 0)])
        # A hollow mark: there is too little of g_r beyond the label marginal to speak of.
        small = (cells.perp_share < SMALL_SHARE).to_numpy() & (part == "_perp")
        places = x * 1.06 ** (index - 1)  # so that bars do not cover one another
        quiet = {name: look[name] for name in ("color", "linestyle")}
        axis.errorbar(
            places, value, yerr=np.nan_to_num(bars), capsize=2.5, linewidth=1.3, zorder=3, **quiet
        )
        for chosen, face in ((~small, look["color"]), (small, style.PAPER)):
            axis.plot(
                places[chosen], value[chosen], look["marker"], markersize=4.5, zorder=4,
                color=look["color"], markerfacecolor=face,
            )  # fmt: skip
    if metric == "cos_g_nt":
        axis.plot(x, cells.abs_cos_g_nt, zorder=2, **SIZE)
    axis.set_xlim(edges[0], edges[-1])
    style.place_ticks(
        axis.xaxis, x, [f"{r}\n{count(p)}" for r, p in zip(cells.rung, x, strict=True)]
    )


def _say_share(axis: Any, cells: pd.DataFrame) -> None:
    """How much of g_r `perp` speaks for, in the panel: where little, it is said."""
    if cells.empty or cells.perp_share.isna().all():
        return
    share = float(cells.perp_share.mean())
    text = f"perp is {share:.0%} of $g_r$"
    text += "\nand speaks for little" if share < SMALL_SHARE else ""
    put = {"ha": "right", "va": "top", "fontsize": 7.5, "color": style.INK}
    axis.text(0.97, 0.96, text, transform=axis.transAxes, **put)


def _title(rows: pd.DataFrame) -> str:
    one = rows.iloc[0]
    where = {
        "mlp_top": f"strongest neurons of layer {one.layer:.0f}'s MLP",
        "layers": f"layer {one.layer:.0f}",
        "model": "whole model",
    }[one.group]
    family, rate = style.plain(one.family), number(one.rate_per_step)
    seeds = style.seeds_said(rows.groupby("rung").seed.nunique())
    return f"{family}, {one.protocol}, {rate} per step; {where}: {seeds}"


def _dress(axis: Any, title: str, below: str) -> None:
    style.dress(axis, title, below)
    axis.axhline(0, color=style.FAINT, linewidth=0.8, zorder=1)
    axis.margins(y=0.18)


def _legend(figure: Any) -> None:
    from matplotlib.patches import Patch

    handles = style.handles_of(dict(LINES.values()), markersize=4.5, linewidth=1.5)
    band = {name: BAND[name] for name in ("color", "alpha")}
    handles.append(Patch(label="± 2 sd of a random direction", **band))
    handles.append(style.handle("mean |cosine| of a step", **SIZE))
    hollow: dict[str, Any] = LINES["_perp"][1] | {
        "markerfacecolor": style.PAPER,
        "linestyle": "none",
    }
    label = f"perp below {SMALL_SHARE:.0%} of $g_r$: says little"
    handles.append(style.handle(label, markersize=4.5, **hollow))
    style.legend_below(figure, handles, 2)
