"""The example tables of a plan's tasks as one JSON file, to be scored without the run or this code.

    path.write_text(task_tables(plan))
    tasks = load_tasks("exported")             # the same tasks again

Every task has `tokens`, a list of examples with the label last, and `train`, the numbers of those
that could be injected; the others are the test split.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_injection.errors import ConfigError
from data_injection.plan import InjectionPlan
from data_injection.tasks.base import Task
from data_injection.tasks.build import find_family
from eval.run import read_object

FILE_NAME = "tasks.json"


def task_tables(plan: InjectionPlan) -> str:
    """The tables of all tasks of a plan as JSON, one line a task."""
    lines = [json.dumps(task.name) + ": " + json.dumps(_table(task)) for task in plan.labelled]
    head = f'{{"plan_hash": {json.dumps(plan.hash)},\n"tasks": {{\n'
    return head + ",\n".join(lines) + "\n}}\n"


def load_tasks(folder: str | Path) -> list[Task]:
    """The tasks of an exported folder, in plan order.

    Raises:
        FileNotFoundError: it was exported without its plan.
        ConfigError: a table is not the one that was written, or its family is not installed here.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no {FILE_NAME} in {folder}; export it from its run's folder")
    tables = read_object(path)["tasks"]
    return [_task(name, table, where=str(path)) for name, table in tables.items()]


def _table(task: Task) -> dict[str, Any]:
    return {
        "family": task.family,
        "params": task.params,
        "symbols": task.symbols.tolist(),
        "labels": task.labels.tolist(),
        "digest": task.digest(),
        "tokens": task.tokens.tolist(),
        "train": task.train.tolist(),
    }


def _task(name: str, table: dict[str, Any], *, where: str) -> Task:
    task = find_family(table["family"], key=f"{where}: family of {name!r}")(
        name,
        symbols=np.array(table["symbols"], dtype=np.int64),
        labels=np.array(table["labels"], dtype=np.int64),
        seed=0,  # of the split, which the table says
        params=table["params"],
    )
    task.family = table["family"]
    task.tokens = np.array(table["tokens"], dtype=np.int64)
    task.train = np.array(table["train"], dtype=np.int64)
    task.test = np.setdiff1d(np.arange(len(task.tokens)), task.train)
    if task.digest() != table["digest"]:
        rule = "is not the one that was written"
        raise ConfigError(key=f"{where}: the table of {name!r}", rule=rule, remedy="export again")
    return task
