"""How every figure looks, and how it is saved: sizes, colours, axes, bands over seeds, legends.

    figure = new_figure(9.3, 4.0)
    mean_over_seeds(figure.subplots(), by_seed, color=INK)
    png(figure)

Figures are made for a page about 900 pixels wide. Nothing touches pyplot's global state, so that
they may be drawn in callbacks and threads; matplotlib is imported where something is drawn.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eval.statistics import MIN_SEEDS, seed_interval
from eval.text import count, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, EMPTY, GRID, BAND = "#1a1a1a", "#6b6b6b", "#ececec", "#e4e4e4", "#bdbdbd"
PAPER, ON_LIGHT = "#fefefe", "#191919"
"""The page behind a figure; and ink on a light colour, which stays where a page is dark."""
DARK = {INK: "#e8e8e6", "#000000": "#e8e8e6", FAINT: "#a5a5a0", EMPTY: "#2b2f33", GRID: "#34383c",
        BAND: "#5a5f64", PAPER: "#16181a"}  # fmt: skip
"""What stands for them on a dark page; the colours of data are apart from either paper."""

# Okabe and Ito's colours, apart for every kind of colour vision.
RED, BLUE, GREEN = "#d55e00", "#0072b2", "#009e73"
PINK, ORANGE, SKY = "#cc79a7", "#e69f00", "#56b4e9"
COLOURS = (RED, BLUE, GREEN, PINK, ORANGE, SKY)

RAREST = 0.86  # its place in viridis: beyond, white paper swallows a line

MARKERS = "os^Dv<>Ph*X"
THRESHOLD: dict[str, Any] = {"color": FAINT, "linewidth": 0.9, "linestyle": (0, (4, 3))}

WIDTHS = (5.6, 8.0, 9.3)
"""Inches for one, two and three panels abreast."""


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches that no window belongs to."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Figure, *, dpi: int = 180, **said: str) -> bytes:
    """A figure as the bytes of a PNG, with text chunks; the same records give the same bytes.

    Not by `savefig`, which draws twice for what no figure of ours needs.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    data = io.BytesIO()
    figure.set_dpi(dpi)
    # No Software entry, which would name matplotlib's version.
    FigureCanvasAgg(figure).print_png(data, metadata={"Software": None, **said})
    return data.getvalue()


def svg(figure: Figure, name: str) -> str:
    """A figure as an <svg> element to stand in a page; the same records give the same text.

    Text stays text, in the page's fonts. name: what tells its clip paths from another figure's.
    To be called after `png`, whose layout is kept: reckoning one is most of the time of drawing.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    figure.set_layout_engine("none")
    parts: list[Any] = [figure, *figure.subfigs, *figure.axes]
    for part in parts:
        part.patch.set_visible(False)
    data = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(data, metadata=dict.fromkeys(("Date", "Creator")))
    text = data.getvalue()
    # Comments repeat every text, and groups are numbered alike in all figures of a page.
    text = re.sub(r"<!--.*?-->\n?|<metadata>.*?</metadata>\n?", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: 'DejaVu Sans'[^;\"]*", "font-family: 'DejaVu Sans', Verdana", text)
    text = re.sub(r'style="[^"]*"', _turning, text)
    return re.sub(r'<g id="[a-z_]*\d+">', "<g>", text[text.index("<svg") :])


def _turning(look: re.Match[str]) -> str:
    """A style whose neutral colours, and those of `rate_colours` in lines, marks and bands, are
    variables: `dark_colours` sets them. Cells keep theirs, for a colour bar says what they mean."""
    line = "opacity" in look[0] or any(f"stroke: {one}" in look[0] for one in _dark_rates())
    known = DARK | _dark_rates() if line else DARK
    return re.sub(
        r"#[0-9a-f]{6}", lambda c: f"var(--c{c[0][1:]},{c[0]})" if c[0] in known else c[0], look[0]
    )


def dark_colours(svgs: Sequence[str]) -> str:
    """CSS that sets the variables of these figures for a dark page."""
    used = sorted({one for text in svgs for one in re.findall(r"var\(--c(\w{6})", text)})
    return ";".join(f"--c{one}:{(DARK | _dark_rates())['#' + one]}" for one in used)


@cache
def _dark_rates() -> dict[str, str]:
    """Of each of `rate_colours` the one that stands out from a dark page as it does from white."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    viridis, last = colormaps["viridis"], int(RAREST * 256)
    return {to_hex(viridis(i)): to_hex(viridis(250 - i * 150 // last)) for i in range(last + 1)}


def abreast(num: int, most: int = 3) -> int:
    """So many panels abreast that the fewest places of the last row stay empty."""
    return num if num <= most else min(range(most, 1, -1), key=lambda width: -num % width)


def panels(part: Any, num: int, *, abreast: int, **shared: Any) -> Any:
    """Axes for so many panels, shape (rows, abreast); those too many are not seen."""
    grid = part.subplots(math.ceil(num / abreast), abreast, squeeze=False, **shared)
    for axis in grid.ravel()[num:]:
        axis.set_visible(False)
    return grid


def panel_rows(table: pd.DataFrame, names: Sequence[str], key: Sequence[Any]) -> pd.DataFrame:
    """The rows of one panel; NaN (a layer of the whole model, a gap of none) equals NaN."""
    if table.empty:
        return table
    same = [
        table[name].isna() if value != value else table[name] == value
        for name, value in zip(names, key, strict=True)
    ]
    return table[np.logical_and.reduce(same)]


def headed(figure: Any, titles: Sequence[str], heights: Sequence[float] | None = None) -> Any:
    """Subfigures one below another, each with a title of its own."""
    parts = figure.subfigures(len(titles), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, title in zip(parts, titles, strict=True):
        part.suptitle(title, fontsize=11.5, color=INK)
    return parts


def dress(
    axis: Any, title: str = "", below: str = "", left: str = "", *, grid: bool = False,
    loc: Any = None,
) -> None:  # fmt: skip
    """Title, labels below and to the left, and axes that stand back behind the data."""
    axis.set_title(title, fontsize=8.5 if loc == "left" else 9.5, color=INK, loc=loc)
    axis.set_xlabel(below, fontsize=9)
    if left:
        axis.set_ylabel(left, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(FAINT)
    axis.tick_params(labelsize=8, colors=INK, length=3)
    if grid:
        axis.grid(axis="y", color=GRID, linewidth=0.7)
        axis.set_axisbelow(True)
    if below == "step":
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def say(axis: Any, text: str) -> None:
    """Say in an empty panel why it is empty."""
    put = {"ha": "center", "va": "center", "fontsize": 8, "color": FAINT}
    axis.text(0.5, 0.5, text, transform=axis.transAxes, **put)


def place_ticks(axis: Any, places: Sequence[float], names: Sequence[str] | None = None) -> None:
    """Names, or the numbers as they are, at these places of an xaxis or yaxis; none between."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(FixedFormatter(names or [f"{place:g}" for place in places]))
    axis.set_minor_locator(NullLocator())


def by_seed(rows: pd.DataFrame, x: str = "step", value: str = "value") -> pd.DataFrame:
    """A column a seed over x; the mean where a seed has several values at one place."""
    return rows.pivot_table(index=x, columns="seed", values=value, aggfunc="mean")


def mean_over_seeds(
    axis: Any, by_seed: pd.DataFrame, *, floor: float = -math.inf, linewidth: float = 1.6,
    alpha: float = 0.15, **look: Any,
) -> None:  # fmt: skip
    """A line of means with a 95% band from three seeds on; of two seeds, both as thin lines.

    by_seed: a column a seed. Only rows that all seeds have are drawn, where there are any: a mean
    whose seeds change along the way would jump for no reason in the training. What is below `floor`
    is drawn there, after the mean: the other way round, noise would average above it.
    """
    whole = by_seed.dropna()
    whole = whole if len(whole) else by_seed
    stats = [seed_interval(row) for row in whole.to_numpy()]
    mean, low, high = np.maximum(np.array(stats).reshape(-1, 3), floor).T
    every = max(1, len(whole) // 8)
    axis.plot(whole.index, mean, linewidth=linewidth, markevery=every, zorder=3, **look)
    if by_seed.shape[1] >= MIN_SEEDS:
        axis.fill_between(whole.index, low, high, color=look["color"], alpha=alpha, linewidth=0)
    elif by_seed.shape[1] > 1:
        # Student's t on two seeds is ±9 standard deviations: the seeds themselves say more.
        each = by_seed.clip(lower=floor)
        axis.plot(by_seed.index, each, color=look["color"], linewidth=0.7, alpha=0.6)


def sizes(rows: pd.DataFrame) -> list[tuple[int, str]]:
    """(parameters, rung), the smallest first."""
    return sorted({*zip(rows.params, rows.rung, strict=True)})


def size_title(params: float, rung: str) -> str:
    return f"{rung} ({count(params)} parameters)"


def rung_looks(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Colour and marker of each rung, the smallest first."""
    return {
        rung: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, (_, rung) in enumerate(sizes(rows))
    }


def rate_colours(rows: pd.DataFrame) -> dict[float, Any]:
    """A colour per rate, the most frequent first and farthest from the paper."""
    from matplotlib import colormaps

    rates = sorted(set(rows.rate_per_step), reverse=True)
    return dict(zip(rates, colormaps["viridis"](np.linspace(0, RAREST, len(rates))), strict=True))


def plain(name: str) -> str:
    """A family's or metric's name as words."""
    return name.replace("_", " ")


def span(counts: pd.Series, noun: str = "seed") -> str:
    """ "3 seeds", or "1 to 3 seeds"."""
    low, high = int(counts.min()), int(counts.max())
    text = f"{low}" if low == high else f"{low} to {high}"
    return f"{text} {noun}{'' if high == 1 else 's'}"


def seeds_said(num_seeds: pd.Series) -> str:
    """How many seeds stand behind a block's panels, and whether they are too few."""
    return span(num_seeds) + (", provisional" if num_seeds.min() < MIN_SEEDS else "")


def handle(label: str, **look: Any) -> Any:
    """An entry of a legend that is drawn nowhere else."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **look)


def handles_of(looks: Mapping[str, dict[str, Any]], **more: Any) -> list[Any]:
    """`handle` for each label and its look."""
    return [handle(label, **more | look) for label, look in looks.items()]


def legend_below(figure: Any, handles: Sequence[Any], columns: int, **more: Any) -> None:
    """One legend for a whole figure or block, below it."""
    look = {"loc": "outside lower center", "fontsize": 8.5, "frameon": False}
    figure.legend(handles=handles, ncols=columns, **look | more)


def per_token(rates: pd.Series) -> str:
    """Instances per token; a range where rungs with other batches share a rate, "" if unknown."""
    known = list(dict.fromkeys(number(rate) for rate in sorted(rates.dropna())))
    return known[0] if len(known) == 1 else f"{known[0]} to\n{known[-1]}" if known else ""
