"""How `olmo-ext features` runs and what it shows; the measures themselves are in eval/.

measure_features([Path("runs/w64")], das=True, console=console, errors=errors)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from data_injection.config import ConfigError
from eval.alignment import METRIC
from eval.das import STEPS
from eval.evaluate_features import METRICS, Job, evaluate_features, find_jobs
from eval.features import COUNTS
from eval.records import FILE_NAME, read_records, write_table

CONTROLS = {
    "das": "DAS", "random_subspace": "random\nsubspace", "random_model": "random\nmodel",
    "full_vector": "full\nvector", "no_patch": "no\npatch", "own_answer": "own\nanswer",
}  # fmt: skip


def measure_features(
    sources: Sequence[Path],
    *,
    das: bool = False,
    tasks: Sequence[str] = (),
    steps: Sequence[int] = (),
    rank: int | None = None,
    search_steps: int = STEPS,
    device: str = "cpu",
    export: Path | None = None,
    console: Console,
    errors: Console,
) -> None:
    """Measure what is missing under a bar on stderr, then show and export what is there."""
    if export is not None and export.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--export must end in .csv or .parquet, got {export}")
    jobs = [job for source in sources for job in find_jobs(source, steps=steps, tasks=tasks)]
    written = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=errors, transient=True) as bar:
        shown = bar.add_task("features", total=len(jobs))
        measured = evaluate_features(
            jobs, das=das, rank=rank, search_steps=search_steps, device=device
        )
        for job, what, num in measured:
            said = f"{job.folder.name} step {job.checkpoint.step}: {what}"
            bar.update(shown, description=said, completed=jobs.index(job))
            written += num
    rows = pd.concat([_rows_of(job) for job in jobs], ignore_index=True)
    for table in _tables(rows):
        console.print(table)
    console.print(f"{written:,} records written" if written else "everything was already there")
    if export is not None:
        write_table(export, rows)
        console.print(str(export), soft_wrap=True, highlight=False)


def _rows_of(job: Job) -> pd.DataFrame:
    """The records of features of a checkpoint, whoever wrote them."""
    frame = read_records(job.folder / FILE_NAME)
    names = {name for task in job.tasks for name in task.targets()}
    ours = frame.metric.isin(METRICS)
    if "group" in frame:
        ours |= frame.group.isin(names) & (frame.split == "")
    chosen = frame.task.isin([task.name for task in job.tasks])
    return frame[ours & chosen & (frame.step == job.checkpoint.step)]


def _tables(rows: pd.DataFrame) -> list[Table]:
    """A table for each kind of measure that is there."""
    tables = [_probes(rows)]
    if (rows.metric == METRIC).any():
        tables += [_effects(rows), _alignment(rows)]
    return tables


def _probes(rows: pd.DataFrame) -> Table:
    table = _table(
        "Probes", "run", "step", "task", "target", right=("best R²", "null 99%", "units")
    )
    probed = rows[rows.split == ""]
    for (run, step, task, group), part in probed.groupby(["run", "step", "task", "group"]):
        r2 = part[part.metric == f"{group}_r2"].set_index("layer").value
        null = part[part.metric == f"{group}_r2_null99"].set_index("layer").value
        count = part[part.metric.isin([*COUNTS.values(), "probe_count"]) & part.layer.isna()].iloc[
            -1
        ]
        best = f"{r2.max():.2f} (layer {int(r2.idxmax())})"
        units = f"{count.value:.0f} of {count.units:.0f}"
        table.add_row(run, f"{step}", task, group, best, f"{null[r2.idxmax()]:.2f}", units)
    return table


def _effects(rows: pd.DataFrame) -> Table:
    """The places by how much of the logit difference patching them brings, largest first."""
    table = _table(
        "Causal effect of whole states: pairs that the model answers rightly",
        *("run", "step", "task", "variable", "component", "layer", "token"),
        right=("recovered", "flipped"),
    )
    answered = rows[(rows.subset == "answered") & rows.component.notna()]
    place = ["run", "step", "task", "variable", "component", "layer", "position"]
    both = answered[answered.metric.isin(["causal_recovered", "causal_share"])]
    for key, part in both.groupby(place):
        by_metric = part.set_index("metric")
        text = [str(int(x)) if isinstance(x, float) else str(x) for x in key]
        table.add_row(
            *text,
            *(_interval(by_metric.loc[name]) for name in ("causal_recovered", "causal_share")),
        )
    return table


def _alignment(rows: pd.DataFrame) -> Table:
    table = _table(
        "Interchange accuracy on held-out pairs: pairs that the model answers rightly",
        *("run", "step", "task", "variable", "layer", "token", "held out", "rank", "n"),
        right=tuple(CONTROLS.values()),
    )
    answered = rows[(rows.metric == METRIC) & (rows.subset == "answered")]
    place = ["run", "step", "task", "variable", "layer", "position", "held_out", "rank", "n"]
    for key, part in answered.groupby(place):
        by_control = part.set_index("control")
        text = [str(int(x)) if isinstance(x, float) else str(x) for x in key]
        values = [f"{by_control.value[name]:.2f}" for name in CONTROLS]
        values[1] += f" ({by_control.most['random_subspace']:.2f})"
        table.add_row(*text, *values)
    table.caption = "in brackets the best of the random subspaces; all records: records.jsonl"
    return table


def _interval(row: pd.Series) -> str:
    return f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]"


def _table(title: str, *left: str, right: tuple[str, ...]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table
