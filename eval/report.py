"""One page that answers "do larger models learn rarer tasks?" from the records of a run or sweep.

    from eval.report import write_report
    write_report("runs/quickstart")                # report.html, heatmap.png, curves.png, *.csv

The page stands alone: figures are embedded and nothing is fetched. It says what measurement may
not leave out: seeds, exposures, protocol, and which runs are unfinished.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from eval.grid import LearnedCounts, cells, groups, learned_per_rung
from eval.plots import count, curves, heatmap, number
from eval.records import read_records, record_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

RUN_FILE = "run.json"
"""Beside records.jsonl: a flat JSON object of strings. `num_steps` is the planned length of the
run; every other key (versions, corpus hash, git commit, ...) is shown as it stands."""

CAVEATS = (
    (
        "Score",
        "(label accuracy - majority) / (1 - majority): 0 is guessing the most frequent label, 1 is "
        "all correct, below 0 is worse than guessing. Label accuracy takes the largest logit among "
        "the task's labels, accuracy among the whole vocabulary: a run that has only learned to "
        "emit some label shows accuracy without score.",
    ),
    (
        "Learned",
        "the mean test score over seeds is at least 0.5 and, over at least 3 seeds, so is its "
        "lower 95% bound (Student's t over seeds). With fewer seeds a cell is provisional: one "
        "seed is one draw, and its interval (Wilson, over items) leaves the spread over seeds out.",
    ),
    (
        "Rare must not mean unseen",
        "exposures per example stand under every cell. Where a cell saw each train example less "
        "than once, failing to learn is starvation and says nothing of competition; confirm with "
        "matched exposures (longer runs at a lower rate) and with the task trained alone.",
    ),
    (
        "Protocol",
        "like tasks transfer in a mixture: the same task at the same rate scores higher beside its "
        "kin than alone in its run. Mixture and single-task cells are never merged; confirm a "
        "mixture's finding with single-task runs.",
    ),
)


@dataclass(frozen=True)
class Run:
    """One run's folder as the report saw it."""

    folder: str
    name: str
    rung: str
    protocol: str
    seed: str
    plan_hash: str
    last_step: int | None
    """Last step with any record; None if there is none yet."""
    num_steps: int | None
    """Planned length by run.json; None where it does not say."""
    measured: bool
    """A task has been measured at least once."""
    info: dict[str, str]
    unfinished: str = ""
    """Why the run counts as unfinished, empty if it does not."""


def write_report(
    source_folder: str | Path,
    out_folder: str | Path | None = None,
    *,
    command: str | None = None,
) -> Path:
    """Write the report of every run in or below a folder; returns the path of report.html.

    out_folder: default the source itself. command: shown as the way to repeat the report.
    Raises FileNotFoundError or ValueError, with what to do, if there is nothing to report.
    """
    source = Path(source_folder)
    frame, runs = _read(source)
    table = cells(frame)
    default = source.parent if source.is_file() else source
    out = Path(out_folder) if out_folder is not None else default
    out.mkdir(parents=True, exist_ok=True)
    figures = {"heatmap.png": _png(heatmap(table)), "curves.png": _png(curves(frame))}
    page = _page(str(source), table, runs, figures, command)
    for name, data in figures.items():
        _replace(out / name, data)
    _replace(out / "cells.csv", table.to_csv(index=False).encode())
    _replace(out / "records.csv", frame.to_csv(index=False).encode())
    return _replace(out / "report.html", page.encode())


def print_cells(table: pd.DataFrame, console: Console | None = None) -> None:
    """The heatmap in a terminal: rungs by rates, learned cells marked, exposures under each."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    for protocol, family, group in groups(table):
        metric, split = group.metric.iloc[0], group.split.iloc[0]
        title = f"{family}, {protocol} protocol: {split} {metric}"
        grid = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
        grid.add_column("rung")
        rates = sorted(set(group.rate_per_step), reverse=True)
        for rate in rates:
            grid.add_column(f"{number(rate)}/step", justify="right")
        for params, rung in sorted({*zip(group.params, group.rung, strict=True)}, reverse=True):
            row = group[(group.rung == rung) & (group.params == params)].set_index("rate_per_step")
            shown = [_cell_text(row.loc[rate]) if rate in row.index else "-" for rate in rates]
            grid.add_row(Text(f"{rung}\n{count(params)} par."), *map(_rich_cell, shown))
        console.print(grid)
    marks = "* learned" + (
        "; (*) provisional, fewer than 3 seeds" if table.provisional.any() else ""
    )
    console.print(Text(f"{marks}; below: exposures per train example", style="dim"))
    for counts in learned_per_rung(table):
        console.print(Text(f"{counts.family}, {counts.protocol}: {verdict(counts)}"))


def verdict(counts: LearnedCounts) -> str:
    """Does the number of learned cells rise with size? One line, hedged as the data demands."""
    tally = ", ".join(
        f"{n} of {len(counts.rates)} at {rung}"
        for rung, n in zip(counts.rungs, counts.num_learned, strict=True)
    )
    if not counts.comparable:
        why = "one size only" if len(counts.rungs) < 2 else "no rate was measured at every size"
        return f"Cannot say: {why}. Learned: {tally}."
    if counts.rises:
        answer = "Yes: more cells are learned as size grows"
    elif not counts.non_decreasing:
        answer = "No: the number of learned cells falls somewhere as size grows"
    elif counts.num_learned[0] == len(counts.rates):
        answer = "No: every cell is learned at every size, so rarer rates are needed to tell"
    elif counts.num_learned[-1] == 0:
        answer = "No: no cell is learned at any size, so longer runs or higher rates are needed"
    else:
        answer = "No: the largest size learns as many cells as the smallest"
    few = " Provisional: fewer than 3 seeds in some cells." if counts.provisional else ""
    apart = "" if counts.same_step else " Caution: not all sizes stand at the same step."
    return f"{answer} ({tally}).{few}{apart}"


def _read(source: Path) -> tuple[pd.DataFrame, list[Run]]:
    """All records with their run's folder, and the runs, started or not."""
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
    waiting = {p.parent for p in root.rglob(RUN_FILE)} - set(by_folder)
    runs = [_run(folder, root, by_folder.get(folder)) for folder in sorted({*by_folder, *waiting})]
    tables = [
        part.assign(folder=str(folder.relative_to(root)))
        for folder, part in by_folder.items()
        if len(part)
    ]
    if not any((part.task != "").any() for part in tables):
        raise ValueError(
            f"the records below {source.resolve()} hold no measurement of a task; let the run "
            "reach its first evaluation, or evaluate its checkpoints"
        )
    return pd.concat(tables, ignore_index=True), _mark_unfinished(runs)


def _run(folder: Path, root: Path, rows: pd.DataFrame | None) -> Run:
    info = _read_info(folder / RUN_FILE)
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


def _read_info(path: Path) -> dict[str, str]:
    """run.json as text by text; a file we cannot read is said, never fatal to a report."""
    if not path.exists():
        return {}
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {RUN_FILE: "not readable as JSON"}
    if not isinstance(info, dict):
        return {RUN_FILE: "not a JSON object"}
    return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in info.items()}


def _mark_unfinished(runs: list[Run]) -> list[Run]:
    """Unfinished: behind its own plan or, where run.json names none, behind its rung's furthest."""
    furthest: dict[tuple[str, str], int] = {}
    for run in runs:
        key = (run.protocol, run.rung)
        furthest[key] = max(furthest.get(key, 0), run.last_step or 0)
    marked = []
    for run in runs:
        goal = run.num_steps or furthest[(run.protocol, run.rung)]
        whose = "planned" if run.num_steps else "reached by another run of the rung"
        why = ""
        if run.last_step is None or not run.measured:
            why = "no task measured yet"
        elif run.last_step < goal:
            why = f"at step {run.last_step:,} of {goal:,} {whose}"
        marked.append(replace(run, unfinished=why))
    return marked


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    # No Software entry: the same records give the same bytes under any matplotlib.
    figure.savefig(data, format="png", dpi=180, metadata={"Software": None})
    return data.getvalue()


def _replace(path: Path, data: bytes) -> Path:
    """Write beside the target, then rename: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _cell_text(cell: pd.Series) -> tuple[str, str, bool]:
    mark = ("(*)" if cell.provisional else "*") if cell.learned else ""
    value = f"{cell.value:.2f}".replace("-0.00", "0.00")
    return f"{value}{mark}", number(cell.exposures_per_example, 2), bool(cell.learned)


def _rich_cell(cell: str | tuple[str, str, bool]) -> Any:
    from rich.text import Text

    if isinstance(cell, str):
        return Text(cell, style="dim")
    value, exposures, learned = cell
    text = Text(value, style="bold green" if learned else "")
    return text.append(f"\n{exposures}", style="not bold dim default")


def _page(
    source: str,
    table: pd.DataFrame,
    runs: list[Run],
    figures: dict[str, bytes],
    command: str | None,
) -> str:
    caveats = "".join(f"<li><b>{escape(k)}</b>: {escape(v)}</li>" for k, v in CAVEATS)
    body = [
        "<h1>Do larger models learn rarer tasks?</h1>",
        "<p>Tasks made of novel tokens are injected into pretraining at several rates, at several "
        "model sizes. If tasks compete for capacity, a larger model learns tasks that are too rare "
        "for a smaller one to keep (Huang et al. 2026, arXiv 2605.29548, Fig. 5 and 6a).</p>",
        _answers(table),
        _notes(table, runs),
        _figure(figures, "heatmap.png", "Size by frequency: larger rungs on top, frequent left."),
        "<h2>Learned cells per size</h2>",
        _learned_table(table),
        f"<h2>How to read this</h2><ul>{caveats}</ul>",
        "<h2>Learning curves</h2>",
        _figure(
            figures, "curves.png", "Test score over training: a panel per size, a line per rate."
        ),
        "<h2>All cells</h2>",
        _all_cells(table),
        "<h2>Provenance</h2>",
        _provenance(source, runs, command),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Size x frequency: {escape(source)}</title><style>{CSS}</style></head>\n"
        "<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )


def _answers(table: pd.DataFrame) -> str:
    lines = []
    for counts in learned_per_rung(table):
        what = f"{counts.family}, {counts.protocol} protocol"
        lines.append(f"<p><b>{escape(what)}.</b> {escape(verdict(counts))}</p>")
    return f'<div class="answer">{"".join(lines)}</div>'


def _notes(table: pd.DataFrame, runs: list[Run]) -> str:
    """What stands between these numbers and a finding, for this very set of runs."""
    notes = [
        f"Run {r.name} ({r.folder}) is unfinished: {r.unfinished}." for r in runs if r.unfinished
    ]
    for protocol, family, group in groups(table):
        if group.step.min() != group.step_max.max():
            notes.append(
                f"{family}, {protocol}: sizes stand at different steps ({group.step.min():,} to "
                f"{group.step_max.max():,}); part of a difference may be training length."
            )
    starved = table[~table.learned & (table.exposures_per_example < 1)]
    if len(starved):
        notes.append(
            f"{len(starved)} of the {int((~table.learned).sum())} cells not learned saw each train "
            "example less than once: there, starvation cannot be told from competition."
        )
    for counts in learned_per_rung(table):
        if counts.rates_left_out:
            rates = ", ".join(number(r) for r in counts.rates_left_out)
            notes.append(
                f"{counts.family}, {counts.protocol}: rates {rates} per step are left out of the "
                "count, since not every size has them."
            )
    if (table.n_runs > table.n_seeds).any():
        notes.append(
            "Some cells hold several runs of one seed; these are averaged and count as one seed. "
            "If they differ in more than name (learning rate, schedule), report them apart."
        )
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if notes else ""


def _figure(figures: dict[str, bytes], name: str, caption: str) -> str:
    data = base64.b64encode(figures[name]).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)} File: {escape(name)}</figcaption></figure>"
    )


def _learned_table(table: pd.DataFrame) -> str:
    rows = [
        (c.family, c.protocol, rung, f"{params:,}", f"{learned} of {len(c.rates)}")
        for c in learned_per_rung(table)
        for rung, params, learned in zip(c.rungs, c.params, c.num_learned, strict=True)
    ]
    return _table(("family", "protocol", "rung", "parameters", "learned cells"), rows)


def _all_cells(table: pd.DataFrame) -> str:
    head = (
        "rung", "rate / step", "/ sequence", "/ token", "exp. / ex.", "seeds", "score",
        "95% interval", "label acc.", "accuracy", "label loss", "entropy", "train loss", "step",
        "learned",
    )  # fmt: skip
    parts = [
        "<p>Losses in nats; entropy is that of the labels alone, the loss of guessing by label "
        "frequency. Interval: over seeds where there are two or more, else over test items. "
        "The same table with every column: cells.csv; all measurements: records.csv.</p>"
    ]
    for protocol, family, group in groups(table):
        rows = [_cell_row(cell) for _, cell in group.iterrows()]
        parts.append(f"<h3>{escape(family)}, {escape(protocol)} protocol</h3>{_table(head, rows)}")
    return "".join(parts)


def _cell_row(cell: pd.Series) -> tuple[str, ...]:
    steps = f"{cell.step:,}" + (f" to {cell.step_max:,}" if cell.step != cell.step_max else "")
    interval = "none"
    if cell.interval != "none":
        interval = f"{cell.low:.3f} to {cell.high:.3f} ({cell.interval})"
    learned = ("provisional" if cell.provisional else "yes") if cell.learned else "no"
    measured = (cell.label_accuracy, cell.accuracy, cell.label_loss, cell.label_entropy)
    return (
        cell.rung,
        *map(number, (cell.rate_per_step, cell.rate_per_sequence, cell.rate_per_token)),
        number(cell.exposures_per_example, 2),
        str(cell.n_seeds),
        _decimals(cell.score),
        interval,
        *map(_decimals, (*measured, cell.train_label_loss)),
        steps,
        learned,
    )


def _decimals(value: float) -> str:
    return "not measured" if pd.isna(value) else f"{value:.3f}"


def _provenance(source: str, runs: list[Run], command: str | None) -> str:
    made = [
        ("made", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("from", source),
        ("command", command or f"write_report({source!r})"),
    ]
    shared = {
        (k, v)
        for k, v in (runs[0].info.items() if runs else ())
        if all(r.info.get(k) == v for r in runs)
    }
    head = ("run", "folder", "rung", "protocol", "seed", "plan hash", "last step", "state")
    rows = [
        (
            r.name, r.folder, r.rung, r.protocol, r.seed, r.plan_hash,
            "none" if r.last_step is None else f"{r.last_step:,}",
            f"unfinished: {r.unfinished}" if r.unfinished else "finished",
        )
        for r in runs
    ]  # fmt: skip
    parts = [_table(("report", ""), made), _table(head, rows)]
    if shared:
        parts.append(
            f"<h3>{RUN_FILE}, the same in every run</h3>{_table(('key', 'value'), sorted(shared))}"
        )
    for run in runs:
        own = [(k, v) for k, v in run.info.items() if (k, v) not in shared]
        if own:
            inner = _table(("key", "value"), own)
            parts.append(
                f"<details><summary>{escape(run.name)}: {RUN_FILE}</summary>{inner}</details>"
            )
    if not any(run.info for run in runs):
        parts.append(f"<p>No {RUN_FILE} beside the records: versions and corpus are not known.</p>")
    return "".join(parts)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """An HTML table; every text is escaped here and nowhere else."""
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(text))}</td>" for text in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


CSS = """
:root{color-scheme:light dark;--ink:#1a1a1a;--paper:#fff;--soft:#f4f4f2;--line:#dcdcd8;
--mark:#2a788e}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8e6;--paper:#16181a;--soft:#212427;
--line:#3a3e42}}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:920px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:1.7rem;line-height:1.2;margin:.4em 0}
h2{font-size:1.2rem;margin:2em 0 .5em}
h3{font-size:1rem;margin:1.5em 0 .4em}
.answer{border-left:4px solid var(--mark);background:var(--soft);padding:.3em 1em;margin:1.2em 0}
.answer p{margin:.5em 0}
.notes{font-size:.92rem}
li{margin:.35em 0}
figure{margin:1.2em 0}
img{display:block;width:100%;height:auto;background:#fff;border-radius:6px}
figcaption{font-size:.85rem;opacity:.75;margin-top:.4em}
.wide{overflow-x:auto;margin:.6em 0}
table{border-collapse:collapse;font-size:.8rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.28em .6em .28em 0;white-space:nowrap;
border-bottom:1px solid var(--line)}
th{font-weight:600}
summary{cursor:pointer;margin:.5em 0}
"""
