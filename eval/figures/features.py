"""Feature presence, drawn from records: over the steps of training and against the test score.

    from eval.figures.features import features
    features(read_records("runs/sweep")).savefig("features.png", dpi=180)

The study's Fig. 7. The R^2 of a one-unit target (order) is read at LAYER, a count of units (modes,
elements) is over all layers. R^2 is clipped at 0 here, never in the records.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from data_injection.config import ConfigError
from eval.features.presence import COUNTS
from eval.figures.heatmap import FAINT, INK, MARKERS, THRESHOLD
from eval.scores.cells import groups, task_rows
from eval.statistics import MIN_SEEDS, seed_interval
from eval.text import count, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYER = 1
"""The study localises the order of comparison in the first layer's residual stream."""

ABREAST = 3


def features(frame: pd.DataFrame, *, layer: int = LAYER) -> Figure:
    """A block per protocol, family and target: a panel per rung over steps, one against the score.

    frame: records, as read. Lines are means over seeds, a colour per rate, with a 95% band from
    three seeds on and the seeds themselves below; a dashed line is the null's 99th percentile of
    an R^2 (a count is above its null by definition, and noise counts 0). Each point of the last
    panel is one run at one step. Raises ConfigError if no features were measured.
    """
    from matplotlib.figure import Figure

    blocks = _blocks(frame, layer)
    down = [math.ceil((rows.rung.nunique() + 1) / ABREAST) for *_, rows in blocks]
    figure = Figure(figsize=(9.3, sum(2.45 * n + 0.75 for n in down)), layout="constrained")
    parts = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=down)[:, 0]
    for part, num, (title, label, rows) in zip(parts, down, blocks, strict=True):
        _draw_block(part, num, title, label, rows)
    return figure


def presence(frame: pd.DataFrame, *, layer: int = LAYER) -> pd.DataFrame:
    """One row per run, step, task and target: what the figure shows, for tables and rank tests.

    Columns: those of a record that say whose it is, then group, units, value (R^2 at the layer if
    the target has one unit, else the number of units present at any layer), null99 (of the R^2;
    NaN for a count) and score (the task's test score at the step, NaN if not measured).
    """
    rows = task_rows(frame)
    counted = rows.metric.isin(["probe_count", *COUNTS.values()])
    if not counted.any():
        raise ConfigError("records hold no features; train with `callbacks.features` set")
    task = ["protocol", "family", "rung", "params", "run", "plan_hash", "seed"]
    task += ["rate_per_step", "task", "step"]
    key = [*task, "group"]
    counts = rows[counted & rows.layer.isna()].set_index(key)[["units", "value"]]
    here = rows[rows.layer == layer]
    for name, column in (("_r2", "r2"), ("_r2_null99", "null99")):
        of_target = here[here.metric == here.group.fillna("") + name]
        counts = counts.join(of_target.set_index(key).value.rename(column))
    single = counts.units == 1
    counts["value"] = counts.value.where(~single, counts.r2)
    counts["null99"] = counts.null99.where(single)
    scores = rows[(rows.metric == "score") & (rows.split == "test")].set_index(task).value
    table = counts.drop(columns="r2").reset_index()
    return table.join(scores.rename("score"), on=task).dropna(subset="value", ignore_index=True)


def _blocks(frame: pd.DataFrame, layer: int) -> list[tuple[str, str, pd.DataFrame]]:
    """(title, axis label, rows) of each protocol, family and target."""
    blocks = []
    for protocol, family, rows in groups(presence(frame, layer=layer)):
        for name, of_target in rows.groupby("group"):
            units = int(of_target.units.max())
            label = f"{name} R², layer {layer}" if units == 1 else f"{name}: present of {units}"
            label = f"Fourier modes of {units}" if name == "fourier" else label
            title = f"{family.replace('_', ' ')}, {protocol} protocol"
            blocks.append((title, label, of_target))
    if not blocks:
        raise ConfigError(f"records hold no features at layer {layer}; measure it or name another")
    return blocks


def _draw_block(part: Any, down: int, title: str, label: str, rows: pd.DataFrame) -> None:
    rungs = sorted({*zip(rows.params, rows.rung, strict=True)})
    colours = _colours(rows)
    grid = part.subplots(down, ABREAST, squeeze=False, sharey=True)
    axes = grid.ravel()
    for axis in axes[len(rungs) + 1 :]:
        axis.set_visible(False)
    for axis, (params, rung) in zip(axes, rungs, strict=False):
        for rate, line in rows[rows.rung == rung].groupby("rate_per_step"):
            _draw_over_steps(axis, line, colours[rate])
        _dress(axis, f"{rung} ({count(params)} parameters)", "step")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    last = axes[len(rungs)]
    _draw_against_score(last, rows, rungs, colours)
    _dress(last, "against the test score", "test score of the task")
    for axis in grid[:, 0]:
        axis.set_ylabel(label, fontsize=9)
    _set_limits(grid[0, 0], rows)
    num_seeds = rows.groupby(["rung", "rate_per_step"]).seed.nunique()
    few, most = int(num_seeds.min()), int(num_seeds.max())
    seeds = f"{few}" if few == most else f"{few} to {most}"
    seeds += f" seed{'' if most == 1 else 's'}" + (", provisional" if few < MIN_SEEDS else "")
    part.suptitle(f"{title}: {seeds}", fontsize=11.5, color=INK)
    _draw_legend(part, rows, rungs, colours)


def _draw_over_steps(axis: Any, line: pd.DataFrame, colour: Any) -> None:
    by_seed = line.pivot_table(index="step", columns="seed", values="value", aggfunc="mean")
    whole = by_seed.dropna() if by_seed.notna().all(axis=1).any() else by_seed
    # Clipped after the mean over seeds: the other way round, noise would average above 0.
    stats = np.array([seed_interval(row) for row in whole.to_numpy()])
    mean, low, high = np.maximum(stats, 0).T
    axis.plot(whole.index, mean, color=colour, linewidth=1.6, zorder=3)
    if by_seed.shape[1] >= MIN_SEEDS:
        axis.fill_between(whole.index, low, high, color=colour, alpha=0.15, linewidth=0)
    elif by_seed.shape[1] > 1:
        axis.plot(by_seed.index, by_seed.clip(lower=0), color=colour, linewidth=0.7, alpha=0.6)
    null = line.groupby("step").null99.mean().dropna()
    if len(null):
        axis.plot(
            null.index, null.clip(lower=0), color=colour, linewidth=1.0, linestyle=(0, (4, 3))
        )


def _draw_against_score(
    axis: Any, rows: pd.DataFrame, rungs: list[tuple[int, str]], colours: dict[float, Any]
) -> None:
    look: dict[str, Any] = {"s": 16, "alpha": 0.65, "linewidth": 0, "zorder": 3}
    for marker, (_, rung) in zip(_markers(rungs), rungs, strict=True):
        for rate, points in rows[(rows.rung == rung) & rows.score.notna()].groupby("rate_per_step"):
            axis.scatter(
                points.score, points.value.clip(lower=0), color=colours[rate], marker=marker, **look
            )
    if rows.null99.notna().any():
        axis.axhline(max(float(rows.null99.mean()), 0), zorder=1, **THRESHOLD)
    if rows.score.isna().all():
        axis.text(
            0.5, 0.5, "test score not measured\nat these steps", transform=axis.transAxes,
            ha="center", va="center", fontsize=8, color=FAINT,
        )  # fmt: skip


def _draw_legend(
    part: Any, rows: pd.DataFrame, rungs: list[tuple[int, str]], colours: dict[float, Any]
) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, linewidth=1.6, label=f"{number(rate)} per step")
        for rate, colour in colours.items()
    ]
    if rows.null99.notna().any():
        label = "99th percentile of permuted symbols"
        handles.append(Line2D([], [], label=label, **THRESHOLD))
    handles += [
        Line2D([], [], color=FAINT, marker=marker, markersize=4, linestyle="none", label=rung)
        for marker, (_, rung) in zip(_markers(rungs), rungs, strict=True)
    ]
    part.legend(
        handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8,
        frameon=False,
    )  # fmt: skip


def _set_limits(axis: Any, rows: pd.DataFrame) -> None:
    if (rows.units == 1).all():
        axis.set_ylim(-0.04, 1.04)
    else:
        top = max(float(rows.value.max()), 1.0)
        axis.set_ylim(-0.04 * top, 1.08 * top)


def _colours(rows: pd.DataFrame) -> dict[float, Any]:
    """Most frequent first and darkest, as in the learning curves."""
    from matplotlib import colormaps

    rates = sorted(set(rows.rate_per_step), reverse=True)
    shades = np.linspace(0.0, 0.86, len(rates))
    return dict(zip(rates, colormaps["viridis"](shades), strict=True))


def _markers(rungs: list[tuple[int, str]]) -> list[str]:
    return [MARKERS[index % len(MARKERS)] for index in range(len(rungs))]


def _dress(axis: Any, title: str, below: str) -> None:
    axis.set_title(title, fontsize=9.5, color=INK)
    axis.set_xlabel(below, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(FAINT)
    axis.tick_params(labelsize=8, colors=INK, length=3, labelbottom=True, labelleft=True)
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    axis.set_axisbelow(True)
