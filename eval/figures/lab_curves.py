"""Figures of the lab that are curves: complexity sweep, injection, forgetting, gradients.

    figure = injection_figure(rows, gap=2000, burst=15)

Lines are means over seeds, bands their 95% interval (Student's t).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from eval.figures.style import FAINT, INK, new_figure
from eval.statistics import seed_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0b5fa5", "#d1242f", "#2e7d32", "#8a4fbf", "#b26a00", "#00838f")
PREDICTED: dict[str, Any] = {"color": INK, "linewidth": 1.1, "linestyle": (0, (4, 3)), "zorder": 4}


def bands(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """`value` over seeds: one row per group of `by`, with mean, low, high and num_seeds, sorted."""
    table = []
    for key, group in rows.groupby(list(by), sort=True):
        mean, low, high = seed_interval(group.value.tolist())
        fields = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        table.append({**fields, "mean": mean, "low": low, "high": high, "num_seeds": len(group)})
    return pd.DataFrame(table)


def complexity_figure(table: pd.DataFrame, rows: pd.DataFrame, predicted: pd.DataFrame) -> Figure:
    """Spearman's rho of frequency and of utility against D; then the widths themselves at its ends.

    table: from `complexity.correlations`.
    """
    figure = new_figure(11, 3.6)
    axes = figure.subplots(1, 3)
    looks = {"orthogonal": "-", "joint, exact": "none"}
    for trainer, line in looks.items():
        own = table[table.trainer == trainer]
        for name, colour in (("utility", COLOURS[0]), ("frequency", COLOURS[1])):
            stats = bands(own.rename(columns={name: "value"}), ["gap"])
            if stats.empty:
                continue
            if line == "-":
                _band(axes[0], stats, "gap", colour, f"{name}, orthogonal iteration")
            else:
                error = [stats["mean"] - stats.low, stats.high - stats["mean"]]
                axes[0].errorbar(stats.gap, stats["mean"], error, color=colour, fmt="D",
                                 markersize=4.5, capsize=2.5, linewidth=1,
                                 label=f"{name}, joint SGD at one width")  # fmt: skip
    axes[0].set_ylim(-0.05, 1.08)
    _dress(axes[0], "what predicts the order?", "complexity gap D", "Spearman's rho over tasks")
    axes[0].legend(fontsize=7, frameon=False, loc="lower left")
    measured = rows[rows.metric == "half_width"]
    theory = predicted[predicted.metric == "half_width"]
    ends = {min(table.gap): COLOURS[4], max(table.gap): COLOURS[3]}
    for gap, colour in ends.items():
        both = measured[measured.gap == gap].merge(
            theory[theory.gap == gap], on=["seed", "gap", "task"], suffixes=("", "_theory")
        )
        put = {"color": colour, "s": 9, "alpha": 0.6, "linewidths": 0, "label": f"D = {gap:g}"}
        axes[1].scatter(both.task, both.value, **put)
        axes[2].scatter(both.value_theory, both.value, **put)
    top = float(measured.value.max())
    axes[2].plot([1, top], [1, top], **PREDICTED)
    half = "width at which half is learned"
    _dress(axes[1], "by frequency", "rank by frequency", half)
    _dress(axes[2], "by utility", "the width that the theory gives", half)
    for axis in axes[1:]:
        axis.legend(fontsize=8, frameon=False)
    return figure


def injection_figure(rows: pd.DataFrame, *, gap: int, burst: int) -> Figure:
    """The rare signal over cycles of gap and burst, and one cycle magnified; a row a width."""
    trace = rows[rows.part == "trace"]
    widths = sorted(trace.width.unique())
    figure = new_figure(11, 2.9 * len(widths))
    axes = figure.subplots(len(widths), 2, squeeze=False, width_ratios=[2.4, 1])
    cycles = int(trace.cycle.max())
    for (axis, zoom), width in zip(axes, widths, strict=True):
        own = trace[trace.width == width]
        for metric, colour, label in SIGNALS:
            stats = bands(own[own.metric == metric], ["step"])
            _band(axis, stats, "step", colour, label)
            start = (cycles - 2) * gap
            part = stats[(stats.step >= start) & (stats.step <= start + gap)]
            _band(zoom, part.assign(lag=part.step - start), "lag", colour, label)
        for cycle in range(1, cycles + 1):
            axis.axvspan((cycle - 1) * gap, cycle * gap - burst, **GAP)
            axis.axvspan(cycle * gap - burst, cycle * gap, **BURST)
        zoom.axvspan(0, gap - burst, **GAP)
        zoom.axvspan(gap - burst, gap, **BURST)
        for one in (axis, zoom):
            one.set_ylim(-0.05, 1.05)
        _dress(axis, f"width {width:g}", "step", "rare task's signal")
        _dress(zoom, f"width {width:g}, gap after burst {cycles - 2}", "steps since the burst", "")
    _injection_legend(figure, axes[0, 0], gap, burst)
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
        own = trace[trace.width == width]
        for metric, colour, label in COSINES:
            per_seed = own[own.metric == metric].groupby(["lag", "seed"], as_index=False).value
            _band(axis, bands(per_seed.mean(), ["lag"]), "lag", colour, label)
        axis.axhline(0, color=FAINT, linewidth=0.8)
        axis.set_xscale("symlog", linthresh=20)
        axis.set_xlim(0, gap)
        _dress(axis, f"width {width:g}", "steps since the burst", "cosine")
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def forgetting_figure(
    halves: pd.DataFrame, predicted: pd.DataFrame, gaps: pd.DataFrame, critical: pd.DataFrame
) -> Figure:
    """Half-life against width; the signal before a burst, and the critical width, against the gap.

    halves: columns width, seed, value (NaN where the signal never halved).
    gaps: columns width, gap, seed, value. critical: columns gap, seed, value.
    """
    figure = new_figure(12, 3.5)
    left, right, last = figure.subplots(1, 3)
    seen = halves[halves.value.notna()]
    left.scatter(seen.width, seen.value, color=COLOURS[0], s=14, label="measured, a dot a seed")
    theory = predicted[(predicted.metric == "half_life") & predicted.value.notna()]
    left.plot(theory.width, theory.value, label="ln 2 / (4 eta mu)", marker="_", **PREDICTED)
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    for width in sorted(set(halves[halves.value.isna()].width)):
        count = int(halves[halves.width == width].value.isna().sum())
        left.annotate(f"{count} never\nhalved", (width, 0.8), ha="center", fontsize=8,
                      color=FAINT, xycoords=("data", "axes fraction"))  # fmt: skip
    left.set_xlim(min(halves.width) / 1.4, max(halves.width) * 1.4)
    _plain_ticks(left.xaxis, sorted(halves.width.unique()))
    _plain_ticks(left.yaxis, [20, 50, 100, 200, 500, 1000])
    _dress(left, "half-life of what one burst taught", "width N", "steps")
    left.legend(fontsize=8, frameon=False)
    for colour, width in zip(COLOURS, sorted(gaps.width.unique()), strict=False):
        stats = bands(gaps[gaps.width == width], ["gap"])
        _band(right, stats, "gap", colour, f"width {width:g}", marker="o")
    right.set_xscale("log")
    _plain_ticks(right.xaxis, sorted(gaps.gap.unique()))
    right.set_ylim(-0.05, 1.05)
    _dress(right, "equal frequency, unequal gaps", "gap between bursts, steps",
           "q of the rare feature\nright before a burst")  # fmt: skip
    right.legend(fontsize=8, frameon=False)
    last.scatter(
        critical.gap, critical.value, color=COLOURS[3], s=14, label="measured, a dot a seed"
    )
    theory = predicted[(predicted.metric == "gap_critical_width") & predicted.one_step.eq(True)]
    last.plot(theory.gap, theory.value, label="predicted", marker="_", **PREDICTED)
    last.set_xscale("log")
    _plain_ticks(last.xaxis, sorted(critical.gap.unique()))
    _dress(last, "bursts of one weighted step\n(orthogonal iteration)", "gap, steps",
           "critical width")  # fmt: skip
    last.legend(fontsize=8, frameon=False)
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
        for (metric, label), colour in zip(panel, COLOURS, strict=False):
            stats = bands(rows[rows.metric == metric], ["width"])
            _band(axis, stats, "width", colour, label, marker="o")
        axis.set_xscale("log", base=2)
        _plain_ticks(axis.xaxis, sorted(rows.width.unique()))
    for axis, metric in ((axes[0], "residual"), (axes[1], "operator")):
        theory = predicted[predicted.metric == metric]
        axis.plot(theory.width, theory.value, label="at the best encoder", **PREDICTED)
    for axis, title in zip(axes, ("residual", "bounds and norm", "norms in training"), strict=True):
        _dress(axis, title, "width N", "")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7, frameon=False)
    return figure


def _injection_legend(figure: Any, axis: Any, gap: int, burst: int) -> None:
    from matplotlib.patches import Patch

    handles, labels = axis.get_legend_handles_labels()
    handles += [Patch(**BURST), Patch(**GAP)]
    labels += [f"burst: {burst} batches of the rare task alone", f"gap: {gap - burst} without it"]
    figure.legend(
        handles, labels, fontsize=8, frameon=False, loc="outside upper center", ncols=len(labels)
    )


def _band(axis: Any, stats: pd.DataFrame, x: str, colour: str, label: str, **look: Any) -> None:
    axis.plot(stats[x], stats["mean"], color=colour, label=label, linewidth=1.5, markersize=3.5,
              zorder=3, **look)  # fmt: skip
    if stats.low.notna().all():
        axis.fill_between(stats[x], stats.low, stats.high, color=colour, alpha=0.18, linewidth=0)


def _plain_ticks(axis: Any, values: list[float]) -> None:
    """Numbers as they are at these places of a logarithmic axis, nothing between them."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(values))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def _dress(axis: Any, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=9.5, color=INK)
    axis.set_xlabel(x, fontsize=8.5, color=INK)
    axis.set_ylabel(y, fontsize=8.5, color=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(FAINT)
    axis.tick_params(labelsize=8, colors=INK, length=3)
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    axis.set_axisbelow(True)
