"""The figure of `olmo-ext scaling advise`: where the line runs, and where it was never measured.

thresholds(groups, told).savefig("advice.png", dpi=180)
"""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.figures import style
from eval.text import count, number
from theory.advice.thresholds import threshold

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eval.advice.groups import Group

POINTS = 60
LINE = "#2b6cb0"


def thresholds(groups: list[Group], told: dict[str, Any]) -> Figure:
    """Frequency (or gap, where one frequency was measured) by size, a panel per group.

    Marks: a cell, filled by the share of its runs that learned the task. Line and band: the
    threshold along x for each size with its 95% interval, drawn only where it is inside the data.
    """
    abreast = min(2, len(groups))
    figure = style.new_figure(5.4 * abreast, 4.1 * math.ceil(len(groups) / abreast) + 0.6)
    axes = style.panels(figure, len(groups), abreast=abreast).ravel()
    for axis, group in zip(axes, groups, strict=False):
        _panel(axis, group)
    surface = groups[0].surface
    seeds = f"{surface.num_seeds} seeds, {surface.num_runs} runs" if len(groups) == 1 else ""
    foot = [seeds, told["interval"], f"records {told['records_sha256'][:12]}"]
    foot += [f"commit {str(told['commit'])[:12]}"]
    lines = ["; ".join(filter(None, foot)), *textwrap.wrap(told["command"], 95 * abreast)]
    figure.supxlabel("\n".join(lines), fontsize=6.5, color=style.FAINT)
    return figure


def _panel(axis: Any, group: Group) -> None:
    surface, rows = group.surface, group.rows
    along = "frequency" if "frequency" in surface.covariates else "gap"
    cells = rows.assign(learned=rows.score >= 0.5).groupby(["params", along], as_index=False)
    cells = cells.agg(learned=("learned", "mean"))
    look = {"cmap": "Greens", "vmin": 0, "vmax": 1, "edgecolors": style.INK, "linewidths": 0.8}
    marks = axis.scatter(cells[along], cells.params, c=cells.learned, s=95, zorder=3, **look)
    axis.figure.colorbar(marks, ax=axis, label="share of runs that learned it", shrink=0.8)
    sizes = np.geomspace(*surface.ranges["params"], POINTS)
    fixed = {name: value for name, value in group.asked.items() if name in ("gap", "bits")}
    fixed.pop(along, None)
    found = [threshold(surface, of=along, at={"params": size, **fixed}) for size in sizes]
    inside = [(one, size) for one, size in zip(found, sizes, strict=True) if one.value > 0]
    if inside:
        size = [s for _, s in inside]
        low_edge, high_edge = surface.ranges[along]
        axis.plot([one.value for one, _ in inside], size, color=LINE, linewidth=2, zorder=2)
        # Ends beyond the data are not drawn: the band stops where the measurements do.
        axis.fill_betweenx(size, [max(one.low, low_edge) for one, _ in inside],
                           [min(one.high, high_edge) for one, _ in inside],
                           color=LINE, alpha=0.18, linewidth=0, zorder=1)  # fmt: skip
    for name, draw in (("params", axis.axhline), (along, axis.axvline)):
        if name in group.asked and name != "gap":
            draw(group.asked[name], color="#b3402a", linestyle="--", linewidth=1, zorder=1)
    axis.set_xscale("log")
    axis.set_yscale("log")
    unit = {"per_step": "step", "per_sequence": "sequence", "per_token": "token"}[group.unit]
    below = "gap (steps)" if along == "gap" else f"instances per {unit}"
    ticks = rows[["params", "rung"]].drop_duplicates()
    axis.set_yticks(ticks.params, [f"{r.rung}\n{count(r.params)}" for r in ticks.itertuples()])
    measured = sorted(set(rows[along]))
    axis.set_xticks(measured, [number(value) for value in measured])
    axis.minorticks_off()
    title = f"{style.plain(group.family)}, {group.protocol}"
    said = "" if inside else "\nno line: see the printed reason"
    style.dress(axis, title + said, below)
