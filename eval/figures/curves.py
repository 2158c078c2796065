"""The learning curves: score, or a loss, over the steps of training.

from eval.figures.curves import curves
curves(read_records("runs/sweep")).savefig("curves.png", dpi=180)
"""

from __future__ import annotations

import math
from textwrap import fill
from typing import TYPE_CHECKING, Any

import pandas as pd

from eval.figures import style
from eval.scores.cells import CELL, LEARNED_SCORE, groups, measured_rows
from eval.scores.rows import task_rows
from eval.statistics import MIN_SEEDS
from eval.text import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves(
    frame: pd.DataFrame,
    *,
    metric: str = "score",
    split: str = "test",
    dashed: tuple[str, str] | None = None,
) -> Figure:
    """A metric over steps (Fig. 6a): a panel per rung, a line per rate, a 95% band over seeds.

    frame: records, as read. dashed: a further (metric, split), drawn so in the same colours. A line
    shows only steps that all its seeds measured. Raises ConfigError if one was not measured.
    """
    lines = {"-": (metric, split)} | ({"--": dashed} if dashed else {})
    parts = [
        measured_rows(frame, metric=name, split=side).assign(line=line)
        for line, (name, side) in lines.items()
    ]
    rows = pd.concat(parts)
    shown = [(p, f, list(group.groupby(["params", "rung"]))) for p, f, group in groups(rows)]
    abreast = max(style.abreast(len(panels)) for *_, panels in shown)
    down = [math.ceil(len(panels) / abreast) for *_, panels in shown]
    figure = style.new_figure(style.WIDTHS[abreast - 1], 2.4 * sum(down) + 1.2)
    grid = figure.subplots(sum(down), abreast, sharex=True, sharey=True, squeeze=False)
    looks = _rate_looks(rows)
    nulls = _nulls(task_rows(frame), metric, {side for _, side in lines.values()})
    drawn = set[float]()
    for number_of, (protocol, family, panels) in enumerate(shown):
        axes = grid[sum(down[:number_of]) : sum(down[: number_of + 1])].ravel()
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis, ((params, rung), panel) in zip(axes, panels, strict=False):
            for (rate, line), part in panel.groupby(["rate_per_step", "line"]):
                style.mean_over_seeds(axis, style.by_seed(part), linestyle=line, **looks[rate])
            title = style.size_title(params, rung)
            title += "\n" + fill(f"{style.plain(family)}, {protocol}", 42) if len(shown) > 1 else ""
            null = nulls.get((protocol, family, params, rung), math.nan)
            drawn |= {null} if null == null else set()
            _dress(axis, title, null)
    for axis in grid[:, 0]:
        axis.set_ylabel("loss, nats" if dashed else f"{split} {metric}", fontsize=9)
    if metric == "score":
        grid[0, 0].set_ylim(min(-0.12, float(rows.value.min()) - 0.05), 1.05)
    else:
        grid[0, 0].set_ylim(bottom=0)
    for column in grid.T:
        [axis for axis in column if axis.get_visible()][-1].set_xlabel("step", fontsize=9)
    seeds = rows.groupby(list(CELL)).seed.nunique()
    spread = "; thin lines: each seed" if (seeds == 2).any() else ""
    spread += "; band: 95% over seeds" if (seeds >= MIN_SEEDS).any() else ""
    one = f"{style.plain(shown[0][1])}, {shown[0][0]} protocol"
    what = one if len(shown) == 1 else "All protocols"
    figure.suptitle(f"{what}, {style.span(seeds)}{spread}", fontsize=11.5, color=style.INK)
    handles = style.handles_of({_rate_label(rows, rate): look for rate, look in looks.items()})
    for line, (name, side) in lines.items() if dashed else ():
        label = f"{side} {style.plain(name)}"
        handles.append(style.handle(label, color=style.INK, linewidth=1.6, linestyle=line))
    if drawn:
        threshold = f"learned: {LEARNED_SCORE:g}"
        values = " to ".join(dict.fromkeys(f"{null:.2f}" for null in (min(drawn), max(drawn))))
        label = threshold if metric == "score" else f"guessing by label frequency: {values}"
        handles.append(style.handle(label, **style.THRESHOLD))
    style.legend_below(figure, handles, max(2, abreast))
    return figure


def _nulls(rows: pd.DataFrame, metric: str, splits: set[str]) -> dict[Any, float]:
    """What is drawn across each (protocol, family, params, rung): families differ in their labels.

    Records without label_entropy have none.
    """
    panel = ["protocol", "family", "params", "rung"]
    if metric == "score":
        return dict.fromkeys(rows.groupby(panel).groups, LEARNED_SCORE)
    entropy = rows[(rows.metric == "label_entropy") & rows.split.isin(splits)]
    return dict(entropy.groupby(panel).value.mean())


def _rate_looks(rows: pd.DataFrame) -> dict[float, dict[str, Any]]:
    size = {"markersize": 3.6, "linewidth": 1.6}
    return {
        rate: size | {"color": colour, "marker": style.MARKERS[i % len(style.MARKERS)]}
        for i, (rate, colour) in enumerate(style.rate_colours(rows).items())
    }


def _rate_label(rows: pd.DataFrame, rate: float) -> str:
    per_token = style.per_token(rows.rate_per_token[rows.rate_per_step == rate]).replace("\n", " ")
    return f"{number(rate)} per step" + (f" ({per_token} per token)" if per_token else "")


def _dress(axis: Any, title: str, null: float) -> None:
    from matplotlib.ticker import MaxNLocator

    style.dress(axis, title, grid=True)
    if null == null:
        axis.axhline(null, zorder=1, **style.THRESHOLD)
    axis.tick_params(labelbottom=True)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
