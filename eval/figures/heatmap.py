"""The study's figures, drawn from records: the size x frequency heatmap and the learning curves.

    from eval.figures.heatmap import heatmap
    heatmap(cells(read_records("runs/sweep"))).savefig("heatmap.png", dpi=180)

Every function returns a matplotlib Figure made for a page about 900 pixels wide; none touches
pyplot's global state, so they are safe in callbacks and threads.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from data_injection.config import ConfigError
from eval.scores.cells import CELL, LEARNED_SCORE, groups, task_rows
from eval.statistics import MIN_SEEDS, seed_interval
from eval.text import count, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, EMPTY = "#1a1a1a", "#6b6b6b", "#ececec"
MAX_RATES_ABREAST = 6
"""With more columns the two panels of a heatmap stand one above the other, to stay readable."""

MARKERS = "os^Dv<>Ph*X"
THRESHOLD: dict[str, Any] = {"color": FAINT, "linewidth": 0.9, "linestyle": (0, (4, 3))}


def heatmap(table: pd.DataFrame) -> Figure:
    """Size x frequency (the study's Fig. 5): the chosen metric and the train label loss.

    table: from `eval.scores.cells.cells`. One row of panels per protocol and family; larger rungs
    on top, frequent rates left. Learned cells are outlined, dashed while provisional.
    """
    from matplotlib.figure import Figure

    shown = list(groups(table))
    num_rates = max(group.rate_per_step.nunique() for *_, group in shown)
    panel_shape = (1, 2) if num_rates <= MAX_RATES_ABREAST else (2, 1)
    width = 1.2 + panel_shape[1] * max(2.9, 0.87 * num_rates)
    heights = [
        panel_shape[0] * (1.55 + 0.68 * group[["params", "rung"]].drop_duplicates().shape[0]) + 0.45
        for *_, group in shown
    ]
    figure = Figure(figsize=(width, sum(heights) + 0.55), layout="constrained")
    parts = figure.subfigures(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (protocol, family, group) in zip(parts, shown, strict=True):
        narrow = width < 8
        part.suptitle(_title(protocol, family, group, narrow), fontsize=11.5, color=INK)
        left, right = part.subplots(*panel_shape, sharey=panel_shape == (1, 2)).ravel()
        _draw_value(left, group)
        _draw_train_loss(right, group)
        right.tick_params(labelleft=panel_shape == (2, 1))
    _heatmap_legend(figure, table, narrow=width < 8)
    return figure


def curves(frame: pd.DataFrame, *, metric: str = "score", split: str = "test") -> Figure:
    """Score over steps (Fig. 6a): a panel per rung, a line per rate, a 95% band over seeds.

    frame: records, as read. A line shows only steps that all its seeds measured: a mean whose
    seeds change along the way would jump for no reason in the training. Raises ConfigError if the
    metric was not measured.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = task_rows(frame)
    rows = rows[(rows.metric == metric) & (rows.split == split)]
    if rows.empty:
        raise ConfigError(f"records hold no {split} {metric!r} of a task; run the accuracy measure")
    shown = [(p, f, list(group.groupby(["params", "rung"]))) for p, f, group in groups(rows)]
    most = max(len(panels) for *_, panels in shown)
    abreast = 2 if most == 4 else min(3, most)
    down = [math.ceil(len(panels) / abreast) for *_, panels in shown]
    figure = Figure(
        figsize=((5.6, 8.0, 9.3)[abreast - 1], 2.4 * sum(down) + 1.2), layout="constrained"
    )
    grid = figure.subplots(sum(down), abreast, sharex=True, sharey=True, squeeze=False)
    looks = _rate_looks(rows)
    for number_of, (protocol, family, panels) in enumerate(shown):
        axes = grid[sum(down[:number_of]) : sum(down[: number_of + 1])].ravel()
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis, ((params, rung), panel) in zip(axes, panels, strict=False):
            for rate, line in panel.groupby("rate_per_step"):
                _draw_line(axis, line, **looks[rate])
            title = f"{rung} ({count(params)} parameters)"
            title += f"\n{_plain(family)}, {protocol}" if len(shown) > 1 else ""
            _dress(axis, title)
    for axis in grid[:, 0]:
        axis.set_ylabel(f"{split} {metric}", fontsize=9)
    grid[0, 0].set_ylim(min(-0.12, float(rows.value.min()) - 0.05), 1.05)
    for column in grid.T:
        [axis for axis in column if axis.get_visible()][-1].set_xlabel("step", fontsize=9)
    seeds = rows.groupby(list(CELL)).seed.nunique()
    spread = "; thin lines: each seed" if (seeds == 2).any() else ""
    spread += "; band: 95% over seeds" if (seeds >= MIN_SEEDS).any() else ""
    what = f"{_plain(shown[0][1])}, {shown[0][0]} protocol" if len(shown) == 1 else "All protocols"
    title = f"{what}, {_span(seeds, 'seed')}{spread}"
    figure.suptitle(title, fontsize=11.5, color=INK)
    handles = [Line2D([], [], label=_rate_label(rows, rate), **looks[rate]) for rate in looks]
    handles.append(Line2D([], [], label=f"learned: {LEARNED_SCORE:g}", **THRESHOLD))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=max(2, abreast),
        fontsize=8.5, frameon=False,
    )  # fmt: skip
    return figure


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG; the same records give the same bytes."""
    data = io.BytesIO()
    # No Software entry, which would name matplotlib's version.
    figure.savefig(data, format="png", dpi=180, metadata={"Software": None})
    return data.getvalue()


def tick_rate(group: pd.DataFrame) -> str:
    """Instances per token of a column; the range where rungs with other batches share a rate."""
    known = list(dict.fromkeys(number(rate) for rate in sorted(group.rate_per_token.dropna())))
    return known[0] if len(known) == 1 else f"{known[0]} to\n{known[-1]}" if known else ""


def _draw_value(axis: Any, group: pd.DataFrame) -> None:
    metric, split = group.metric.iloc[0], group.split.iloc[0]
    bounded = metric in ("score", "accuracy", "label_accuracy")
    top = 1.0 if bounded else float(group.value.max())
    label = f"{split} {metric}"
    if metric == "score":
        label = "score: 0 = majority guessing, 1 = all correct"
    halves = ((group.high - group.low) / 2).where(group.interval == "seeds")
    image = _draw_cells(axis, group, "value", halves, cmap="viridis", top=top)
    below = "min" if bounded and group.value.min() < 0 else "neither"
    _colour_bar(axis, image, label, below)
    axis.set_title(f"{split.capitalize()} {metric}", fontsize=10, color=INK)


def _draw_train_loss(axis: Any, group: pd.DataFrame) -> None:
    losses, entropy = group.train_label_loss, float(group.label_entropy.mean())
    highest = float(losses.max()) if losses.notna().any() else 1.0
    # An untrained model's loss is ln(vocabulary): one such cell must not flatten the others.
    # The entropy stays in view, since a loss near it means "knows only the label frequencies".
    top = min(max(highest, 1.1 * entropy), 2 * entropy) if entropy > 0 else highest
    nothing = pd.Series(np.nan, index=group.index)
    image = _draw_cells(axis, group, "train_label_loss", nothing, cmap="cividis_r", top=top)
    label = "label loss (nats)"
    extend = "max" if highest > top * 1.0001 else "neither"
    bar = _colour_bar(axis, image, label, extend)
    if entropy > 0:
        bar.ax.plot(
            [entropy], [1.45], "v", color=INK, markersize=5, clip_on=False,
            transform=bar.ax.get_xaxis_transform(),
        )  # fmt: skip
        bar.set_label(f"{label}; ▼ {entropy:.2f}: guessing by label frequency", fontsize=8)
    axis.set_title("Train label loss", fontsize=10, color=INK)


def _draw_cells(
    axis: Any, group: pd.DataFrame, name: str, halves: pd.Series, *, cmap: str, top: float
) -> Any:
    """Colour and annotate one panel; returns the mesh for its colour bar."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    sizes = sorted({*zip(group.params, group.rung, strict=True)})
    rates = sorted(set(group.rate_per_step), reverse=True)
    values = np.full((len(sizes), len(rates)), np.nan)
    palette = colormaps[cmap].with_extremes(bad=EMPTY)
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
        edgecolors="white", linewidth=2.5,
    )  # fmt: skip
    for row, column in np.argwhere(np.isnan(values)):
        missing = group[
            (group.rung == sizes[row][1]) & (group.rate_per_step == rates[column])
        ].empty
        text = "not run" if missing else "not\nmeasured"
        axis.text(
            column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color=FAINT
        )  # fmt: skip
    per_token = [tick_rate(group[group.rate_per_step == rate]) for rate in rates]
    units = "instances per step; below, per token" if any(per_token) else "instances per step"
    axis.set_xticks(
        np.arange(len(rates)) + 0.5,
        [f"{number(r)}\n{t}".rstrip() for r, t in zip(rates, per_token, strict=True)],
        fontsize=8.5,
    )
    axis.set_xlabel(f"rate ({units})", fontsize=8.5, color=INK)
    axis.set_yticks(
        np.arange(len(sizes)) + 0.5, [f"{r}\n{count(p)} par." for p, r in sizes], fontsize=8.5
    )
    axis.tick_params(length=0, colors=INK)
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
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.19 else INK


def _colour_bar(axis: Any, image: Any, label: str, extend: str) -> Any:
    bar = axis.figure.colorbar(
        image, ax=axis, orientation="horizontal", shrink=0.8, aspect=34, extend=extend, pad=0.03
    )
    bar.set_label(label, fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8, length=2, colors=INK)
    bar.outline.set_visible(False)
    return bar


def _heatmap_legend(figure: Any, table: pd.DataFrame, *, narrow: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    outline: dict[str, Any] = {"facecolor": "none", "edgecolor": INK, "linewidth": 1.4}
    handles: list[Any] = []
    if (table.learned & ~table.provisional).any():
        handles.append(Patch(label="learned: score and its lower 95% bound ≥ 0.5", **outline))
    if (table.learned & table.provisional).any():
        text = "score ≥ 0.5, provisional: fewer than 3 seeds"
        handles.append(Patch(label=text, linestyle=(0, (3, 1.5)), **outline))
    if (table.interval == "seeds").any():
        handles.append(
            Line2D([], [], linestyle="none", label="±: half the 95% interval over seeds")
        )
    text = "exp./ex.: times each train example was seen"
    handles.append(Line2D([], [], linestyle="none", label=text))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=1 if narrow else min(3, len(handles)),
        fontsize=8, frameon=False, handlelength=1.6, columnspacing=1.6,
    )  # fmt: skip


def _title(protocol: str, family: str, group: pd.DataFrame, narrow: bool) -> str:
    seeds = _span(group.n_seeds, "seed")
    few = " (provisional)" if group.provisional.any() else ""
    steps, tokens = (int(group.step.min()), int(group.step_max.max())), group.tokens
    when = f"step {steps[0]:,}" if steps[0] == steps[1] else f"steps {steps[0]:,} to {steps[1]:,}"
    low, high = count(tokens.min()), count(tokens.max())
    amount = f"{low} tokens" if low == high else f"{low} to {high} tokens"
    join = "\n" if narrow else ", "
    return f"{_plain(family)}, {protocol} protocol{join}{seeds}{few}, {when}, {amount}"


def _span(counts: pd.Series, noun: str) -> str:
    low, high = int(counts.min()), int(counts.max())
    text = f"{low}" if low == high else f"{low} to {high}"
    return f"{text} {noun}{'' if high == 1 else 's'}"


def _rate_looks(rows: pd.DataFrame) -> dict[float, dict[str, Any]]:
    """A colour and a marker per rate, most frequent first and darkest."""
    from matplotlib import colormaps

    rates = sorted(set(rows.rate_per_step), reverse=True)
    shades = np.linspace(0.0, 0.86, len(rates))
    return {
        rate: {
            "color": colormaps["viridis"](shade),
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 3.6,
            "linewidth": 1.6,
        }
        for i, (rate, shade) in enumerate(zip(rates, shades, strict=True))
    }


def _rate_label(rows: pd.DataFrame, rate: float) -> str:
    line = rows[(rows.rate_per_step == rate) & (rows.step > 0)]
    token = line.rate_per_token if "rate_per_token" in line else rate * line.step / line.tokens
    per_token = tick_rate(pd.DataFrame({"rate_per_token": token})).replace("\n", " ")
    return f"{number(rate)} per step" + (f" ({per_token} per token)" if per_token else "")


def _draw_line(axis: Any, line: pd.DataFrame, **look: Any) -> None:
    by_seed = line.pivot_table(index="step", columns="seed", values="value", aggfunc="mean")
    whole = by_seed.dropna()
    stats = np.array([seed_interval(row) for row in (whole if len(whole) else by_seed).to_numpy()])
    steps = (whole if len(whole) else by_seed).index.to_numpy()
    axis.plot(steps, stats[:, 0], markevery=max(1, len(steps) // 8), zorder=3, **look)
    if by_seed.shape[1] >= MIN_SEEDS:
        axis.fill_between(
            steps, stats[:, 1], stats[:, 2], color=look["color"], alpha=0.15, linewidth=0
        )
    elif by_seed.shape[1] > 1:
        # Student's t on two seeds is ±9 standard deviations: the seeds themselves say more.
        axis.plot(by_seed.index, by_seed, color=look["color"], linewidth=0.7, alpha=0.6)


def _dress(axis: Any, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_title(title, fontsize=9.5, color=INK)
    axis.axhline(LEARNED_SCORE, zorder=1, **THRESHOLD)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(FAINT)
    axis.tick_params(labelsize=8, colors=INK, length=3, labelbottom=True)
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _plain(family: str) -> str:
    return family.replace("_", " ")
