"""The cells of an experiment: run side by side, one process a core, and never run twice.

    rows = run_cells(cells, Path("runs/theory/phase/cells"), jobs=2, progress=print)

A cell is a function of this room and its settings. Its rows go to a file named by both, under a
temporary name first: whatever was finished when a run ended is there for the next one.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""One number and all that tells it from the others: experiment, metric, value, seed, width, ..."""

VERSION = 1
"""Part of every cell's name; raise it where the same settings give other numbers."""

Progress = Callable[["Cell", int, int], None]
"""Called with a cell that is done, the cost done so far and the whole cost."""


@dataclass(frozen=True)
class Cell:
    """One piece of an experiment, small enough for one process and one thread."""

    run: Callable[..., list[Row]]
    """A module's function, so that another process can import it."""

    settings: Mapping[str, Any]
    """Its keyword arguments: plain JSON values."""

    cost: float = 1.0
    """Expected share of the work, in any unit: the dearest are started first."""

    @property
    def name(self) -> str:
        """File name of its rows: the function, and a digest of its settings."""
        what = f"{self.run.__module__}.{self.run.__qualname__}"
        text = json.dumps([VERSION, what, self.settings], sort_keys=True)
        return f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


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
        write_json(folder / cell.name, rows)
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
        rows = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return rows if isinstance(rows, list) else None


def write_json(path: Path, value: Any) -> None:
    """Write beside the target, then rename; a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, allow_nan=False))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
