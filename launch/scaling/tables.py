"""What `olmo-ext scaling fit` prints: constants, exponents, frontier, Defs. 1 and 2.

show(table, fitted, frontier, answers, console)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from eval.text import count, new_table, plural, print_table
from launch.scaling.losses import LossTable
from launch.terminal import say
from theory.scaling.fit import FAR, Fit
from theory.scaling.frontier import Frontier
from theory.scaling.law import CONSTANTS, PAPER_GAMMA
from theory.scaling.learnability import LawEstimate, Learnability

MARK = "*"
MOST_SIZES = 12
"""Smaller models shown; sizes.csv has all."""

DERIVED = {
    "params_exponent": "L_C - L0 falls as N^-alpha",
    "compute_exponent": "L_C - L0 falls as C^-(alpha beta/(alpha+beta))",
    "size_exponent": "compute-optimal N grows as C^(beta/(alpha+beta))",
    "reach": "N_l / N_s*(0) = (1 + alpha/beta)^(1/alpha)",
}
"""Properties of a Law, with what they say."""


def show(
    table: LossTable, fitted: Fit, frontier: Frontier | str, answers: Learnability, console: Console
) -> None:
    runs = fitted.runs
    say(
        console,
        f"{runs.num_runs} runs, {_span(runs.params)} parameters, {_span(runs.tokens)} tokens, loss "
        f"{runs.loss.min():.3f} to {runs.loss.max():.3f}\nloss: {table.kind}",
    )
    law = "L(N, D) = L0 + A/N^alpha + B/D^beta"
    constants = new_table("constant", numbers=("value", "95% interval"), title=law)
    for name in CONSTANTS:
        constants.add_row(name, *_cells(estimate(fitted, name)))
    for name, meaning in DERIVED.items():
        constants.add_row(meaning, *_cells(estimate(fitted, name)))
    constants.caption = (
        f"{len(fitted.draws.alpha):,} resamples of the runs, seed {fitted.seed}; spread of the "
        f"runs about the law {fitted.noise:.2%}; {fitted.same_optimum:.0%} of the starts end here"
    )
    print_table(constants, console)
    if isinstance(frontier, Frontier):
        print_table(_frontier_table(frontier), console)
    else:
        say(console, f"No frontier: {frontier}")
    say(
        console,
        f"The paper's gamma, L_C(N) ~ N^-{PAPER_GAMMA:g}, does not follow from its Eq. 1, which "
        f"gives N^-alpha = N^-{fitted.law.alpha:.3g} here; nothing is tuned to it.",
    )
    _show_answers(answers, console)
    for note in (*table.notes, *fitted.warnings, *_far(fitted)):
        console.print(f"[yellow]note:[/] {note}", highlight=False)


def _far(fitted: Fit) -> list[str]:
    """Which rows are far from the law, and how far the constants move without them."""
    found = fitted.outliers
    if found is None:
        return []
    shown = [f"{row} ({far:+.0f})" for row, far in zip(found.rows, found.spreads, strict=True)]
    rows = ", ".join(shown[:MOST_SIZES]) + (", ..." if len(shown) > MOST_SIZES else "")
    said = (
        f"{plural(len(shown), 'row')} of the table {'is' if len(shown) == 1 else 'are'} {FAR:g} "
        f"spreads or more from the law: {rows}. "
    )
    if found.law is None:
        return [said + "Without them the runs identify no law"]
    moves = [
        f"{name} {_short(getattr(fitted.law, name))} to {_short(getattr(found.law, name))}"
        for name in CONSTANTS
    ]
    return [f"{said}Without them: {', '.join(moves)}. Look at them before you trust either"]


def _frontier_table(frontier: Frontier) -> Table:
    title = f"Frontier of the runs, {len(frontier.compute)} points, without the law"
    table = new_table("power law", numbers=("exponent", "95% interval", "floor"), title=title)
    for name, letter in (("params", "N"), ("compute", "C")):
        for what, laws in (("floor + K", frontier.with_floor), ("K", frontier.without_floor)):
            law = laws[name]
            exponent = LawEstimate(law.exponent, *law.exponent_interval)
            floor = f"{law.floor:.3g}" if what != "K" else "-"
            table.add_row(f"L = {what} {letter}^-g", *_cells(exponent), floor)
    slope = LawEstimate(frontier.size_exponent, *frontier.size_exponent_interval)
    table.add_row("N = K C^g", *_cells(slope), "-")
    return table


def _show_answers(answers: Learnability, console: Console) -> None:
    """Both definitions; what is outside the data carries a mark and is said below."""
    say(
        console,
        f"N_l = {_short(answers.large)}: L_C {_text(answers.optimal_loss)} at D = "
        f"{_text(answers.tokens)}, L_inf {_text(answers.infinite_loss)}",
    )
    outside = list(answers.outside)
    title = "Def. 2: below N_s*(eps) only parameters help"
    table = new_table("eps", numbers=("N_s*", "95% interval"), title=title)
    for threshold in answers.thresholds:
        value, interval = _cells(threshold.params)
        table.add_row(f"{threshold.eps:g}", value + MARK * bool(threshold.outside), interval)
        outside += threshold.outside
    print_table(table, console)
    numbers = ("L_inf - L_C(N_l)", "95% interval", "needs", "tokens to match")
    title = "Def. 1: can data close the gap to N_l?"
    table = new_table("N_s", numbers=numbers, title=title)
    sizes = answers.sizes
    chosen = np.unique(np.linspace(0, len(sizes) - 1, min(len(sizes), MOST_SIZES)).round())
    for size in (sizes[int(index)] for index in chosen):
        tokens = "none is enough" if np.isinf(size.tokens.value) else _text(size.tokens)
        tokens += MARK * bool(size.outside)
        table.add_row(_short(size.params), *_cells(size.infinite_gap), size.verdict, tokens)
        outside += size.outside
    print_table(table, console)
    for said in outside:
        console.print(f"[yellow]{MARK} outside the data:[/] {said}", highlight=False)


def estimate(fitted: Fit, name: str) -> LawEstimate:
    return LawEstimate(float(getattr(fitted.law, name)), *fitted.interval(name))


def _span(values: Any) -> str:
    return f"{count(values.min())} to {count(values.max())}"


def _cells(one: LawEstimate) -> tuple[str, str]:
    return _short(one.value), f"{_short(one.low)} to {_short(one.high)}"


def _text(one: LawEstimate) -> str:
    return f"{_short(one.value)} [{_short(one.low)}, {_short(one.high)}]"


def _short(value: float) -> str:
    return count(value) if value >= 1e4 else f"{value:.4g}"
