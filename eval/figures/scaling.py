"""Fig. 1 of the study from fitted runs: what data can do for a smaller model, and what it cannot.

figure = reach_figure(fitted, learnability(fitted))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from eval.figures import style
from eval.text import count
from theory.scaling.fit import Fit
from theory.scaling.law import Array, Law
from theory.scaling.learnability import Learnability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DATA, PARAMETERS = "#9ecae1", "#fdae6b"
"""The two bands: blue and orange also differ in lightness and for the colour-blind."""

OPTIMAL, INFINITE = "#08519c", "#a63603"
NUM_POINTS = 120
MARGIN = 1.25
"""The curves run a little past the runs on both sides; dashed there."""


def reach_figure(fitted: Fit, answers: Learnability, *, origin: str = "") -> Figure:
    """Excess loss L - L0 against N, log axes: L_C above L_inf, runs as points.

    Blue: from L_C(N) down to L_inf(N), what data gives a model of this size. Orange: from L_inf(N)
    down to L_C(N_l), which only parameters give. Lines carry their pointwise 95% band over the
    resamples; N_s*(0) its interval. `origin` (source, command, commit) stands below.
    """
    figure = style.new_figure(7.6, 5.4)
    axis = figure.subplots()
    law, draws, runs = fitted.law, fitted.draws, fitted.runs
    low, high = float(runs.params.min()), max(float(runs.params.max()), answers.large)
    size = np.geomspace(low / MARGIN, high * MARGIN, NUM_POINTS)
    optimal, infinite = (_excess(law, size, which) for which in ("optimal", "infinite"))
    target = _excess(law, np.array([answers.large]), "optimal")[0]
    smaller = size <= answers.large
    axis.fill_between(
        size[smaller], infinite[smaller], optimal[smaller], color=DATA, linewidth=0, alpha=0.6,
        label="what data gives: L_C(N) to L_inf(N)",
    )  # fmt: skip
    axis.fill_between(
        size, target, infinite, where=infinite > target, color=PARAMETERS, linewidth=0, alpha=0.7,
        label="only parameters: L_inf(N) to L_C(N_l)",
    )  # fmt: skip
    for which, values, colour, name in (
        ("optimal", optimal, OPTIMAL, "L_C, compute-optimal"),
        ("infinite", infinite, INFINITE, "L_inf, infinite data"),
    ):
        _line(
            axis, draws, size, values, which, colour, name, inside=(low, float(runs.params.max()))
        )
    left_out = _runs(axis, figure, fitted)
    axis.axhline(target, color=OPTIMAL, linewidth=0.9, linestyle=(0, (1, 2)))
    threshold = law.small_below(answers.large)
    axis.plot([answers.large], [target], "D", color=OPTIMAL, markersize=6, zorder=5)
    axis.annotate(
        f"N_l = {count(answers.large)}", (answers.large, target), xytext=(-4, 9),
        textcoords="offset points", fontsize=9, color=style.INK, ha="right",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )  # fmt: skip
    span = np.percentile(np.asarray(draws.small_below(answers.large)), [2.5, 97.5])
    axis.errorbar(
        [threshold], [target], xerr=[[threshold - span[0]], [span[1] - threshold]], fmt="o",
        color=style.INK, markersize=5, capsize=3, zorder=5,
        label=f"N_s*(0) = {count(threshold)} [{count(span[0])}, {count(span[1])}]",
    )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlim=(size[0], size[-1]))
    axis.set_ylabel(f"excess loss L - L0, nats per token (L0 = {law.L0:.3g})", fontsize=9.5)
    title = f"{runs.num_runs} runs, bands: 95% over {len(np.atleast_1d(draws.alpha)):,} resamples"
    if left_out:
        title += f"; {left_out} runs at or below L0 not drawn"
    style.dress(axis, title, "parameters N")
    figure.legend(loc="outside upper center", ncols=2, fontsize=8.5, frameon=False)
    if origin:
        figure.supxlabel(origin, fontsize=7, color="#6b6b6b", x=0.01, ha="left")
    return figure


def _excess(law: Law, size: Array, which: str) -> Array:
    """L_C or L_inf above the law's own L0; shape of `size`, or (S, sizes) for draws."""
    if np.ndim(law.alpha):
        law = Law(**{name: np.asarray(value)[:, None] for name, value in vars(law).items()})
    loss = law.compute_optimal_loss if which == "optimal" else law.infinite_data_loss
    return np.asarray(loss(size)) - law.L0


def _line(
    axis: Any,
    draws: Law,
    size: Array,
    values: Array,
    which: str,
    colour: str,
    name: str,
    *,
    inside: tuple[float, float],
) -> None:
    low, high = np.nanpercentile(_excess(draws, size, which), [2.5, 97.5], axis=0)
    axis.fill_between(size, low, high, color=colour, alpha=0.3, linewidth=0)
    within = (size >= inside[0]) & (size <= inside[1])
    axis.plot(size, values, color=colour, linewidth=1.0, linestyle=(0, (3, 3)))
    axis.plot(size[within], values[within], color=colour, linewidth=1.8, label=name)


def _runs(axis: Any, figure: Figure, fitted: Fit) -> int:
    """The runs, coloured by tokens; returns how many cannot stand on a log axis."""
    runs = fitted.runs
    excess = runs.loss - fitted.law.L0
    shown = excess > 0
    from matplotlib.colors import LogNorm

    dots = axis.scatter(
        runs.params[shown], excess[shown], c=runs.tokens[shown], cmap="Greys", norm=LogNorm(),
        s=14, edgecolors=style.FAINT, linewidths=0.4, zorder=3,
    )  # fmt: skip
    bar = figure.colorbar(dots, ax=axis, shrink=0.8, pad=0.01)
    bar.set_label("tokens D of a run", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return int((~shown).sum())
