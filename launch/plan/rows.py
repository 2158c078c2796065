"""The plan's rows as a table for other tools: what is written where, in Parquet or JSONL.

    write_rows(Path("rows.parquet"), plan, num_steps=400)      # the number of rows

A row is one instance: step (from 0), slot (row of the global batch), offset (in that row, of the
first token), task, example (its number in the task), id (the file's, of sequences) and tokens, as
they are written, with their EOS. `plan_hash` stands in the Parquet file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_injection.files import replaced
from data_injection.plan import InjectionPlan
from data_injection.tasks.sequences import Sequences
from eval.audit.host_rows import HostRows, places

SUFFIXES = (".parquet", ".jsonl")

STEPS_AT_ONCE = 256
"""Steps of one row group: what is in memory."""


def write_rows(
    path: Path, plan: InjectionPlan, *, num_steps: int, host: HostRows | None = None
) -> int:
    """Write the rows of the first `num_steps` steps, by the name's suffix; returns their number.

    `host` is the corpus, which a plan of sequences at documents needs.
    """
    assert host is not None or not plan.at_documents
    total, parts = 0, _parts(plan, num_steps, host)
    with replaced(path) as temporary:
        if path.suffix == ".parquet":
            return _write_parquet(temporary, parts, plan_hash=plan.hash)
        with temporary.open("w") as file:
            for part in parts:
                total += len(part)
                file.writelines(json.dumps(row) + "\n" for row in part)
    return total


def rows_of_step(plan: InjectionPlan, step: int, host: HostRows | None) -> Iterator[dict]:
    """The instances of a step, in plan order."""
    rows = plan.at(step)
    text = None if host is None else host.tokens(host.rows_of_step(step))
    offsets = rows.offsets if text is None else places(text, plan, step)
    columns = (rows.slots, offsets, rows.tasks, rows.examples)
    for slot, offset, index, example in zip(*(one.tolist() for one in columns), strict=True):
        task = plan.tasks[index]
        written = task.written(np.array([example]), eos_token_id=plan.eos_token_id)[0]
        yield {
            "step": step,
            "slot": slot,
            "offset": offset,
            "task": task.name,
            "example": example,
            "id": task.table.ids[example] if isinstance(task, Sequences) else str(example),
            "tokens": written.tolist(),
        }


def _parts(plan: InjectionPlan, num_steps: int, host: HostRows | None) -> Iterator[list[dict]]:
    for first in range(0, num_steps, STEPS_AT_ONCE):
        steps = range(first, min(first + STEPS_AT_ONCE, num_steps))
        yield [row for step in steps for row in rows_of_step(plan, step, host)]


def _write_parquet(path: Path, parts: Iterator[list[dict]], *, plan_hash: str) -> int:
    import pyarrow
    import pyarrow.parquet

    kinds = dict.fromkeys(("step", "slot", "offset", "task", "example", "id"), pyarrow.int64())
    kinds |= {"task": pyarrow.string(), "id": pyarrow.string()}
    kinds |= {"tokens": pyarrow.list_(pyarrow.int32())}
    schema, total = pyarrow.schema(kinds, metadata={"plan_hash": plan_hash}), 0
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for part in parts:
            total += len(part)
            writer.write_table(pyarrow.Table.from_pylist(part, schema=schema))
    return total
