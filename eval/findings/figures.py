"""The figures of docs/findings.md, drawn from its committed records.

    FIGURES["controls"](read_records("docs/findings/controls")).savefig("controls.png", dpi=180)

Bars are 95% intervals over seeds (Student's t); a dashed line is the learned threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eval.figures.heatmap import FAINT, INK, THRESHOLD, heatmap
from eval.findings.contrasts import estimate, final, over_all_pairs, per_seed
from eval.findings.controls import GRADES, RUNGS, WITHDRAWN_AT
from eval.scores.cells import LEARNED_SCORE, cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours: apart for every kind of colour vision.
BLUE, ORANGE, GREEN, RED, BLACK = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#1a1a1a"


def staircase(frame: pd.DataFrame) -> Figure:
    """The mixture's four widths by four rates."""
    rows = final(frame)
    return heatmap(cells(rows[rows.sweep == "mixture"]))


def controls(frame: pd.DataFrame) -> Figure:
    """Score by exposures under each control, a panel per width."""
    rows = final(frame)
    figure, axes = _panels(2, height=3.4)
    slow = {"learning_rate": 0.001}
    conditions: tuple[tuple[str, str, str, str, tuple[int, ...], int, dict[str, Any]], ...] = (
        ("mixture", "in the mixture", BLUE, "o", (8, 4, 2, 1), 1, {}),
        ("learning_rate", "mixture, lr 1e-2", BLACK, "v", (8, 4, 2, 1), 1, {"learning_rate": 0.01}),
        ("sparse", "mixture, lr 1e-2, 1/4 rate, 4x steps", GREEN, "D", (8, 4, 2, 1), 4, {}),
        ("single", "one task a run", ORANGE, "s", (4, 2, 1), 1, {}),
        ("matched", "one task a run, no host text, lr 1e-3", RED, "^", (4, 2, 1), 1, slow),
    )
    for axis, rung in zip(axes, RUNGS[::-1], strict=True):
        for shift, (sweep, label, colour, marker, rates, thinner, more) in enumerate(conditions):
            found = [
                estimate(per_seed(rows, sweep, rung=rung, task=f"cmp_r{rate / thinner:g}", **more))
                for rate in rates
            ]
            x = np.log2(rates) + 0.06 * (shift - 2)
            _points(axis, x, found, label=label, color=colour, marker=marker)
        alone = estimate(per_seed(rows, "alone", rung=rung))
        axis.axhline(alone.mean, color=BLACK, linewidth=1.2, label="alone, 48 exposures")
        axis.set_xticks(range(4), ["1\n1.5", "2\n3", "4\n6", "8\n12"])
        axis.set_xlabel("instances per step (the mixture's)\nexposures per example", fontsize=9)
        axis.set_title(f"{rung}", fontsize=10)
    return _legend(figure, axes, 3)


def withdrawn(frame: pd.DataFrame) -> Figure:
    """Score over steps when injection ends at step 600."""
    rows = over_all_pairs(frame)
    rows = rows[(rows.sweep == "withdrawn") & (rows.metric == "score") & (rows.split == "test")]
    figure, axes = _panels(2, height=3.0)
    for axis, rung in zip(axes, RUNGS[::-1], strict=True):
        table = rows[rows.rung == rung].pivot_table(index="step", columns="seed", values="value")
        axis.plot(table.index, table, color=BLUE, linewidth=0.8, alpha=0.6)
        axis.plot(table.index, table.mean(axis=1), color=BLUE, linewidth=2, label="mean of seeds")
        axis.axvline(WITHDRAWN_AT, color=RED, linewidth=1.2, label="last injection")
        axis.set_xlabel("step", fontsize=9)
        axis.set_title(rung, fontsize=10)
    return _legend(figure, axes, 3)


def complexity(frame: pd.DataFrame) -> Figure:
    """Score of the graded tasks at two rates and alone, a panel per width."""
    rows = final(frame)
    figure, axes = _panels(2, height=3.4)
    for axis, rung in zip(axes, RUNGS[::-1], strict=True):
        looks: tuple[tuple[str, str, str, str, dict[str, Any]], ...] = (
            ("complexity", "rate 2", BLUE, "o", {"rate_per_step": 2.0}),
            ("complexity", "rate 6", GREEN, "D", {"rate_per_step": 6.0}),
            ("complexity_alone", "alone", BLACK, "s", {}),
        )
        for shift, (sweep, label, colour, marker, where) in enumerate(looks):
            found = [
                estimate(per_seed(rows, sweep, rung=rung, task=task, **where)) for task in GRADES
            ]
            x = np.arange(len(GRADES)) + 0.1 * (shift - 1)
            _points(axis, x, found, label=label, color=colour, marker=marker, linestyle="none")
        axis.set_xticks(range(len(GRADES)), GRADES, fontsize=8)
        axis.set_title(rung, fontsize=10)
    return _legend(figure, axes, 4)


FIGURES: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "staircase": staircase,
    "controls": controls,
    "withdrawn": withdrawn,
    "complexity": complexity,
}


def _panels(number: int, *, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, height + 0.6), layout="constrained")
    axes = figure.subplots(1, number, sharey=True)
    for axis in axes:
        axis.axhline(0, color=FAINT, linewidth=0.6)
        axis.axhline(LEARNED_SCORE, **THRESHOLD)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8.5, colors=INK)
    axes[0].set_ylabel("test score", fontsize=9)
    return figure, axes


def _points(axis: Any, x: Any, found: list[Any], **look: Any) -> None:
    mean = np.array([one.mean for one in found])
    spread = np.array([[one.mean - one.low, one.high - one.mean] for one in found]).T
    axis.errorbar(x, mean, yerr=spread, markersize=5, linewidth=1.3, capsize=2.5, **look)


def _legend(figure: Any, axes: Any, columns: int) -> Any:
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=8.5, frameon=False
    )
    # Intervals of three seeds can leave the score's range by far; the values are in the tables.
    axes[0].set_ylim(-0.6, 1.25)
    return figure
