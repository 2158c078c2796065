"""One page that answers "do larger models learn rarer tasks?" from the records of a run or sweep.

    from eval.report.write import write_report
    write_report("runs/quickstart")      # report.html, heatmap.png, ..., cells.md, *.csv

The page stands alone: figures are embedded and nothing is fetched. It says what measurement may
not leave out: seeds, exposures, protocol, and which runs are unfinished.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd

from data_injection.errors import ConfigError
from data_injection.files import check_folder, replace_file
from eval.figures.index import draw_figures
from eval.figures.ordering import ordering_table
from eval.interference.budget import budgets
from eval.records import read_records, record_files
from eval.report.page import Run, render
from eval.report.tables import markdown_cells
from eval.run import RUN, find_below, read_run
from eval.scores.cells import cells
from eval.text import write_table


def write_report(
    source_folder: str | Path,
    out_folder: str | Path | None = None,
    *,
    command: str | None = None,
) -> Path:
    """Write the report of every run in or below a folder; returns the path of report.html.

    out_folder: default the source itself. command: shown as the way to repeat the report.
    Raises FileNotFoundError or ConfigError, with what to do, if there is nothing to report.
    """
    source = Path(source_folder)
    default = source.parent if source.is_file() else source
    out = Path(out_folder) if out_folder is not None else default
    check_folder(out, "--out")
    frame, runs = load_runs(source)
    table = cells(frame)
    out.mkdir(parents=True, exist_ok=True)
    figures = draw_figures(frame)
    page = render(str(source), table, runs, figures, command)
    for figure in figures:
        replace_file(out / figure.name, figure.png)
    write_table(out / "cells.csv", table)
    replace_file(out / "cells.md", markdown_cells(table))
    write_table(out / "records.csv", frame)
    for name, tabulate in (("ordering.csv", ordering_table), ("budget.csv", budgets)):
        with contextlib.suppress(ConfigError):  # as its figure: left out where records hold none
            write_table(out / name, tabulate(frame))
    return replace_file(out / "report.html", page)


def load_runs(source: str | Path) -> tuple[pd.DataFrame, list[Run]]:
    """All records with their run's folder, and the runs, started or not.

    Raises FileNotFoundError or ConfigError, with what to do, if there is nothing to report.
    """
    source = Path(source)
    try:
        files = record_files(source)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no records in or below {source.resolve()}; train a run with the task_eval callback "
            "first, or give the folder of a run or sweep that has records.jsonl files"
        ) from None
    root = source.parent if source.is_file() else source
    # File by file: two folders whose runs share a name must not replace each other's rows.
    by_folder = {file.parent: read_records(file) for file in files}
    waiting = {path.parent for path in find_below(root, RUN)} - set(by_folder)
    runs = [_run(folder, root, by_folder.get(folder)) for folder in sorted({*by_folder, *waiting})]
    tables = [
        part.assign(folder=str(folder.relative_to(root)))
        for folder, part in by_folder.items()
        if len(part)
    ]
    if not any((part.task != "").any() for part in tables):
        raise ConfigError(
            f"the records below {source.resolve()} hold no measurement of a task; let the run "
            "reach its first evaluation, or evaluate its checkpoints"
        )
    return pd.concat(tables, ignore_index=True), _mark_unfinished(runs)


def _run(folder: Path, root: Path, rows: pd.DataFrame | None) -> Run:
    info = _info(folder)
    said = {}
    for name in ("run", "rung", "protocol", "seed", "plan_hash"):
        values = [] if rows is None else sorted({str(value) for value in rows[name]})
        said[name] = ", ".join(values) or info.get(name, "")
    planned = info.get("num_steps", "")
    return Run(
        folder=str(folder.relative_to(root)),
        name=said["run"] or folder.name,
        rung=said["rung"],
        protocol=said["protocol"],
        seed=said["seed"],
        plan_hash=said["plan_hash"],
        last_step=None if rows is None or rows.empty else int(rows.step.max()),
        num_steps=int(planned) if planned.isdigit() else None,
        measured=rows is not None and bool((rows.task != "").any()),
        info=info,
    )


def _info(folder: Path) -> dict[str, str]:
    """run.json as text by text; a file we cannot read is said, never fatal to a report."""
    try:
        info = read_run(folder)
    except FileNotFoundError:
        return {}
    except ConfigError as error:
        return {RUN: str(error)}
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in info.items()}


def _mark_unfinished(runs: list[Run]) -> list[Run]:
    """Unfinished: behind its own plan or, where run.json names none, behind its rung's furthest."""
    marked = []
    for run in runs:
        alike = [one for one in runs if (one.protocol, one.rung) == (run.protocol, run.rung)]
        goal = run.num_steps or max(one.last_step or 0 for one in alike)
        whose = "planned" if run.num_steps else "reached by another run of the rung"
        why = ""
        if run.last_step is None or not run.measured:
            why = "no task measured yet"
        elif run.last_step < goal:
            why = f"at step {run.last_step:,} of {goal:,} {whose}"
        marked.append(replace(run, unfinished=why))
    return marked
