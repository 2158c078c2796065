"""The cells of an experiment: run side by side, one process a core, and never run twice.

    rows = run_cells(cells, Path("runs/theory/phase/cells"), jobs=2, progress=print)

A cell's rows go to a file named by its function and settings, under a temporary name first:
whatever was finished when a run ended is there for the next one.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

from data_injection.files import read_json, replace_file
from theory.lab.cells import Cell, Row

Progress = Callable[[Cell, int, int], None]
"""Called with a cell that is done, the cost done so far and the whole cost."""


def run_cells(
    cells: Sequence[Cell], folder: Path, *, jobs: int = 1, progress: Progress | None = None
) -> list[Row]:
    """The rows of all cells, in the order of `cells`; those with a file in `folder` are only read.

    With one job they run in this process, else in `jobs` fresh ones (spawned, so that no state of
    the parent gets in), each on one thread.
    """
    folder.mkdir(parents=True, exist_ok=True)
    todo = [cell for cell in cells if _read(folder / cell.name) is None]
    todo.sort(key=lambda cell: -cell.cost)
    total = int(sum(cell.cost for cell in cells))
    done = float(sum(cell.cost for cell in cells if cell not in todo))

    def finish(cell: Cell, rows: list[Row]) -> None:
        nonlocal done
        replace_file(folder / cell.name, json.dumps(rows, allow_nan=False))
        done += cell.cost
        if progress is not None:
            progress(cell, int(done), total)

    if jobs == 1 or len(todo) < 2:
        for cell in todo:
            finish(cell, _run(cell))
    else:
        _run_pool(todo, jobs=jobs, finish=finish)
    rows: list[Row] = []
    for cell in cells:
        rows += _read(folder / cell.name) or []
    return rows


def _run_pool(todo: list[Cell], *, jobs: int, finish: Callable[[Cell, list[Row]], None]) -> None:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(todo)), mp_context=context, initializer=_one_thread)
    try:
        running = {pool.submit(_run, cell): cell for cell in todo}
        while running:
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                finish(running.pop(future), future.result())
    finally:
        # After an error or Ctrl-C: what has not begun is not begun.
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


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
