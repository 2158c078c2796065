"""Figures of the lab that are curves: complexity sweep, injection, forgetting, gradients.

    figure = injection_figure(rows, gap=2000, burst=15)

Lines are means over seeds, bands their 95% interval (Student's t).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from eval.figures.style import (
    FAINT,
    INK,
    by_seed,
    dress,
    legend_below,
    mean_over_seeds,
    new_figure,
    place_ticks,
)
from eval.statistics import per_group, seed_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0b5fa5", "#d1242f", "#2e7d32", "#8a4fbf", "#b26a00", "#00838f")
PREDICTED: dict[str, Any] = {"color": INK, "linewidth": 1.1, "linestyle": (0, (4, 3)), "zorder": 4}


def bands(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """`value` over seeds: one row per group of `by`, with mean, low, high and num_seeds, sorted."""

    def band(group: pd.DataFrame) -> dict[str, Any]:
        mean, low, high = seed_interval(group.value.tolist())
        return {"mean": mean, "low": low, "high": high, "num_seeds": len(group)}

    return pd.DataFrame(per_group(rows, by, band))


def complexity_figure(table: pd.DataFrame, rows: pd.DataFrame, predicted: pd.DataFrame) -> Figure:
    """Spearman's rho of frequency and of utility against D; then the widths themselves at its ends.

    table: from `complexity.correlations`.
    """
    figure = new_figure(11, 3.6)
    axes = figure.subplots(1, 3)
    for name, colour in (("utility", COLOURS[0]), ("frequency", COLOURS[1])):
        own = table.rename(columns={name: "value"})
        label = f"{name}, orthogonal iteration"
        _band(axes[0], own[own.trainer == "orthogonal"], "gap", color=colour, label=label)
        joint = bands(own[own.trainer == "joint, exact"], ["gap"])
        if len(joint):
            error = [joint["mean"] - joint.low, joint.high - joint["mean"]]
            axes[0].errorbar(joint.gap, joint["mean"], error, color=colour, fmt="D",
                             markersize=4.5, capsize=2.5, linewidth=1,
                             label=f"{name}, joint SGD at one width")  # fmt: skip
    axes[0].set_ylim(-0.05, 1.08)
    measured = rows[rows.metric == "half_width"]
    both = measured.merge(
        predicted[predicted.metric == "half_width"],
        on=["seed", "gap", "task"],
        suffixes=("", "_theory"),
    )
    for gap, colour in {min(table.gap): COLOURS[4], max(table.gap): COLOURS[3]}.items():
        dots = both[both.gap == gap]
        put = {"color": colour, "s": 9, "alpha": 0.6, "linewidths": 0, "label": f"D = {gap:g}"}
        axes[1].scatter(dots.task, dots.value, **put)
        axes[2].scatter(dots.value_theory, dots.value, **put)
    top = float(measured.value.max())
    axes[2].plot([1, top], [1, top], **PREDICTED)
    half = "width at which half is learned"
    _dress(axes[0], "what predicts the order?", "complexity gap D", "Spearman's rho over tasks")
    _dress(axes[1], "by frequency", "rank by frequency", half)
    _dress(axes[2], "by utility", "the width that the theory gives", half)
    return figure


def injection_figure(rows: pd.DataFrame, *, gap: int, burst: int) -> Figure:
    """The rare signal over cycles of gap and burst, and one cycle magnified; a row a width."""
    from matplotlib.patches import Patch

    trace = rows[rows.part == "trace"]
    widths = sorted(trace.width.unique())
    figure = new_figure(11, 2.9 * len(widths))
    axes = figure.subplots(len(widths), 2, squeeze=False, width_ratios=[2.4, 1])
    cycles = int(trace.cycle.max())
    start = (cycles - 2) * gap
    for (axis, zoom), width in zip(axes, widths, strict=True):
        own = trace[trace.width == width]
        part = own[own.step.between(start, start + gap)]
        _lines(axis, own, "step", SIGNALS)
        _lines(zoom, part.assign(lag=part.step - start), "lag", SIGNALS)
        for one, num in ((axis, cycles), (zoom, 1)):
            for end in range(gap, (num + 1) * gap, gap):
                one.axvspan(end - gap, end - burst, **GAP)
                one.axvspan(end - burst, end, **BURST)
            one.set_ylim(-0.05, 1.05)
        _dress(axis, f"width {width:g}", "step", "rare task's signal", legend=False)
        title = f"width {width:g}, gap after burst {cycles - 2}"
        _dress(zoom, title, "steps since the burst", legend=False)
    handles = [
        *axes[0, 0].get_legend_handles_labels()[0],
        Patch(label=f"burst: {burst} batches of the rare task alone", **BURST),
        Patch(label=f"gap: {gap - burst} without it", **GAP),
    ]
    legend_below(figure, handles, len(handles), fontsize=8)
    return figure


BURST: dict[str, Any] = {"color": "#f0b429", "linewidth": 0.8, "zorder": 1}
GAP: dict[str, Any] = {"color": "#f4f4f1", "linewidth": 0, "zorder": 0}
SIGNALS = (
    ("leverage", COLOURS[0], "leading feature spanned, q"),
    ("retained", COLOURS[2], "retained signal of the task, l"),
)
COSINES = (
    ("cos_common", COLOURS[1], "cos(G_r, G_F)"),
    ("cos_batch", COLOURS[0], "cos(G_r, batch gradient), exact in x"),
    ("cos_minibatch", COLOURS[4], "the same on the drawn inputs"),
)


def cosine_figure(rows: pd.DataFrame, *, gap: int, burst: int) -> Figure:
    """Cosines with the rare task's reference gradient, over the steps after each burst.

    Mean over the second half of the cycles, seed by seed; batches of the burst itself are left out.
    """
    trace = rows[(rows.part == "trace") & (rows.lag < gap - burst)]
    trace = trace[trace.cycle.between(max(1, trace.cycle.max() // 2), trace.cycle.max() - 1)]
    widths = sorted(trace.width.unique())
    figure = new_figure(5.2 * len(widths), 3.4)
    axes = figure.subplots(1, len(widths), sharey=True, squeeze=False)[0]
    for axis, width in zip(axes, widths, strict=True):
        _lines(axis, trace[trace.width == width], "lag", COSINES)
        axis.axhline(0, color=FAINT, linewidth=0.8)
        axis.set_xscale("symlog", linthresh=20)
        axis.set_xlim(0, gap)
        title, first = f"width {width:g}", axis is axes[0]
        _dress(axis, title, "steps since the burst", "cosine", legend=first)
    return figure


def forgetting_figure(
    halves: pd.DataFrame, predicted: pd.DataFrame, gaps: pd.DataFrame, critical: pd.DataFrame
) -> Figure:
    """Half-life against width; the signal before a burst, and the critical width, against the gap.

    halves: columns width, seed, value (NaN where the signal never halved).
    gaps: columns width, gap, seed, value. critical: columns gap, seed, value.
    """
    figure = new_figure(12, 3.5)
    left, middle, right = figure.subplots(1, 3)
    theory = predicted[(predicted.metric == "half_life") & predicted.value.notna()]
    _dots(left, halves.dropna(subset="value"), theory, "width", COLOURS[0], "ln 2 / (4 eta mu)")
    for width, never in halves[halves.value.isna()].groupby("width").size().items():
        left.annotate(f"{never} never\nhalved", (width, 0.8), ha="center", fontsize=8,
                      color=FAINT, xycoords=("data", "axes fraction"))  # fmt: skip
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    left.set_xlim(min(halves.width) / 1.4, max(halves.width) * 1.4)
    place_ticks(left.xaxis, sorted(halves.width.unique()))
    place_ticks(left.yaxis, [20, 50, 100, 200, 500, 1000])
    for colour, (width, own) in zip(COLOURS, gaps.groupby("width"), strict=False):
        _band(middle, own, "gap", color=colour, label=f"width {width:g}", marker="o")
    middle.set_ylim(-0.05, 1.05)
    theory = predicted[(predicted.metric == "gap_critical_width") & predicted.one_step.eq(True)]
    _dots(right, critical, theory, "gap", COLOURS[3], "predicted")
    for axis, table in ((middle, gaps), (right, critical)):
        axis.set_xscale("log")
        place_ticks(axis.xaxis, sorted(table.gap.unique()))
    _dress(left, "half-life of what one burst taught", "width N", "steps")
    before = "q of the rare feature\nright before a burst"
    _dress(middle, "equal frequency, unequal gaps", "gap between bursts, steps", before)
    title = "bursts of one weighted step\n(orthogonal iteration)"
    _dress(right, title, "gap, steps", "critical width")
    return figure


def gradient_figure(rows: pd.DataFrame, predicted: pd.DataFrame) -> Figure:
    """Residual and bounds, which fall with width, beside the norms, which need not."""
    figure = new_figure(11, 3.5)
    axes = figure.subplots(1, 3)
    panels: tuple[tuple[tuple[str, str], ...], ...] = (
        (("residual", "residual R_F"),),
        (("split", "2 sqrt(R_F Tr(P M_F))"), ("operator", "2 sqrt(|M_F| R_F)"),
         ("residual_norm", "2 |(I - P) M_F|"), ("norm", "|G_F|, decoders optimal")),
        (("joint", "|G_F|, decoders as trained"), ("minibatch", "norm of a batch's gradient")),
    )  # fmt: skip
    for axis, panel in zip(axes, panels, strict=True):
        looks = [(name, c, label) for (name, label), c in zip(panel, COLOURS, strict=False)]
        _lines(axis, rows, "width", looks, marker="o")
        axis.set_xscale("log", base=2)
        place_ticks(axis.xaxis, sorted(rows.width.unique()))
    for axis, metric in ((axes[0], "residual"), (axes[1], "operator")):
        theory = predicted[predicted.metric == metric]
        axis.plot(theory.width, theory.value, label="at the best encoder", **PREDICTED)
    for axis, title in zip(axes, ("residual", "bounds and norm", "norms in training"), strict=True):
        _dress(axis, title, "width N")
        axis.set_ylim(bottom=0)
    return figure


def _lines(
    axis: Any, rows: pd.DataFrame, x: str, looks: Sequence[tuple[str, str, str]], **more: Any
) -> None:
    """A line for each metric: (metric, colour, label)."""
    for metric, colour, label in looks:
        _band(axis, rows[rows.metric == metric], x, color=colour, label=label, **more)


def _band(axis: Any, rows: pd.DataFrame, x: str, **look: Any) -> None:
    if len(rows):
        mean_over_seeds(axis, by_seed(rows, x), linewidth=1.5, alpha=0.18, markersize=3.5, **look)


def _dots(
    axis: Any, rows: pd.DataFrame, theory: pd.DataFrame, x: str, colour: str, label: str
) -> None:
    """A dot a seed, and what was predicted."""
    axis.scatter(rows[x], rows.value, color=colour, s=14, label="measured, a dot a seed")
    axis.plot(theory[x], theory.value, label=label, marker="_", **PREDICTED)


def _dress(axis: Any, title: str, x: str, y: str = "", *, legend: bool = True) -> None:
    dress(axis, title, x, y, grid=True)
    if legend:
        axis.legend(fontsize=7.5, frameon=False)
