"""A cell of an experiment: a function of this room and its settings, to be run in any process.

cell = Cell(run_joint, {"seed": 0, "width": 32}, cost=4.0)
cell.run(**cell.settings)                       # its rows; launch/lab/cells.py runs many
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Row = dict[str, Any]
"""One number and all that tells it from the others: experiment, metric, value, seed, width, ..."""

VERSION = 1
"""Part of every cell's name; raise it where the same settings give other numbers."""


@dataclass(frozen=True)
class Cell:
    """One piece of an experiment, small enough for one process and one thread."""

    run: Callable[..., list[Row]]
    """A module's function, so that another process can import it."""

    settings: Mapping[str, Any]
    """Its keyword arguments: plain JSON values."""

    cost: float = 1.0
    """About its seconds on one core: the dearest are started first."""

    @property
    def name(self) -> str:
        """File name of its rows: the function, and a digest of its settings."""
        what = f"{self.run.__module__}.{self.run.__qualname__}"
        text = json.dumps([VERSION, what, self.settings], sort_keys=True)
        return f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def chosen(settings: object, *names: str) -> dict[str, Any]:
    """These settings by name: what a cell is given, and so what its name depends on."""
    return {name: getattr(settings, name) for name in names}


def rows_by(key: str, labels: Iterable[Any], fields: Row, **metrics: ArrayLike) -> list[Row]:
    """A row for each label (under `key`) and metric; each metric's values are in their order."""
    listed = {metric: np.asarray(values).tolist() for metric, values in metrics.items()}
    return [
        {**fields, key: label, "metric": metric, "value": values[i]}
        for i, label in enumerate(labels)
        for metric, values in listed.items()
    ]
