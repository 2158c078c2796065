"""The size x frequency heatmap.

from eval.figures.heatmap import heatmap
heatmap(cells(read_records("runs/sweep"))).savefig("heatmap.png", dpi=180)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eval.figures import style
from eval.scores.cells import groups
from eval.text import count, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_RATES_ABREAST = 6
"""With more columns the two panels of a heatmap stand one above the other, to stay readable."""


def heatmap(table: pd.DataFrame) -> Figure:
    """Size x frequency (the study's Fig. 5): the chosen metric and the train label loss.

    table: from `eval.scores.cells.cells`. One row of panels per protocol and family; larger rungs
    on top, frequent rates left. Learned cells are outlined, dashed while provisional.
    """
    shown = list(groups(table))
    num_rates = max(group.rate_per_step.nunique() for *_, group in shown)
    panel_shape = (1, 2) if num_rates <= MAX_RATES_ABREAST else (2, 1)
    width = 1.2 + panel_shape[1] * max(2.9, 0.87 * num_rates)
    heights = [
        panel_shape[0] * (1.55 + 0.68 * group[["params", "rung"]].drop_duplicates().shape[0]) + 0.45
        for *_, group in shown
    ]
    figure = style.new_figure(width, sum(heights) + 0.55)
    titles = [_title(protocol, family, group, width < 8) for protocol, family, group in shown]
    for part, (*_, group) in zip(style.headed(figure, titles, heights), shown, strict=True):
        left, right = part.subplots(*panel_shape, sharey=panel_shape == (1, 2)).ravel()
        _draw_value(left, group)
        _draw_train_loss(right, group)
        right.tick_params(labelleft=panel_shape == (2, 1))
    _heatmap_legend(figure, table, narrow=width < 8)
    return figure


def _draw_value(axis: Any, group: pd.DataFrame) -> None:
    metric, split = group.metric.iloc[0], group.split.iloc[0]
    bounded = metric in ("score", "accuracy", "label_accuracy")
    top = 1.0 if bounded else float(group.value.max())
    label = f"{split} {metric}"
    if metric == "score":
        label = "score: 0 = majority guessing, 1 = all correct"
    halves = ((group.high - group.low) / 2).where(group.interval == "seeds")
    image = _draw_cells(axis, group, "value", halves, cmap="viridis", top=top)
    _colour_bar(axis, image, label, "min" if bounded and group.value.min() < 0 else "neither")
    axis.set_title(f"{split.capitalize()} {metric}", fontsize=10, color=style.INK)


def _draw_train_loss(axis: Any, group: pd.DataFrame) -> None:
    # Of records from before the two were measured apart only the whole is known: then of all.
    known = group[["train_choice_loss", "train_label_loss"]].notna()
    apart = known.train_choice_loss.sum() >= max(known.train_label_loss.sum(), 1)
    name = "train_choice_loss" if apart else "train_label_loss"
    losses, entropy = group[name], float(group.label_entropy.mean())
    highest = float(losses.max()) if losses.notna().any() else 1.0
    # An untrained model's loss is ln(vocabulary): one such cell must not flatten the others.
    # The entropy stays in view, since a loss near it means "knows only the label frequencies".
    top = min(max(highest, 1.1 * entropy), 2 * entropy) if entropy > 0 else highest
    nothing = pd.Series(np.nan, index=group.index)
    image = _draw_cells(axis, group, name, nothing, cmap="cividis_r", top=top)
    what = "choice loss" if apart else "label loss"
    label = f"{what} (nats)"
    bar = _colour_bar(axis, image, label, "max" if highest > top * 1.0001 else "neither")
    if entropy > 0:
        bar.ax.plot(
            [entropy], [1.45], "v", color=style.INK, markersize=5, clip_on=False,
            transform=bar.ax.get_xaxis_transform(),
        )  # fmt: skip
        bar.set_label(f"{label}; ▼ {entropy:.2f}: guessing by label frequency", fontsize=8)
    axis.set_title(f"Train {what}", fontsize=10, color=style.INK)


def _draw_cells(
    axis: Any, group: pd.DataFrame, name: str, halves: pd.Series, *, cmap: str, top: float
) -> Any:
    """Colour and annotate one panel; returns the mesh for its colour bar."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    sizes = style.sizes(group)
    rates = sorted(set(group.rate_per_step), reverse=True)
    values = np.full((len(sizes), len(rates)), np.nan)
    palette = colormaps[cmap].with_extremes(bad=style.EMPTY)
    for index, cell in group.iterrows():
        row, column = sizes.index((cell.params, cell.rung)), rates.index(cell.rate_per_step)
        values[row, column] = cell[name]
        if not math.isfinite(cell[name]):
            continue
        ink = _readable_on(palette(min(max(cell[name] / top, 0.0), 1.0) if top > 0 else 0.0))
        _annotate(axis, column + 0.5, row + 0.5, cell, cell[name], halves[index], ink)
        if cell.learned:
            inset = min(0.05, 0.012 * len(rates))
            axis.add_patch(
                Rectangle(
                    (column + inset, row + 0.05), 1 - 2 * inset, 0.9, fill=False, edgecolor=ink,
                    linewidth=1.8, linestyle=(0, (3, 2)) if cell.provisional else "-", zorder=2,
                )
            )  # fmt: skip
    mesh = axis.pcolormesh(
        np.ma.masked_invalid(values), cmap=palette, vmin=0, vmax=top or 1,
        edgecolors=style.PAPER, linewidth=2.5,
    )  # fmt: skip
    run = set(zip(group.rung, group.rate_per_step, strict=True))
    for row, column in np.argwhere(np.isnan(values)):
        text = "not\nmeasured" if (sizes[row][1], rates[column]) in run else "not run"
        axis.text(
            column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color=style.FAINT
        )  # fmt: skip
    per_token = [
        style.per_token(group.rate_per_token[group.rate_per_step == rate]) for rate in rates
    ]
    units = "instances per step; below, per token" if any(per_token) else "instances per step"
    axis.set_xticks(
        np.arange(len(rates)) + 0.5,
        [f"{number(r)}\n{t}".rstrip() for r, t in zip(rates, per_token, strict=True)],
        fontsize=8.5,
    )
    axis.set_xlabel(f"rate ({units})", fontsize=8.5, color=style.INK)
    axis.set_yticks(
        np.arange(len(sizes)) + 0.5, [f"{r}\n{count(p)} par." for p, r in sizes], fontsize=8.5
    )
    axis.tick_params(length=0, colors=style.INK)
    axis.spines[:].set_visible(False)
    return mesh


def _annotate(
    axis: Any, x: float, y: float, cell: pd.Series, value: float, half: float, ink: str
) -> None:
    put = {"ha": "center", "va": "center", "color": ink}
    spread = math.isfinite(half)
    text = f"{value:.2f}".replace("-0.00", "0.00")
    axis.text(x, y + (0.22 if spread else 0.14), text, fontsize=12.5, weight="bold", **put)
    if spread:
        axis.text(x, y - 0.04, f"±{half:.2f}", fontsize=8.2, **put)
    below = f"{number(cell.exposures_per_example, 2)} exp./ex.\n{cell.protocol}"
    axis.text(x, y - (0.28 if spread else 0.22), below, fontsize=7.2, linespacing=1.05, **put)


def _readable_on(colour: tuple[float, float, float, float]) -> str:
    """White or ink, whichever has more contrast (WCAG 2.1 relative luminance)."""
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]
    )
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.19 else style.ON_LIGHT


def _colour_bar(axis: Any, image: Any, label: str, extend: str) -> Any:
    bar = axis.figure.colorbar(
        image, ax=axis, orientation="horizontal", shrink=0.8, aspect=34, extend=extend, pad=0.03
    )
    bar.set_label(label, fontsize=8, color=style.INK)
    bar.ax.tick_params(labelsize=8, length=2, colors=style.INK)
    bar.outline.set_visible(False)
    return bar


def _heatmap_legend(figure: Any, table: pd.DataFrame, *, narrow: bool) -> None:
    from matplotlib.patches import Patch

    outline: dict[str, Any] = {"facecolor": "none", "edgecolor": style.INK, "linewidth": 1.4}
    handles: list[Any] = []
    if (table.learned & ~table.provisional).any():
        handles.append(Patch(label="learned: score and its lower 95% bound ≥ 0.5", **outline))
    if (table.learned & table.provisional).any():
        text = "score ≥ 0.5, provisional: fewer than 3 seeds"
        handles.append(Patch(label=text, linestyle=(0, (3, 1.5)), **outline))
    if (table.interval == "seeds").any():
        text = "±: half the 95% interval over seeds"
        handles.append(style.handle(text, linestyle="none"))
    text = "exp./ex.: times each train example was seen"
    handles.append(style.handle(text, linestyle="none"))
    columns = 1 if narrow else min(3, len(handles))
    style.legend_below(figure, handles, columns, fontsize=8, handlelength=1.6, columnspacing=1.6)


def _title(protocol: str, family: str, group: pd.DataFrame, narrow: bool) -> str:
    seeds = style.span(group.n_seeds)
    few = " (provisional)" if group.provisional.any() else ""
    steps, tokens = (int(group.step.min()), int(group.step_max.max())), group.tokens
    when = f"step {steps[0]:,}" if steps[0] == steps[1] else f"steps {steps[0]:,} to {steps[1]:,}"
    low, high = count(tokens.min()), count(tokens.max())
    amount = f"{low} tokens" if low == high else f"{low} to {high} tokens"
    join = "\n" if narrow else ", "
    return f"{style.plain(family)}, {protocol} protocol{join}{seeds}{few}, {when}, {amount}"
