"""Running the synthetic lab: predictions first, then cells, records, tables and figures.

    olmo-ext theory phase --config configs/theory/phase.yaml

OUT/<experiment>/ holds settings.json, predictions.json (written before anything is trained),
cells/, records.jsonl and records.csv (a row a number), the tables of launch/lab/tables.py as CSV,
and PNGs whose text chunks and footers say seeds, settings, interval, command and commit.
"""

from __future__ import annotations

import hashlib
import json
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console

from data_injection.errors import ConfigError
from data_injection.files import check_folder, replace_file
from eval.figures import style
from eval.run import read_if_whole
from eval.text import print_table, write_table
from launch.json_file import write_rows
from launch.lab.cells import run_cells
from launch.lab.tables import (
    Result,
    report_complexity,
    report_gradients,
    report_injection,
    report_phase,
)
from launch.terminal import errors, progress_bar, say, typed_command
from launch.yaml_file import from_mapping, read_yaml
from olmo_ext.shipped import shipped
from theory.lab import complexity, gradients, injection, phase
from theory.lab.cells import Cell, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIGS = shipped("configs/theory")


@dataclass(frozen=True)
class Parts:
    """What an experiment is made of; to add one: a file in theory/, a report, a line below."""

    lab: ModuleType
    """Of theory/lab, with `predictions` and `cells` of settings."""

    settings: type
    report: Callable[[Any, pd.DataFrame, pd.DataFrame], Result]


EXPERIMENTS: dict[str, Parts] = {
    "phase": Parts(phase, phase.PhaseSettings, report_phase),
    "complexity": Parts(complexity, complexity.ComplexitySettings, report_complexity),
    "injection": Parts(injection, injection.InjectionSettings, report_injection),
    "gradients": Parts(gradients, gradients.GradientSettings, report_gradients),
}


def load_settings(name: str, path: Path | None, *, seeds: list[int] | None) -> Any:
    """The settings from an experiment's YAML; raises ConfigError naming file, key and remedy."""
    path = path or CONFIGS / f"{name}.yaml"
    if not path.is_file():
        remedy = f"the defaults are in {CONFIGS}"
        raise ConfigError(key="--config", value=path, rule="must be a file", remedy=remedy)
    mapping = read_yaml(path) or {}
    if seeds is not None and isinstance(mapping, Mapping):
        mapping = {**mapping, "seeds": list(seeds)}
    try:
        return from_mapping(EXPERIMENTS[name].settings, mapping)
    except ConfigError as error:
        raise error.told_of(path) from None
    except ValueError as error:
        raise ConfigError(key=path, rule=f"cannot be used: {error}") from None


def run_experiments(
    names: Sequence[str],
    *,
    config: Path | None,
    out: Path,
    seeds: list[int] | None,
    jobs: int,
    json: Path | None = None,
    console: Console,
) -> None:
    """Run experiments one after the other; all settings are checked before the first begins."""
    check_folder(out, "--out")
    settings = {name: load_settings(name, config, seeds=seeds) for name in names}
    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    for name, one in settings.items():
        result = run_experiment(name, one, out / name, jobs=jobs, console=console)
        for title, frame in result.tables.items():
            rows += frame.assign(experiment=name, table=title).to_dict("records")
    write_rows(json, rows)
    say(console, f"\n{out}: {time.monotonic() - started:.0f} s")


def run_experiment(
    name: str, settings: Any, folder: Path, *, jobs: int, console: Console
) -> Result:
    """Predictions, cells, records, tables and figures of one experiment, into its folder."""
    from eval.commit import git_commit

    experiment = EXPERIMENTS[name]
    folder.mkdir(parents=True, exist_ok=True)
    origin = {"command": typed_command(), "commit": git_commit(), "settings": asdict(settings)}
    predicted = write_predictions(folder, experiment.lab.predictions(settings), origin)
    cells: list[Cell] = experiment.lab.cells(settings)
    whole = sum(cell.cost for cell in cells)
    there = sum(cell.cost for cell in cells if (folder / "cells" / cell.name).is_file())
    price = timedelta(seconds=round((whole - there) / jobs))
    console.print(
        f"[bold]{name}[/]: {len(cells)} cells, predictions in {folder}/predictions.json; "
        f"{jobs} side by side, what is missing takes about {price}"
    )
    try:
        with progress_bar(errors) as bar:
            bar(name, int(there), int(whole))
            rows = run_cells(
                cells, folder / "cells", jobs=jobs,
                progress=lambda cell, done, total: bar(name, done, total),
            )  # fmt: skip
    except FloatingPointError as error:
        raise ConfigError(key=f"lab {name}", rule=f"cannot go on: {error}") from None
    table = pd.DataFrame(rows)
    result = experiment.report(settings, table, predicted)
    replace_file(folder / "records.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    write_table(folder / "records.csv", table)
    for title, frame in result.tables.items():
        write_table(folder / f"{title}.csv", frame)
    for title, (figure, caption) in result.figures.items():
        replace_file(folder / f"{title}.png", png(figure, caption, settings, origin))
    origin["ended"] = datetime.now(UTC).isoformat(timespec="seconds")
    origin["captions"] = {title: caption for title, (_, caption) in result.figures.items()}
    replace_file(folder / "settings.json", json.dumps(origin, indent=1) + "\n")
    for part in result.terminal:
        if isinstance(part, str):
            console.print(part, markup=False, highlight=False)
        else:
            print_table(part, console)
    return result


def write_predictions(folder: Path, rows: list[Row], origin: Mapping[str, Any]) -> pd.DataFrame:
    """predictions.json, before anything is trained; kept if the same were written before."""
    path = folder / "predictions.json"
    text = json.dumps([origin["settings"], rows], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if not path.is_file() or read_if_whole(path).get("digest") != digest:
        written = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"written": written, "digest": digest, **origin, "rows": rows}
        replace_file(path, json.dumps(content))
    return pd.DataFrame(rows)


def png(figure: Figure, caption: str, settings: Any, origin: Mapping[str, Any]) -> bytes:
    """The figure with its caption below it, and all that it was made from in its text chunks."""
    seeds = ", ".join(map(str, settings.seeds))
    commit = str(origin["commit"])
    short = commit[:7] + ("+changes" if commit.endswith("+changes") else "")
    width = int(figure.get_size_inches()[0] * 17)  # characters of the font below
    wrapped = "\n".join(textwrap.wrap(caption, width))
    footer = f"seeds {seeds}; bands: 95% (Student's t) over seeds; {origin['command']}; {short}"
    figure.supxlabel(f"{wrapped}\n{footer}", fontsize=7, color="#6b6b6b", x=0.01, ha="left")
    told = {"Settings": json.dumps(origin["settings"]), "Command": origin["command"]}
    return style.png(figure, dpi=130, Description=caption, Seeds=seeds, **told, Commit=commit)
