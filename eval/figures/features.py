"""Feature presence, drawn from records: over the steps of training and against the test score.

    from eval.figures.features import features
    features(read_records("runs/sweep")).savefig("features.png", dpi=180)

The study's Fig. 7. The R^2 of a one-unit target (order) is read at LAYER, a count of units (modes,
elements) is over all layers. R^2 is clipped at 0 here, never in the records.
"""

from __future__ import annotations

import math
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pandas as pd

from data_injection.errors import ConfigError
from eval.features.presence import COUNTS
from eval.features.probes import planted_r2
from eval.figures import style
from eval.scores.cells import groups
from eval.scores.rows import once, task_rows
from eval.text import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYER = 1
"""The study localises the order of comparison in the first layer's residual stream."""


def features(frame: pd.DataFrame, *, layer: int = LAYER) -> Figure:
    """A block per protocol, family and target: a panel per rung over steps, one against the score.

    frame: records, as read. Lines are means over seeds, a colour per rate, with a 95% band from
    three seeds on and the seeds themselves below; a dashed line is the null's 99th percentile of
    an R^2 (a count is above its null by definition, and noise counts 0), a dotted one what the
    probe reads of an order planted in states of this width (`planted_r2`). Each point of the last
    panel is one run at one step. Raises ConfigError if no features were measured.
    """
    blocks = _blocks(frame, layer)
    num = [rows.rung.nunique() + 1 for *_, rows in blocks]
    down = [math.ceil(one / style.abreast(one)) for one in num]
    width = style.WIDTHS[max(map(style.abreast, num)) - 1]
    figure = style.new_figure(width, sum(2.45 * n + 0.75 for n in down))
    parts = style.headed(figure, [title for title, *_ in blocks], down)
    for part, (_, label, rows) in zip(parts, blocks, strict=True):
        _draw_block(part, label, rows)
    return figure


@once
def presence(frame: pd.DataFrame, *, layer: int = LAYER) -> pd.DataFrame:
    """One row per run, step, task and target: what the figure shows, for tables and rank tests.

    Columns: those of a record that say whose it is, then group, units, value (R^2 at the layer if
    the target has one unit, else the number of units present at any layer), null99 (of the R^2;
    NaN for a count) and score (the task's test score at the step, NaN if not measured).
    """
    rows = task_rows(frame)
    counted = rows.metric.isin(["probe_count", *COUNTS.values()])
    if not counted.any():
        rule = "hold no features"
        raise ConfigError(key="records", rule=rule, remedy="train with `callbacks.features` set")
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
    if "d_model" in rows:
        table["d_model"] = table.rung.map(rows.groupby("rung").d_model.max())
    return table.join(scores.rename("score"), on=task).dropna(subset="value", ignore_index=True)


def _blocks(frame: pd.DataFrame, layer: int) -> list[tuple[str, str, pd.DataFrame]]:
    """(title, axis label, rows) of each protocol, family and target."""
    blocks = []
    for protocol, family, rows in groups(presence(frame, layer=layer)):
        for name, of_target in rows.groupby("group"):
            units = int(of_target.units.max())
            label = f"R² of the hidden {name}, layer {layer}"
            label = label if units == 1 else f"{name}: present of {units}"
            label = f"Fourier modes of {units}" if name == "fourier" else label
            seeds = style.seeds_said(of_target.groupby(["rung", "rate_per_step"]).seed.nunique())
            title = f"{style.plain(family)}, {protocol} protocol: {seeds}"
            blocks.append((title, label, of_target))
    if not blocks:
        rule = f"hold no features at layer {layer}"
        raise ConfigError(key="records", rule=rule, remedy="measure it or name another")
    return blocks


def _draw_block(part: Any, label: str, rows: pd.DataFrame) -> None:
    rungs, colours = style.sizes(rows), style.rate_colours(rows)
    num = len(rungs) + 1
    grid = style.panels(part, num, abreast=style.abreast(num), sharey=True)
    axes = grid.ravel()
    for axis, (params, rung) in zip(axes, rungs, strict=False):
        here = rows[rows.rung == rung]
        for rate, line in here.groupby("rate_per_step"):
            _draw_over_steps(axis, line, colours[rate])
        if "d_model" in here and here.units.max() == 1 and here.d_model.notna().all():
            # R^2 at equal signal falls with width: amounts are to be read against this line.
            planted = planted_r2(int(here.d_model.max()))
            axis.axhline(max(planted, 0), color="black", linewidth=0.8, linestyle=":")
        _dress(axis, style.size_title(params, rung), "step")
    last = axes[len(rungs)]
    _draw_against_score(last, rows, rungs, colours)
    _dress(last, "against the test score", "test score of the task")
    for axis in grid[:, 0]:
        axis.set_ylabel(label, fontsize=9)
    _set_limits(grid[0, 0], rows)
    _draw_legend(part, rows, rungs, colours)


def _draw_over_steps(axis: Any, line: pd.DataFrame, colour: Any) -> None:
    style.mean_over_seeds(axis, style.by_seed(line), floor=0, color=colour)
    null = line.groupby("step").null99.mean().dropna().clip(lower=0)
    if len(null):
        axis.plot(null.index, null, **style.THRESHOLD | {"color": colour, "linewidth": 1.0})


def _draw_against_score(
    axis: Any, rows: pd.DataFrame, rungs: list[tuple[int, str]], colours: dict[float, Any]
) -> None:
    look: dict[str, Any] = {"s": 16, "alpha": 0.65, "linewidth": 0, "zorder": 3}
    for marker, (_, rung) in zip(cycle(style.MARKERS), rungs, strict=False):
        for rate, points in rows[(rows.rung == rung) & rows.score.notna()].groupby("rate_per_step"):
            axis.scatter(
                points.score, points.value.clip(lower=0), color=colours[rate], marker=marker, **look
            )
    if rows.null99.notna().any():
        axis.axhline(max(float(rows.null99.mean()), 0), zorder=1, **style.THRESHOLD)
    if rows.score.isna().all():
        style.say(axis, "test score not measured\nat these steps")


def _draw_legend(
    part: Any, rows: pd.DataFrame, rungs: list[tuple[int, str]], colours: dict[float, Any]
) -> None:
    looks: dict[str, dict[str, Any]] = {
        f"{number(rate)} per step": {"color": colour, "linewidth": 1.6}
        for rate, colour in colours.items()
    }
    if rows.null99.notna().any():
        looks["99th percentile of permuted symbols"] = style.THRESHOLD
    dot = {"color": style.FAINT, "markersize": 4, "linestyle": "none"}
    markers = zip(cycle(style.MARKERS), rungs, strict=False)
    looks |= {rung: {"marker": marker, **dot} for marker, (_, rung) in markers}
    style.legend_below(part, style.handles_of(looks), min(6, len(looks)), fontsize=8)


def _dress(axis: Any, title: str, below: str) -> None:
    style.dress(axis, title, below, grid=True)
    axis.tick_params(labelbottom=True, labelleft=True)


def _set_limits(axis: Any, rows: pd.DataFrame) -> None:
    if (rows.units == 1).all():
        axis.set_ylim(-0.04, 1.04)
    else:
        top = max(float(rows.value.max()), 1.0)
        axis.set_ylim(-0.04 * top, 1.08 * top)
