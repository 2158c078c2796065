"""`olmo-ext reference`: the natural tasks of a run's corpus, told and measured.

reference([Path("runs/w64")], console=Console())
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from data_injection.reference.grammar import TASKS
from eval.reference.evaluate import ReferenceRun, evaluate_reference, find_reference
from eval.reference.tasks import natural_rates
from eval.run import run_folders
from eval.text import new_table, number, print_table
from launch.json_file import write_rows
from launch.terminal import progress_bar, say

EXAMPLES = 5


def reference(
    sources: list[Path],
    *,
    scan: dict[str, Any],
    most: int,
    seed: int = 0,
    device: str = "cpu",
    json: Path | None = None,
    console: Console,
    errors: Console,
) -> None:
    """Scan, print and measure; see `find_reference` and `evaluate_reference`."""
    shown: set[object] = set()
    rows: list[dict[str, Any]] = []
    for folder in [folder for source in sources for folder in run_folders(source)]:
        with progress_bar(errors) as bar:
            found = find_reference(folder, progress=partial(bar, "scanning"), **scan)
        if (found.name, found.geometry) not in shown:
            shown.add((found.name, found.geometry))
            rows += show_frequencies(found, console)
            write_rows(json, rows)
        for checkpoint, num in evaluate_reference(found, most=most, seed=seed, device=device):
            done = f"{num} records" if num else "already there"
            console.print(f"{folder.name} step {checkpoint.step}: {done}")


def show_frequencies(found: ReferenceRun, console: Console) -> list[dict[str, Any]]:
    """The frequency of either task in all units, and what is commonest; returns the rows."""
    rows: list[dict[str, Any]] = []
    scan, geometry = found.scan, found.geometry
    sample = "" if scan.num_scanned == scan.num_tokens else f" of {scan.num_tokens:,}, a sample"
    console.print(
        f"reference tasks in {scan.num_scanned:,} tokens{sample}; per step: {geometry.batch_size} "
        f"rows of {geometry.seq_len} tokens"
    )
    titles = ("true\n(distinct)", "false", "docu-\nments", "per\nstep", "95%", "per\nrow")
    table = new_table("task", numbers=(*titles, "per\ntoken", "tokens\n/token"))
    for task in TASKS:
        rates = natural_rates(
            found.true_places(task), num_scanned=scan.num_scanned, geometry=geometry
        )
        false = sum(p.statement.task == task and not p.statement.correct for p in scan.places)
        rows.append({"corpus": found.name, "task": task, "false": false, **rates})
        counts = (f"{rates['num']:,}\n({rates['distinct']:,})", f"{false:,}")
        spread = f"{number(rates['rate_low'])}\nto {number(rates['rate_high'])}"
        units = ("rate_per_sequence", "rate_per_token", "task_tokens_per_token")
        each = (f"{rates['documents']:,}", number(rates["rate_per_step"]), spread)
        table.add_row(task, *counts, *each, *(number(rates[unit]) for unit in units))
    print_table(table, console)
    for task in TASKS:
        common = Counter(place.statement.text for place in found.true_places(task))
        said = ", ".join(f"{text!r} {num}" for text, num in common.most_common(EXAMPLES))
        say(console, f"{task}: {said or 'none'}")
    return rows
