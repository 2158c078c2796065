"""The cells of an experiment: run side by side, one process a core, and never run twice.

    rows = run_cells(cells, Path("runs/theory/phase/cells"), jobs=2, progress=print)

A cell's rows go to a file named by its function and settings, under a temporary name first:
whatever was finished when a run ended is there for the next one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from data_injection.files import read_json, replace_file
from eval.processes import in_processes
from theory.lab.cells import Cell, Row

Progress = Callable[[Cell, int, int], None]
"""Called with a cell that is done, the cost done so far and the whole cost."""


def run_cells(
    cells: Sequence[Cell], folder: Path, *, jobs: int = 1, progress: Progress | None = None
) -> list[Row]:
    """The rows of all cells, in the order of `cells`; those with a file in `folder` are only read.

    With one job they run in this process, else in `jobs` fresh ones, each on one thread.
    """
    folder.mkdir(parents=True, exist_ok=True)
    todo = [cell for cell in cells if _read(folder / cell.name) is None]
    todo.sort(key=lambda cell: -cell.cost)
    total = int(sum(cell.cost for cell in cells))
    done = float(sum(cell.cost for cell in cells if cell not in todo))

    with in_processes(_run, todo, jobs=jobs, preload=["torch"]) as results:
        for cell, made in results:
            replace_file(folder / cell.name, json.dumps(made, allow_nan=False))
            done += cell.cost
            if progress is not None:
                progress(cell, int(done), total)
    rows: list[Row] = []
    for cell in cells:
        rows += _read(folder / cell.name) or []
    return rows


def _run(cell: Cell) -> list[Row]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return cell.run(**cell.settings)
    finally:
        torch.set_num_threads(before)


def _read(path: Path) -> list[Row] | None:
    """The rows of a finished cell; None if there is none, or what is there cannot be read."""
    try:
        rows = read_json(path)
    except (OSError, ValueError):
        return None
    return rows if isinstance(rows, list) else None
