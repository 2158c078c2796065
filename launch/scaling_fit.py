"""How `olmo-ext scaling fit` runs, what it shows and what it writes; the mathematics is in theory/.

fit_source(Path("runs.csv"), out=Path("runs/scaling"), console=console, errors=errors)
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from data_injection.config import ConfigError
from eval.commit import git_commit
from eval.loss_table import LossTable, read_losses
from eval.plots import count, png
from eval.records import replace_file, write_table
from eval.scaling_plots import reach_figure
from theory.frontier import Frontier, fit_frontier
from theory.learnability import Estimate, Learnability, learnability
from theory.scaling import CONSTANTS, PAPER_GAMMA
from theory.scaling_fit import Fit, fit_law
from theory.scaling_runs import Runs

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


def fit_source(
    source: Path,
    *,
    out: Path,
    large: float | None = None,
    eps: Sequence[float] = (0.0,),
    resamples: int = 1000,
    seed: int = 0,
    names: dict[str, str] | None = None,
    console: Console,
    errors: Console,
) -> Path:
    """Fit, answer, print and write; returns the path of fit.json.

    Raises ConfigError or FileNotFoundError naming what is wrong and what to do, before anything is
    written.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out must be a folder, got the file {out}")
    table = read_losses(source, names=names)
    frame = table.frame
    frontier: Frontier | str
    try:
        run = frame["run"].tolist() if "run" in frame else None
        runs = Runs.of(frame.params.to_numpy(), frame.tokens, frame.loss, run=run)
        _check_options(runs, large, eps)
        columns = (TextColumn("resamples"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=errors, transient=True) as bar:
            task = bar.add_task("", total=resamples)
            fitted = fit_law(
                runs,
                resamples=resamples,
                seed=seed,
                progress=lambda done: bar.update(task, completed=done),
            )
        answers = learnability(fitted, large=large, eps=eps)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{source}: {error}") from None
    try:
        frontier = fit_frontier(runs, resamples=resamples, seed=seed)
    except ValueError as error:
        frontier = str(error)
    _show(table, fitted, frontier, answers, console)
    path = _write(out, source, table, fitted, frontier, answers, resamples=resamples)
    console.print(f"{path}\n{path.with_name('scaling.png')}", soft_wrap=True, highlight=False)
    return path


def _check_options(runs: Runs, large: float | None, eps: Sequence[float]) -> None:
    """Options that would only fail after the fit."""
    if large is not None and not (np.isfinite(large) and large > runs.params.min()):
        raise ConfigError(
            f"--large must be above the smallest size of the runs ({runs.params.min():g}), "
            f"got {large:g}"
        )
    if wrong := [one for one in eps if not (np.isfinite(one) and one >= 0)]:
        raise ConfigError(f"--eps must be at least 0 nats per token, got {wrong[0]:g}")


def _show(
    table: LossTable,
    fitted: Fit,
    frontier: Frontier | str,
    answers: Learnability,
    console: Console,
) -> None:
    runs = fitted.runs
    _say(
        console,
        f"{runs.num_runs} runs, {_span(runs.params)} parameters, {_span(runs.tokens)} tokens, loss "
        f"{runs.loss.min():.3f} to {runs.loss.max():.3f}\nloss: {table.kind}",
    )
    constants = _table("L(N, D) = L0 + A/N^alpha + B/D^beta", "constant", "value", "95% interval")
    for name in CONSTANTS:
        constants.add_row(name, *_cells(_estimate(fitted, name)))
    for name, meaning in DERIVED.items():
        constants.add_row(meaning, *_cells(_estimate(fitted, name)))
    constants.caption = (
        f"{len(fitted.draws.alpha):,} resamples of the runs, seed {fitted.seed}; spread of the "
        f"runs about the law {fitted.noise:.2%}; {fitted.same_optimum:.0%} of the starts end here"
    )
    console.print(constants)
    if isinstance(frontier, Frontier):
        console.print(_frontier_table(frontier))
    else:
        _say(console, f"No frontier: {frontier}")
    _say(
        console,
        f"The paper's gamma, L_C(N) ~ N^-{PAPER_GAMMA:g}, does not follow from its Eq. 1, which "
        f"gives N^-alpha = N^-{fitted.law.alpha:.3g} here; nothing is tuned to it.",
    )
    _show_answers(answers, console)
    for note in (*table.notes, *fitted.warnings):
        console.print(f"[yellow]note:[/] {note}", highlight=False)


def _frontier_table(frontier: Frontier) -> Table:
    title = f"Frontier of the runs, {len(frontier.compute)} points, without the law"
    table = _table(title, "power law", "exponent", "95% interval", "floor")
    for name, letter in (("params", "N"), ("compute", "C")):
        for what, laws in (("floor + K", frontier.with_floor), ("K", frontier.without_floor)):
            law = laws[name]
            exponent = Estimate(law.exponent, *law.exponent_interval)
            floor = f"{law.floor:.3g}" if what != "K" else "-"
            table.add_row(f"L = {what} {letter}^-g", *_cells(exponent), floor)
    slope = Estimate(frontier.size_exponent, *frontier.size_exponent_interval)
    table.add_row("N = K C^g", *_cells(slope), "-")
    return table


def _show_answers(answers: Learnability, console: Console) -> None:
    """Both definitions; what is outside the data carries a mark and is said below."""
    _say(
        console,
        f"N_l = {_short(answers.large)}: L_C {_text(answers.optimal_loss)} at D = "
        f"{_text(answers.tokens)}, L_inf {_text(answers.infinite_loss)}",
    )
    outside = list(answers.outside)
    table = _table("Def. 2: below N_s*(eps) only parameters help", "eps", "N_s*", "95% interval")
    for threshold in answers.thresholds:
        value, interval = _cells(threshold.params)
        table.add_row(f"{threshold.eps:g}", value + MARK * bool(threshold.outside), interval)
        outside += threshold.outside
    console.print(table)
    columns = ("N_s", "L_inf - L_C(N_l)", "95% interval", "needs", "tokens to match")
    table = _table("Def. 1: can data close the gap to N_l?", *columns)
    sizes = answers.sizes
    chosen = np.unique(np.linspace(0, len(sizes) - 1, min(len(sizes), MOST_SIZES)).round())
    for size in (sizes[int(index)] for index in chosen):
        tokens = "none is enough" if np.isinf(size.tokens.value) else _text(size.tokens)
        tokens += MARK * bool(size.outside)
        table.add_row(_short(size.params), *_cells(size.infinite_gap), size.verdict, tokens)
        outside += size.outside
    console.print(table)
    for said in outside:
        console.print(f"[yellow]{MARK} outside the data:[/] {said}", highlight=False)


def _write(
    out: Path,
    source: Path,
    table: LossTable,
    fitted: Fit,
    frontier: Frontier | str,
    answers: Learnability,
    *,
    resamples: int,
) -> Path:
    """fit.json last: where it is, all the rest is too."""
    figure = png(reach_figure(fitted, answers))
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "scaling.png", figure)
    named = [(name, "constant") for name in CONSTANTS] + list(DERIVED.items())
    rows = [{"name": name, **asdict(_estimate(fitted, name)), "what": what} for name, what in named]
    write_table(out / "constants.csv", pd.DataFrame(rows))
    write_table(out / "draws.csv", pd.DataFrame(fitted.draws.constants()))
    write_table(out / "thresholds.csv", _flat(answers.thresholds))
    write_table(out / "sizes.csv", _flat(answers.sizes))
    write_table(out / "runs.csv", _residuals(fitted))
    if isinstance(frontier, Frontier):
        write_table(out / "frontier.csv", _points(frontier))
    else:  # of an earlier fit into this folder
        (out / "frontier.csv").unlink(missing_ok=True)
    found = {
        "law": "L(N, D) = L0 + A/N^alpha + B/D^beta",
        "constants": {name: asdict(_estimate(fitted, name)) for name in CONSTANTS},
        "derived": {name: asdict(_estimate(fitted, name)) for name in DERIVED},
        "frontier": _frontier_json(frontier),
        "paper_gamma": PAPER_GAMMA,
        "learnability": asdict(answers),
        "fit": {
            "objective": fitted.objective,
            "noise": fitted.noise,
            "same_optimum": fitted.same_optimum,
            "resamples": resamples,
            "unfinished": fitted.unfinished,
            "seed": fitted.seed,
        },
        "runs": {
            "num_runs": fitted.runs.num_runs,
            "rows": len(fitted.runs),
            **{
                name: [float(values.min()), float(values.max())]
                for name, values in vars(fitted.runs).items()
                if name != "group"
            },
        },
        "notes": [*table.notes, *fitted.warnings],
        "source": {"path": str(source), "sha256": table.sha256, "loss": table.kind},
        "command": shlex.join(["olmo-ext", *sys.argv[1:]]),
        "commit": git_commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("olmo-ext", "numpy")},
    }
    data = json.dumps(_plain(found), indent=1, allow_nan=False) + "\n"
    return replace_file(out / "fit.json", data.encode())


def _estimate(fitted: Fit, name: str) -> Estimate:
    return Estimate(float(getattr(fitted.law, name)), *fitted.interval(name))


def _frontier_json(frontier: Frontier | str) -> dict[str, Any]:
    if isinstance(frontier, str):
        return {"missing": frontier}
    found = asdict(frontier)
    return {name: value for name, value in found.items() if not isinstance(value, np.ndarray)}


def _points(frontier: Frontier) -> pd.DataFrame:
    columns = {"compute": frontier.compute, "params": frontier.params, "loss": frontier.loss}
    for name in ("params", "loss"):
        columns[f"{name}_low"], columns[f"{name}_high"] = getattr(frontier, f"{name}_interval")
    return pd.DataFrame(columns)


def _residuals(fitted: Fit) -> pd.DataFrame:
    runs = fitted.runs
    law = np.asarray(fitted.law.loss(runs.params, runs.tokens))
    frame = pd.DataFrame({"params": runs.params, "tokens": runs.tokens, "loss": runs.loss})
    return frame.assign(run=runs.group, fitted=law, log_residual=np.log(runs.loss / law))


def _flat(items: Iterable[Any]) -> pd.DataFrame:
    """One row each; an Estimate becomes three columns."""
    rows = []
    for item in items:
        row: dict[str, Any] = {}
        for name, value in vars(item).items():
            if isinstance(value, Estimate):
                row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            else:
                row[name] = "; ".join(value) if isinstance(value, tuple) else value
        rows.append(row)
    return pd.DataFrame(rows)


def _plain(value: Any) -> Any:
    """JSON has neither infinity nor NaN: "inf" and null."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else str(value)
    return value


def _span(values: Any) -> str:
    return f"{count(values.min())} to {count(values.max())}"


def _cells(one: Estimate) -> tuple[str, str]:
    return _short(one.value), f"{_short(one.low)} to {_short(one.high)}"


def _text(one: Estimate) -> str:
    return f"{_short(one.value)} [{_short(one.low)}, {_short(one.high)}]"


def _short(value: float) -> str:
    if not np.isfinite(value):
        return str(value)
    if value >= 1e15:
        return f"{value:.3g}"
    if value >= 1e12:
        return f"{value / 1e12:.3g}T"
    return count(value) if value >= 1e4 else f"{value:.4g}"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _table(title: str, first: str, *rest: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    table.add_column(first)
    for name in rest:
        table.add_column(name, justify="right" if name else "left")
    return table
