"""The scores of an evaluation in a terminal: one line a checkpoint, task and split."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
from rich.console import Console

from eval.scores.memorization import METRICS as MEMORIZATION
from eval.text import new_table, print_table

SHOWN = ("accuracy", "label_accuracy", "score", "label_loss", "choice_loss")

MOST_LINES = 40


def print_scores(table: pd.DataFrame, console: Console) -> None:
    """Print SHOWN with the score's interval, and the gaps; of many steps the last one alone.

    Args:
        table: rows as `eval.scores.evaluate.results` gives them.
    """
    print_memorization(table, console)
    whole = table[table.subset == "all"] if len(table) else table
    scores = whole[whole.metric.isin(SHOWN)]
    last = len(scores) > MOST_LINES * len(SHOWN)
    if last:
        runs = scores.checkpoint.map(lambda path: str(Path(path).parent))
        scores = scores[scores.step == scores.step.groupby(runs).transform("max")]
    if scores.empty and len(table):
        return
    numbers = (*SHOWN, "memorised gap", "mirror gap")
    titles = [name.replace("_", "\n").replace(" ", "\n") for name in numbers]
    shown = new_table("checkpoint", "task", "split", numbers=titles)
    for (path, task, split), group in scores.groupby(["checkpoint", "task", "split"], sort=False):
        rows = group.set_index("metric")
        gaps = whole[(whole.checkpoint == path) & (whole.task == task)].set_index("metric")
        beside = [
            _with_interval(gaps.loc[name]) if split == "test" and name in gaps.index else ""
            for name in ("memorised_gap", "mirror_gap")
        ]
        score = _with_interval(rows.loc["score"])
        shares, losses = (
            [f"{rows.value.get(name, math.nan):.3f}" for name in names]
            for names in (("accuracy", "label_accuracy"), ("label_loss", "choice_loss"))
        )
        where = "\n".join(Path(str(path)).parts[-2:]).removesuffix("-unsharded")
        shown.add_row(where, str(task), str(split), *shares, score, *losses, *beside)
    print_table(shown, console)
    if last:
        console.print("the last steps alone; all are in the records, and in a table with --export")


def print_memorization(table: pd.DataFrame, console: Console) -> None:
    """Of sequences: a line a checkpoint and number of copies, of many steps the last one alone."""
    rows = table[table.metric.isin(MEMORIZATION)] if len(table) else table
    if rows.empty:
        return
    runs = rows.checkpoint.map(lambda path: str(Path(path).parent))
    rows = rows[rows.step == rows.step.groupby(runs).transform("max")]
    titles = [name.replace("_", "\n") for name in MEMORIZATION]
    shown = new_table("checkpoint", "task", "sequences", numbers=titles)
    for (path, task, subset), group in rows.groupby(["checkpoint", "task", "subset"], sort=False):
        found = group.set_index("metric")
        values = [_with_interval(found.loc[m]) if m in found.index else "" for m in MEMORIZATION]
        where = "\n".join(Path(str(path)).parts[-2:]).removesuffix("-unsharded")
        shown.add_row(where, str(task), str(subset), *values)
    print_table(shown, console)


def _with_interval(row: pd.Series) -> str:
    if pd.isna(row.value):
        return "diverged" if row.get("diverged") is True else "-"
    interval = "" if pd.isna(row.low) else f"\n[{row.low:.2f}, {row.high:.2f}]"  # one has none
    return f"{row.value:.2f}{interval}"
