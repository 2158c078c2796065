"""The figures of docs/findings.md, drawn from its committed records.

    FIGURES["controls"](read_records("docs/findings/controls")).savefig("controls.png", dpi=180)

Bars are 95% intervals over seeds (Student's t); a dashed line is the learned threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eval.figures import style
from eval.figures.heatmap import heatmap
from eval.findings.contrasts import estimate, final, over_all_pairs, per_seed
from eval.findings.controls import RUNGS, WITHDRAWN_AT
from eval.scores.cells import LEARNED_SCORE, cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def staircase(frame: pd.DataFrame) -> Figure:
    """The mixture's four widths by four rates."""
    rows = final(frame)
    return heatmap(cells(rows[rows.sweep == "mixture"]))


def controls(frame: pd.DataFrame) -> Figure:
    """Score by exposures under each control, a panel per width."""
    rows = final(frame)
    figure, axes = _panels(3.4)
    fast, slow = {"learning_rate": 0.01}, {"learning_rate": 0.001}
    conditions: tuple[tuple[str, str, str, str, tuple[int, ...], int, dict[str, Any]], ...] = (
        ("mixture", "in the mixture", style.BLUE, "o", (8, 4, 2, 1), 1, {}),
        ("learning_rate", "mixture, lr 1e-2", style.INK, "v", (8, 4, 2, 1), 1, fast),
        ("sparse", "mixture, lr 1e-2, 1/4 rate, 4x steps", style.GREEN, "D", (8, 4, 2, 1), 4, {}),
        ("single", "one task a run", style.ORANGE, "s", (4, 2, 1), 1, {}),
        ("matched", "one task a run, no host text, lr 1e-3", style.RED, "^", (4, 2, 1), 1, slow),
    )
    for axis, rung in zip(axes, RUNGS[::-1], strict=True):
        for shift, (sweep, label, colour, marker, rates, thinner, more) in enumerate(conditions):
            found = [
                estimate(per_seed(rows, sweep, rung=rung, task=f"cmp_r{rate / thinner:g}", **more))
                for rate in rates
            ]
            x = np.log2(rates) + 0.06 * (shift - 2)
            mean = [one.mean for one in found]
            spread = np.transpose([(one.mean - one.low, one.high - one.mean) for one in found])
            look = {"label": label, "color": colour, "marker": marker, "markersize": 5}
            axis.errorbar(x, mean, yerr=spread, linewidth=1.3, capsize=2.5, **look)
        alone = estimate(per_seed(rows, "alone", rung=rung))
        axis.axhline(alone.mean, color=style.INK, linewidth=1.2, label="alone, 48 exposures")
        axis.set_xticks(range(4), ["1\n1.5", "2\n3", "4\n6", "8\n12"])
        below = "instances per step (the mixture's)\nexposures per example"
        style.dress(axis, rung, below)
    return _legend(figure, axes, 3)


def withdrawn(frame: pd.DataFrame) -> Figure:
    """Score over steps when injection ends at step 600."""
    rows = over_all_pairs(frame)
    rows = rows[(rows.sweep == "withdrawn") & (rows.metric == "score") & (rows.split == "test")]
    figure, axes = _panels(3.0)
    for axis, rung in zip(axes, RUNGS[::-1], strict=True):
        table = rows[rows.rung == rung].pivot_table(index="step", columns="seed", values="value")
        axis.plot(table, color=style.BLUE, linewidth=0.8, alpha=0.6)
        axis.plot(table.mean(axis=1), color=style.BLUE, linewidth=2, label="mean of seeds")
        axis.axvline(WITHDRAWN_AT, color=style.RED, linewidth=1.2, label="last injection")
        style.dress(axis, rung, "step")
    return _legend(figure, axes, 3)


FIGURES: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "staircase": staircase,
    "controls": controls,
    "withdrawn": withdrawn,
}


def _panels(height: float) -> tuple[Any, Any]:
    figure = style.new_figure(8.6, height + 0.6)
    axes = figure.subplots(1, 2, sharey=True)
    for axis in axes:
        axis.axhline(0, color=style.FAINT, linewidth=0.6)
        axis.axhline(LEARNED_SCORE, **style.THRESHOLD)
    axes[0].set_ylabel("test score", fontsize=9)
    return figure, axes


def _legend(figure: Any, axes: Any, columns: int) -> Any:
    style.legend_below(figure, axes[0].get_legend_handles_labels()[0], columns)
    # Intervals of three seeds can leave the score's range by far; the values are in the tables.
    axes[0].set_ylim(-0.6, 1.25)
    return figure
