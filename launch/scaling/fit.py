"""How `olmo-ext scaling fit` runs and what it writes; the mathematics is in theory/.

fit_source(Path("runs.csv"), out=Path("runs/scaling"), console=console, errors=errors)
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from data_injection.errors import ConfigError
from data_injection.files import check_folder, replace_file
from eval.commit import git_commit
from eval.figures.scaling import reach_figure
from eval.figures.style import png
from eval.text import write_table
from launch.json_file import write_json
from launch.scaling.losses import LossTable, read_losses
from launch.scaling.tables import DERIVED, estimate, show
from launch.terminal import progress_bar, say, typed_command
from theory.scaling.fit import Fit, fit_law
from theory.scaling.frontier import Frontier, fit_frontier
from theory.scaling.law import CONSTANTS, PAPER_GAMMA
from theory.scaling.learnability import LawEstimate, Learnability, learnability
from theory.scaling.runs import Runs


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
    check_folder(out, "--out")
    frontier: Frontier | str
    try:
        table = read_losses(source, names=names)
        frame = table.frame
        run = frame["run"].tolist() if "run" in frame else None
        runs = Runs.of(frame.params.to_numpy(), frame.tokens, frame.loss, run=run)
        _check_options(runs, large, eps)
        with progress_bar(errors) as bar:
            fitted = fit_law(
                runs, resamples=resamples, seed=seed,
                progress=lambda done: bar("resamples", done, resamples),
            )  # fmt: skip
        answers = learnability(fitted, large=large, eps=eps)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(key=source, rule=f"cannot be fitted: {error}") from None
    try:
        frontier = fit_frontier(runs, resamples=resamples, seed=seed)
    except ValueError as error:
        frontier = str(error)
    show(table, fitted, frontier, answers, console)
    path = _write(out, source, table, fitted, frontier, answers, resamples=resamples)
    say(console, f"{path}\n{path.with_name('scaling.png')}")
    return path


def _check_options(runs: Runs, large: float | None, eps: Sequence[float]) -> None:
    """Options that would only fail after the fit."""
    if large is not None and not (np.isfinite(large) and large > runs.params.min()):
        rule = f"must be above the smallest size of the runs ({runs.params.min():g})"
        raise ConfigError(key="--large", value=large, rule=rule)
    if wrong := [one for one in eps if not (np.isfinite(one) and one >= 0)]:
        raise ConfigError(key="--eps", value=wrong[0], rule="must be at least 0 nats per token")


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
    command, commit = typed_command(), git_commit()
    origin = f"{source}, sha256 {table.sha256[:12]}; {command}; seed {fitted.seed}; commit "
    origin = textwrap.fill(origin + str(commit)[:12], 120)
    figure = png(reach_figure(fitted, answers, origin=origin))
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "scaling.png", figure)
    named = [(name, "constant") for name in CONSTANTS] + list(DERIVED.items())
    rows = [{"name": name, **asdict(estimate(fitted, name)), "what": what} for name, what in named]
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
        "constants": {name: asdict(estimate(fitted, name)) for name in CONSTANTS},
        "derived": {name: asdict(estimate(fitted, name)) for name in DERIVED},
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
                if name not in ("group", "row")
            },
        },
        "outliers": _outliers_json(fitted),
        "notes": [*table.notes, *fitted.warnings],
        "source": {"path": str(source), "sha256": table.sha256, "loss": table.kind},
        "command": command,
        "commit": commit,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("olmo-ext", "numpy")},
    }
    return write_json(out / "fit.json", found, infinity=True)


def _outliers_json(fitted: Fit) -> dict[str, Any] | None:
    found = fitted.outliers
    if found is None:
        return None
    without = None if found.law is None else found.law.constants()
    return {"rows": found.rows, "spreads": found.spreads, "constants_without": without}


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
    """One row each; an estimate becomes three columns."""
    rows = []
    for item in items:
        row: dict[str, Any] = {}
        for name, value in vars(item).items():
            if isinstance(value, LawEstimate):
                row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            else:
                row[name] = "; ".join(value) if isinstance(value, tuple) else value
        rows.append(row)
    return pd.DataFrame(rows)
