"""How `olmo-ext features` runs and what it shows; the measures themselves are in eval/.

measure_features([Path("runs/w64")], das=True, console=console, errors=errors)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from eval.alignment.controls import METRIC
from eval.alignment.das import STEPS
from eval.features.evaluate import METRICS, FeatureJob, evaluate_features, find_jobs, num_missing
from eval.features.presence import COUNTS
from eval.records import FILE_NAME, read_records
from eval.text import (
    TABLE_SUFFIXES,
    check_target,
    new_table,
    plural,
    print_table,
    with_interval,
    write_table,
)
from launch.json_file import write_rows
from launch.terminal import progress_bar, say

CONTROLS = {
    "das": "DAS", "random_subspace": "random\nspace", "random_model": "random\nmodel",
    "full_vector": "full\nvector",
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
    json: Path | None = None,
    console: Console,
    errors: Console,
) -> None:
    """Measure what is missing under a bar on stderr, then show and export what is there."""
    if export is not None:
        check_target(export, "--export", suffixes=TABLE_SUFFIXES)
    jobs = [job for source in sources for job in find_jobs(source, steps=steps, tasks=tasks)]
    pieces, written = num_missing(jobs, das=das, rank=rank), 0
    if pieces:
        say(errors, _price(jobs, pieces, das, search_steps))
    with progress_bar(errors) as bar:
        bar("pieces", 0, pieces)
        measured = evaluate_features(
            jobs, das=das, rank=rank, search_steps=search_steps, device=device
        )
        for index, (job, what, num) in enumerate(measured, start=1):
            say(errors, f"{job.folder.name} step {job.checkpoint.step}: {what}")
            bar("pieces", index, pieces)
            written += num
    rows = pd.concat([_rows_of(job) for job in jobs], ignore_index=True)
    for table in _tables(rows):
        print_table(table, console)
    console.print(f"{written:,} records written" if written else "everything was already there")
    write_rows(json, rows)
    if export is not None:
        write_table(export, rows)
        say(console, str(export))


def _price(jobs: Sequence[FeatureJob], pieces: int, das: bool, search_steps: int) -> str:
    said = f"{plural(len(jobs), 'checkpoint')}, {plural(pieces, 'piece')} to measure"
    if not das:
        return said
    return (
        f"{said}: with --das each place is searched {search_steps} steps, in the model and once in "
        "an untrained one; --step, --task and --search-steps make it less"
    )


def _rows_of(job: FeatureJob) -> pd.DataFrame:
    """The records of features of a checkpoint, whoever wrote them."""
    frame = read_records(job.folder / FILE_NAME)
    names = {name for task in job.tasks for name in task.targets()}
    ours = frame.metric.isin(METRICS)
    if "group" in frame:
        ours |= frame.group.isin(names) & (frame.split == "")
    chosen = frame.task.isin([task.name for task in job.tasks])
    return frame[ours & chosen & (frame.step == job.checkpoint.step)]


def _tables(rows: pd.DataFrame) -> Iterator[Table]:
    """Of the probes one; of what --das adds two for each run, step and task."""
    yield _probes(rows[rows.split == ""])
    answered = rows[rows.metric.isin(METRICS) & (rows.subset == "answered")]
    for (run, step, task), part in answered.groupby(["run", "step", "task"]):
        title = f"{run}, step {step}, {task}"
        yield _effects(part, title)
        yield _alignment(part[part.metric == METRIC], title)


def _probes(rows: pd.DataFrame) -> Table:
    numbers = ("R²", "layer", "null", "units")
    table = new_table("run", "step", "task", "target", numbers=numbers, title="Probes")
    for (run, step, task, group), part in rows.groupby(["run", "step", "task", "group"]):
        r2 = part[part.metric == f"{group}_r2"].set_index("layer").value
        null = part[part.metric == f"{group}_r2_null99"].set_index("layer").value
        counts = part[part.metric.isin([*COUNTS.values(), "probe_count"]) & part.layer.isna()]
        best, count = int(r2.idxmax()), counts.iloc[-1]
        units = f"{count.value:.0f} of {count.units:.0f}"
        row = (f"{r2[best]:.2f}", str(best), f"{null[best]:.2f}", units)
        table.add_row(run, str(step), task, group, *row)
    table.caption = "the best layer; null: its 99th percentile over permuted symbols"
    return table


def _effects(rows: pd.DataFrame, title: str) -> Table:
    columns = ("variable", "component", "layer", "token")
    title = f"{title}: causal effect of whole states"
    table = new_table(*columns, numbers=("moved", "flipped"), title=title)
    both = rows[rows.metric.isin(["causal_recovered", "causal_share"])]
    for key, part in both.groupby(["variable", "component", "layer", "position"]):
        by_metric = part.set_index("metric")[["value", "low", "high"]]
        metrics = ("causal_recovered", "causal_share")
        table.add_row(*_text(key), *(with_interval(*by_metric.loc[name]) for name in metrics))
    table.caption = (
        "of pairs that the model answers rightly: share of the logit difference that the patch "
        "brings, and of pairs whose answer becomes the target's, with 95% intervals"
    )
    return table


def _alignment(rows: pd.DataFrame, title: str) -> Table:
    columns = ("variable", "layer", "token", "held\nout", "rank", "n")
    numbers = (*CONTROLS.values(), "major-\nity")
    table = new_table(*columns, numbers=numbers, title=f"{title}: interchange accuracy")
    for key, part in rows.groupby(["variable", "layer", "position", "held_out", "rank", "n"]):
        by_control = part.set_index("control")
        values = [f"{by_control.value[name]:.2f}" for name in CONTROLS]
        values[1] += f"\n({by_control.most['random_subspace']:.2f})"
        table.add_row(*_text(key), *values, f"{part.majority.iloc[0]:.2f}")
    table.caption = (
        "on held-out pairs that the model answers rightly; in brackets the best of the random "
        "subspaces; majority: naming the commonest label. Intervals and draws: records.jsonl"
    )
    return table


def _text(key: tuple[Any, ...]) -> list[str]:
    return [str(int(one)) if isinstance(one, float) else str(one) for one in key]
