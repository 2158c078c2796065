"""The phase diagram as a figure: width by frequency, the analytic staircase drawn over it.

figure = phase_figure(rows, predicted, mixture="A")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eval.figures.style import INK, dress, handles_of, legend_below, new_figure
from theory.lab.phase import LEARNED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAIRS: dict[str, Any] = {"color": "#d1242f", "linewidth": 1.8, "zorder": 3}
MISS: dict[str, Any] = {
    **{"marker": "o", "color": "white", "markersize": 3.4, "linestyle": "none"},
    **{"markeredgecolor": INK, "markeredgewidth": 0.6},
}
HALF: dict[str, Any] = {"color": "#d1242f", "linewidth": 1.2, "linestyle": (0, (3, 2)), "zorder": 3}


def phase_figure(rows: pd.DataFrame, predicted: pd.DataFrame, *, mixture: str) -> Figure:
    """A panel of the prediction and one of each trainer (mean over seeds).

    Heat: retained signal l_k. Solid line: the critical width of the leading feature, predicted; a
    task below it should be learned. Dashed: where half of the signal should be kept. Dots: cells in
    which most seeds are on the other side of the solid line than predicted.
    """
    theory = predicted[predicted.mixture == mixture]
    measured = rows[rows.mixture == mixture]
    trainers = list(dict.fromkeys(measured.trainer))
    figure = new_figure(2.2 + 2.7 * (1 + len(trainers)), 5.0)
    axes = figure.subplots(1, 1 + len(trainers), sharey=True, squeeze=False)[0]
    widths = sorted(theory.width.unique())
    for axis, name in zip(axes, ["predicted before any run", *trainers], strict=True):
        own = measured[measured.trainer == name] if name in trainers else theory
        kept = own[own.metric == "retained"].pivot_table(
            index="task", columns="width", values="value", aggfunc="mean"
        )
        mesh = axis.pcolormesh(
            np.arange(len(widths) + 1), np.arange(0.5, len(kept) + 1), kept[widths].to_numpy(),
            cmap="cividis", vmin=0, vmax=1, rasterized=True,
        )  # fmt: skip
        _stairs(axis, theory, "critical_width", widths, STAIRS)
        _stairs(axis, theory, "half_width", widths, HALF)
        if name in trainers:
            _misses(axis, own, theory, widths)
        axis.set_xticks(np.arange(len(widths)) + 0.5, [str(w) for w in widths], fontsize=8)
        dress(axis, name, "width N")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    axes[0].set_ylabel("task, by frequency (1 is the commonest)", fontsize=9, color=INK)
    axes[0].invert_yaxis()
    bar = figure.colorbar(mesh, ax=axes, shrink=0.7, pad=0.01)
    bar.set_label("retained signal Tr(P C) / Tr C", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.outline.set_visible(False)
    looks = {
        "critical width, predicted": STAIRS,
        "half of the signal kept, predicted": HALF,
        "most seeds elsewhere than predicted": MISS,
    }
    legend_below(figure, handles_of(looks), 3, title=f"mixture {mixture}", title_fontsize=9)
    return figure


def _stairs(
    axis: Any, theory: pd.DataFrame, metric: str, widths: list[int], look: dict[str, Any]
) -> None:
    """Under each width, the last task that the theory says is on the learned side."""
    critical = theory[theory.metric == metric].drop_duplicates("task").value
    heights = [0.5 + int((critical <= width).sum()) for width in widths]
    axis.stairs(heights, np.arange(len(widths) + 1), baseline=None, **look)


def _misses(axis: Any, own: pd.DataFrame, theory: pd.DataFrame, widths: list[int]) -> None:
    spanned = own[own.metric == "leverage"]
    share = (spanned.value > LEARNED).groupby([spanned.task, spanned.width]).mean()
    expected = theory[theory.metric == "learned"].set_index(["task", "width"]).value
    for (task, width), value in share.items():
        if (value > 0.5) != bool(expected[task, width]):
            axis.plot(widths.index(width) + 0.5, task, zorder=4, **MISS)
