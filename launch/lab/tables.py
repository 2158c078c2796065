"""What the lab's experiments come to: tables beside the predictions, and figures with captions.

    result = report_phase(settings, rows, predicted)

Every number is computed from the rows given, which are those of records.jsonl.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from eval.figures.lab.curves import (
    bands,
    complexity_figure,
    cosine_figure,
    forgetting_figure,
    gradient_figure,
    injection_figure,
)
from eval.figures.lab.phase import phase_figure
from eval.statistics import seed_interval
from eval.text import new_table
from theory.lab.complexity import ComplexitySettings, correlations
from theory.lab.gradients import GradientSettings
from theory.lab.injection import InjectionSettings
from theory.lab.phase import PhaseSettings, agreement
from theory.lab.traces import before_bursts, half_lives, peaks_and_troughs
from theory.stream import burst_length
from theory.utility import describe_ties

GENUINE = (
    "Joint SGD (exact, sampled) is the genuine test: encoder and decoders are trained together. "
    "Orthogonal iteration takes optimal decoders for granted and is near-tautological."
)


@dataclass(frozen=True)
class Result:
    """What is written and said of an experiment."""

    tables: dict[str, pd.DataFrame]
    """By file name, for CSV."""

    figures: dict[str, tuple[Any, str]]
    """By file name: figure and caption."""

    terminal: list[Any]
    """Tables and sentences for the terminal."""


def report_phase(settings: PhaseSettings, rows: pd.DataFrame, predicted: pd.DataFrame) -> Result:
    """Agreement with the staircase per mixture, trainer and width; which tasks missed."""
    table = agreement(rows, predicted)
    shown = new_table("mixture", "trainer", numbers=[*(f"N={w}" for w in settings.widths), "all"],
                      title="share of tasks on the predicted side of the staircase")  # fmt: skip
    for (mixture, trainer), group in table.groupby(["mixture", "trainer"]):
        by_width = group.groupby("width").agreement.mean()
        shown.add_row(
            str(mixture), str(trainer), *[f"{by_width[width]:.3f}" for width in settings.widths],
            f"{group.agreement.mean():.4f}",
        )  # fmt: skip
    said = [f"{what}: missed in some seed {tasks}" for what, tasks in _missed(table)]
    figures = {
        f"phase_{name}": (
            phase_figure(rows, predicted, mixture=name),
            f"Phase diagram of mixture {name}: K={law.num_tasks} m={law.rank} a={law.a:g} "
            f"b={law.b:g}. Lines were computed before the runs. Orthogonal iteration is "
            "near-tautological, joint SGD the genuine test.",
        )
        for name, law in settings.mixtures.items()
    }
    said += _tied(settings.mixtures)
    return Result({"agreement": table}, figures, [shown, *said, GENUINE])


def report_complexity(
    settings: ComplexitySettings, rows: pd.DataFrame, predicted: pd.DataFrame
) -> Result:
    """Spearman's rho of frequency and of utility per complexity gap."""
    table = correlations(rows, predicted)
    shown = new_table("trainer", "D", numbers=("rho, frequency", "rho, utility", "assignments"))
    for (trainer, gap), group in table.groupby(["trainer", "gap"]):
        shown.add_row(
            str(trainer), f"{gap:g}", show(group.frequency), show(group.utility), str(len(group))
        )
    caption = (
        "Left: rank correlation of when a task is learned with its frequency and with its utility. "
        f"Joint SGD: of what is retained at width {settings.joint_width}. Middle and right: the "
        "widths at the ends of D, a dot a task and assignment. Frequency depends on the assignment."
    )
    figures = {"complexity": (complexity_figure(table, rows, predicted), caption)}
    return Result({"spearman": table}, figures, [shown, GENUINE])


def report_injection(
    settings: InjectionSettings, rows: pd.DataFrame, predicted: pd.DataFrame
) -> Result:
    """Peaks and troughs per burst, cosines and norms after a burst, half-lives, the gap sweep."""
    burst = burst_length(settings.mixture.mixture(), settings.task - 1, settings.gap)
    levels = peaks_and_troughs(rows)
    halves = half_lives(rows)
    gaps = before_bursts(rows)
    critical_widths = rows[rows.part == "critical"]
    critical = predicted[predicted.metric == "critical_width_worst"].value.iloc[0]
    numbers = ("q before", "q after", "cos(G_r, G_F)", "|G_F|")
    title = f"rare task {settings.task}: critical width {critical:.0f}"
    shown = new_table("width", "burst", numbers=numbers, title=title)
    after = rows[(rows.part == "trace") & (rows.lag == 0)]
    for (width, number), group in levels.groupby(["width", "number"]):
        now = after[(after.width == width) & (after.cycle == number)]
        shown.add_row(
            f"{width:g}", str(int(number)), show(group.trough), show(group.peak),
            *[show(now[now.metric == name].value) for name in ("cos_common", "norm_common")],
        )  # fmt: skip
    figures = {
        "injection": (
            injection_figure(rows, gap=settings.gap, burst=burst),
            f"Matched-frequency injection of task {settings.task} (critical width {critical:.0f}), "
            f"gap {settings.gap}. Joint SGD on samples. Right: one cycle.",
        ),
        "cosines": (
            cosine_figure(rows, gap=settings.gap, burst=burst),
            "Cosine of the rare task's reference gradient G_r (population, current weights) with "
            "the common tasks' and with the batch's gradient; mean over the second half of cycles.",
        ),
        "forgetting": (
            forgetting_figure(halves, predicted, gaps, critical_widths),
            f"Left: one burst of {burst} batches after {settings.warm_up} steps without the task. "
            "Middle: from scratch, last quarter of training. Right: near-tautological.",
        ),
    }
    tables = {"bursts": levels, "half_life": halves, "gaps": gaps}
    parts: list[Any] = [shown, _half_table(halves, predicted), _gap_table(gaps)]
    parts += [_critical_table(critical_widths, predicted), *_tied({"": settings.mixture}), GENUINE]
    return Result(tables, figures, parts)


def report_gradients(
    settings: GradientSettings, rows: pd.DataFrame, predicted: pd.DataFrame
) -> Result:
    """Residual, bounds and norms per width, beside those of the best encoder."""
    theory = predicted.set_index(["metric", "width"]).value
    names = ("residual", "operator", "split", "norm", "joint", "minibatch")
    shown = new_table("width", numbers=("R_F, theory", *names, "ratio"))
    summary = bands(rows, ["metric", "width"])
    for width, group in rows.groupby("width"):
        values = {name: group[group.metric == name].value for name in (*names, "worst")}
        shown.add_row(
            str(width), f"{theory['residual', width]:.4f}",
            *[f"{values[name].mean():.4f}" for name in names], f"{values['worst'].max():.4f}",
        )  # fmt: skip
    means = rows.groupby(["metric", "width"]).value.mean()
    falling = [name for name in names if (np.diff(means[name].sort_index()) < 0).all()]
    said = (
        f"Falls at every step of width: {', '.join(falling) or 'none'}. "
        f"Does not: {', '.join(n for n in names if n not in falling) or 'none'}. Ratio: the "
        "largest of norm / bound over readings, seeds and bounds; Theorem 4 says at most 1."
    )
    caption = (
        f"F: the {settings.common} commonest tasks; joint SGD on samples, last quarter's mean. "
        "Theorem 4 bounds the norm; only residual and bounds must fall with width."
    )
    figure = gradient_figure(rows, predicted)
    return Result({"summary": summary}, {"gradients": (figure, caption)}, [shown, said])


def _missed(table: pd.DataFrame) -> list[tuple[str, str]]:
    """(run, tasks) where any seed missed any; at a boundary they are those not yet swapped in."""
    found = []
    for (mixture, trainer, width), group in table.groupby(["mixture", "trainer", "width"]):
        missed = sorted({task for tasks in group.missed for task in tasks})
        if missed:
            found.append((f"{mixture}, {trainer}, N={width}", ", ".join(map(str, missed))))
    return found


def _half_table(halves: pd.DataFrame, predicted: pd.DataFrame) -> Table:
    theory = predicted[predicted.metric == "half_life"].set_index("width").value
    numbers = ("peak q", "q at the end", "half-life, steps", "predicted", "ratio")
    shown = new_table("width", numbers=numbers, title="one burst, then forgetting")
    for width, group in halves.groupby("width"):
        expected = theory[width]
        never = int(group.value.isna().sum())
        known = group.value.dropna()
        text = show(known, 0) if len(known) else "never"
        text += f" ({never} of {len(group)} never)" if len(known) and never else ""
        finite = expected is not None and np.isfinite(expected)
        ratio = f"{known.mean() / expected:.2f}" if finite and len(known) else "-"
        shown.add_row(
            f"{width:g}", show(group.peak), show(group.end), text,
            f"{expected:.0f}" if finite else "never", ratio,
        )  # fmt: skip
    return shown


def _gap_table(gaps: pd.DataFrame) -> Table:
    columns = sorted(gaps.gap.unique())
    shown = new_table("width", numbers=[f"gap {gap}" for gap in columns],
                      title="q before a burst, equal frequency")  # fmt: skip
    for width, group in gaps.groupby("width"):
        shown.add_row(f"{width:g}", *[show(group[group.gap == gap].value) for gap in columns])
    return shown


def _critical_table(rows: pd.DataFrame, predicted: pd.DataFrame) -> Table:
    theory = predicted[(predicted.metric == "gap_critical_width") & predicted.one_step.eq(True)]
    expected = theory.set_index("gap").value
    shown = new_table("gap", numbers=("predicted", "orthogonal iteration"),
                      title="critical width, bursts of one weighted step")  # fmt: skip
    for gap, group in rows.groupby("gap"):
        shown.add_row(str(gap), f"{expected[gap]:.0f}", show(group.value, 1))
    return shown


def _tied(mixtures: dict[str, Any]) -> list[str]:
    found = {name: describe_ties(law.mixture()) for name, law in mixtures.items()}
    return [f"mixture {name}: {text}".replace(" :", ":") for name, text in found.items() if text]


def show(values: Sequence[float], digits: int = 3) -> str:
    """The mean and half the width of its interval over seeds: 0.987±0.004."""
    mean, low, _ = seed_interval(values)
    text = f"{mean:.{digits}f}"
    return text if np.isnan(low) else f"{text}±{mean - low:.{digits}f}"
