"""One page that answers "do larger models learn rarer tasks?" from the records of a run or sweep.

    from eval.report.write import write_report
    write_report("runs/quickstart")      # report.html, heatmap.png and .csv, ..., cells.md

The page stands alone: figures are drawn in it and nothing is fetched. It says what measurement may
not leave out: seeds, exposures, protocol, and which runs are unfinished.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from data_injection.errors import ConfigError
from data_injection.files import check_folder, replace_file
from eval.audit.ledger import read_ledger
from eval.figures.index import draw_figures
from eval.record_lines import whole_rows
from eval.records import REQUIRED, read_records, record_files
from eval.report.page import ReportedRun, render
from eval.report.tables import markdown_cells
from eval.run import AUDIT, PLAN, RUN, SPEED, find_below, read_if_whole, read_run
from eval.scores.cells import CELL, cells
from eval.scores.memorization import METRICS
from eval.scores.rows import each_once, task_rows
from eval.text import write_table

NO_TASK = dict.fromkeys(("task", "family", "split"), "") | dict.fromkeys(
    ("rate_per_step", "exposures_per_example"), 0.0
)
"""What a record of the run itself says of tasks."""

NO_CELLS = pd.DataFrame(columns=[*CELL, "n_runs", "n_seeds", "learned", "exposures_per_example"])
"""Of runs whose tasks have no labels: a table is of scores, figures are of whatever there is."""


def write_report(source: str | Path, out: str | Path | None = None, **options: Any) -> Path:
    """`report_cells`, for whom the path of report.html is enough; raises as that."""
    return report_cells(source, out, **options)[0]


def report_cells(
    source_folder: str | Path,
    out_folder: str | Path | None = None,
    *,
    command: str | None = None,
    refresh: float | None = None,
) -> tuple[Path, pd.DataFrame]:
    """Write the report of every run in or below a folder: the path of report.html, and its cells.

    out_folder: default the source itself. command: shown as the way to repeat the report. refresh:
    seconds after which the page loads itself again, where more is to come.
    Raises FileNotFoundError or ConfigError, with what to do, if there is nothing to report.
    """
    source = Path(source_folder)
    default = source.parent if source.is_file() else source
    out = Path(out_folder) if out_folder is not None else default
    check_folder(out, "--out")
    frame, runs = load_runs(source)
    with each_once():
        alone = task_rows(frame).empty and frame.metric.isin(METRICS).any()
        table = NO_CELLS if alone else cells(frame)  # of sequences, which have no cell
        out.mkdir(parents=True, exist_ok=True)
        figures = draw_figures(frame)
    page = render(str(source), table, runs, figures, command, refresh=refresh)
    for figure in figures:
        replace_file(out / figure.name, figure.png)
        write_table(out / figure.csv, figure.data)
    replace_file(out / "cells.md", markdown_cells(table))
    write_table(out / "records.csv", frame)
    return replace_file(out / "report.html", page), table


def load_runs(source: str | Path) -> tuple[pd.DataFrame, list[ReportedRun]]:
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
        pd.concat([part, _speeds(folder, part)]).assign(folder=str(folder.relative_to(root)))
        for folder, part in by_folder.items()
        if len(part)
    ]
    if not any((part.task != "").any() for part in tables):
        rule = "hold no measurement of a task"
        remedy = "let the run reach its first evaluation, or evaluate its checkpoints"
        raise ConfigError(key=f"the records below {source.resolve()}", rule=rule, remedy=remedy)
    return pd.concat(tables, ignore_index=True), _mark_unfinished(runs)


def _run(folder: Path, root: Path, rows: pd.DataFrame | None) -> ReportedRun:
    info = _info(folder)
    said = {}
    for name in ("run", "rung", "protocol", "seed", "plan_hash"):
        values = [] if rows is None else sorted({str(value) for value in rows[name]})
        said[name] = ", ".join(values) or info.get(name, "")
    planned = info.get("num_steps", "")
    undefined = [] if rows is None else rows.step[(rows.metric == "score") & rows.value.isna()]
    return ReportedRun(
        folder=str(folder.relative_to(root)),
        name=said["run"] or folder.name,
        rung=said["rung"],
        protocol=said["protocol"],
        seed=said["seed"],
        plan_hash=said["plan_hash"],
        last_step=None if rows is None or rows.empty else int(rows.step.max()),
        num_steps=int(planned) if planned.isdigit() else None,
        measured=rows is not None and bool((rows.task != "").any()),
        undefined=min(undefined, default=None),
        info=info,
        tokens=0 if rows is None or rows.empty else int(rows.tokens.max()),
        params=0 if rows is None or rows.empty else int(rows.params.max()),
        hours=_hours(folder),
        trained=_trained(folder),
        audit=_audit(folder),
    )


def _speed_lines(folder: Path) -> dict[int, float]:
    """Steps a second by the step at which they were noted; of one noted twice the later."""
    path = folder / SPEED
    lines = whole_rows(path, ("step", "value")) if path.is_file() else ()
    return {line["step"]: line["value"] for line in lines}


def _speeds(folder: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Tokens a second as records of the run; none where nothing says how many a step has."""
    at = rows[rows.step > 0]
    speeds = _speed_lines(folder)
    if at.empty or not speeds:
        return rows[:0]
    per_step = at.tokens.iloc[-1] / at.step.iloc[-1]
    one = rows.iloc[-1][list(REQUIRED)].to_dict() | NO_TASK | {"metric": "tokens_per_second"}
    return pd.DataFrame(
        one | {"step": step, "tokens": int(step * per_step), "value": speed * per_step}
        for step, speed in sorted(speeds.items())
    )


def _hours(folder: Path) -> float | None:
    """Spent on training what stands, measurements and saving with it."""
    before, seconds = 0, 0.0
    for step, speed in sorted(_speed_lines(folder).items()):
        seconds += (step - before) / speed
        before = step
    return seconds / 3600 if seconds else None


def _trained(folder: Path) -> dict[str, int] | str:
    """Instances of each task in the latest checkpoint's weights by the ledger, or why unknown."""
    if not (folder / PLAN).is_file():
        return f"no {PLAN} beside the records"
    try:
        ledger = read_ledger(folder)
    except (ConfigError, OSError) as error:
        return str(error)
    except KeyError as error:
        return f"{PLAN} has no {error}"
    counts = ledger[ledger.state == "effective"].task.value_counts()
    return {str(task): int(num) for task, num in counts.items()}


def _audit(folder: Path) -> dict[str, Any]:
    """audit.json, if there is one that is whole."""
    found = read_if_whole(folder / AUDIT)
    return found if isinstance(found.get("verdicts"), list) else {}


def _info(folder: Path) -> dict[str, str]:
    """run.json as text by text; a file we cannot read is said, never fatal to a report."""
    try:
        info = read_run(folder)
    except FileNotFoundError:
        return {}
    except ConfigError as error:
        return {RUN: str(error)}
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in info.items()}


def _mark_unfinished(runs: list[ReportedRun]) -> list[ReportedRun]:
    """Unfinished: behind its own plan or, where run.json names none, behind its rung's furthest; or
    without scores from some step on, before which its rung is then read."""
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
        elif run.undefined is not None:
            why = f"from step {run.undefined:,} on a score is undefined, as of a diverged model"
        marked.append(replace(run, unfinished=why))
    return marked
