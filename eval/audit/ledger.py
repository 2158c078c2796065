"""A run's trained-ledger as a table: one row for each example that stood in a step that was taken.

    from eval.audit.ledger import read_ledger
    table = read_ledger("runs/w32")                     # of the latest checkpoint's weights
    table[table.effective].groupby("task", observed=True).example.nunique()

A row is **effective** if its step made the weights of the checkpoint, **pending** if it was trained
after the checkpoint by the process that goes on from it, and **abandoned** if a later start of the
run went on from before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_injection.errors import ConfigError
from data_injection.ledger import LEDGER_FOLDER, Position, Segment, position_from, read_segments
from data_injection.lineage import Lineage, is_effective, lineage
from eval.checkpoints.checkpoint import IDENTITY_FILE, find_checkpoints
from eval.run import RUN, load_identity, read_if_whole, read_object
from eval.text import write_table

if TYPE_CHECKING:
    import pandas as pd

STATES = ("effective", "abandoned", "pending")
EFFECTIVE, ABANDONED, PENDING = range(3)

_DIGEST = re.compile(r"[0-9a-f]{16}")

NO_END = 2**63 - 1
"""A step later than any: the present end of the run's last segment."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint's identity as read once: a run that trains may thin out its checkpoints."""

    path: Path
    step: int
    """From its name."""

    identity: dict[str, Any] | None
    """Its olmo_ext.json; None if that cannot be read."""

    position: Position | None = None
    """Where in the ledger its weights stand; None if it is from before the ledger, or damaged."""

    place_problem: str | None = None
    """Why what stands there is no place in the ledger."""

    digest: int | None = None
    """Of the stream until then; None if the run began before it kept one, or damaged."""

    digest_problem: str | None = None
    """Why what stands there is no digest."""

    @property
    def in_ledger(self) -> bool:
        """Whether it says, or said before it was damaged, where in a ledger it stands."""
        return self.position is not None or self.place_problem is not None


def saved_checkpoint(path: Path, step: int, identity: dict[str, Any] | None) -> SavedCheckpoint:
    """What a checkpoint says of itself, its place and its digest as values or as problems."""
    found = SavedCheckpoint(path, step, identity)
    if identity is None or "ledger" not in identity:
        return found
    place, where = identity["ledger"], f"{path.name}/{IDENTITY_FILE}"
    try:
        if place is None:
            raise ConfigError(key=where, rule="holds no place in the ledger: null")
        found = replace(found, position=position_from(place, where=where))
    except ConfigError as error:
        found = replace(found, place_problem=str(error))
    if not isinstance(place, dict) or "stream_digest" not in place:
        return found
    digest = place["stream_digest"]
    if isinstance(digest, str) and _DIGEST.fullmatch(digest):
        return replace(found, digest=int(digest, 16))
    said = f"{where} holds no stream digest: {json.dumps(digest)[:200]} is not 16 hex digits"
    return replace(found, digest_problem=said)


def read_checkpoints(run: Path) -> list[SavedCheckpoint]:
    """All complete checkpoints of a run in the order of their steps."""
    found = []
    for checkpoint in find_checkpoints(run):
        try:
            identity = read_object(checkpoint.path / IDENTITY_FILE)
        except FileNotFoundError:  # removed since: a run that trains keeps the last ones only
            continue
        except ConfigError:
            identity = None
        found.append(saved_checkpoint(checkpoint.path, checkpoint.step, identity))
    return found


def choose_checkpoint(
    checkpoints: list[SavedCheckpoint], *, run: Path, step: int | None = None
) -> SavedCheckpoint | None:
    """The checkpoint after `step` steps, or the latest that can be read; None if there is none.

    Raises ConfigError for a step without a checkpoint.
    """
    readable = {c.step: c for c in checkpoints if c.identity is not None}
    if step is not None and step not in readable:
        rule = f"has no checkpoint after step {step} that can be read"
        raise ConfigError(key=run, rule=rule, remedy=f"it has {list(readable)}")
    return readable.get(max(readable, default=0) if step is None else step)


@dataclass(frozen=True)
class RunLedger:
    """The segments of a run and which of their rows made the weights of one checkpoint."""

    segments: Mapping[int, Segment]
    line: Lineage
    """Of the checkpoint's weights."""

    head: Lineage | None
    """Of the weights that the run's last process has, or had, in memory, if it went on from the
    checkpoint; None if it did not."""

    def states(self, segment: Segment) -> NDArray[np.uint8]:
        """State of each row of a segment, an index into STATES; shape (num_rows,)."""
        states = np.full(len(segment.rows), ABANDONED, dtype=np.uint8)
        if self.head is not None:
            states[is_effective(segment, self.head.stretches)] = PENDING
        states[is_effective(segment, self.line.stretches)] = EFFECTIVE
        return states


def trace_ledger(segments: Mapping[int, Segment], checkpoint: SavedCheckpoint | None) -> RunLedger:
    """Tell which rows made the weights of a checkpoint (None: there is none yet).

    Raises ConfigError if what the checkpoint names is no place in the ledger.
    """
    if checkpoint is not None and checkpoint.place_problem is not None:
        problem, remedy = checkpoint.place_problem, "nothing tells its rows: use another checkpoint"
        raise ConfigError(f"{problem}; {remedy}", key=checkpoint.path, rule=problem, remedy=remedy)
    position = checkpoint.position if checkpoint is not None else None
    step = checkpoint.step if checkpoint is not None else 0
    line = lineage(segments, position, step=step)
    # A segment without a header has no rows: a process that was killed as it began.
    last = max((segment.number for segment in segments.values() if segment.header), default=None)
    head = None
    if last is not None:
        head = lineage(segments, Position(last, segments[last].num_records), step=NO_END)
    if head is not None and position is not None:
        through = [s for s in head.stretches if s.segment == position.segment]
        if not through or through[0].end_step < step:
            head = None  # it went on from an earlier checkpoint
    return RunLedger(segments, line, head)


def read_ledger(run: str | Path, *, checkpoint: int | None = None) -> pd.DataFrame:
    """All rows of a run's ledger that can be read, in file order (`olmo-ext audit` checks them).

    Args:
        checkpoint: step of the checkpoint whose weights are meant; None is the latest.

    Returns a frame with the columns step (counted from 0), slot (row of the global batch), position
    (step x batch + slot), task (name), task_index, example (row of the task's table), segment,
    effective and state (see STATES).

    Raises:
        FileNotFoundError: no run, or no ledger.
        ConfigError: no such checkpoint, or one whose place in the ledger is damaged.
    """
    run = Path(run)
    plan = load_identity(run)["plan"]
    chosen = choose_checkpoint(read_checkpoints(run), run=run, step=checkpoint)
    return ledger_table(trace_ledger(read_segments(run / LEDGER_FOLDER), chosen), plan)


def ledger_table(ledger: RunLedger, plan: Mapping[str, Any]) -> pd.DataFrame:
    """The frame of `read_ledger`; `plan` is the canonical plan, as in plan.json."""
    import pandas as pd

    names = sorted(plan["tasks"], key=lambda name: plan["tasks"][name]["index"])
    segments = list(ledger.segments.values())

    def column(name: str) -> NDArray:
        return np.concatenate([segment.rows[name] for segment in segments])

    steps, slots, tasks = (column(name) for name in ("step", "slot", "task"))
    states = np.concatenate([ledger.states(segment) for segment in segments]).astype(np.int8)
    # A task that the plan has not is missing (NaN): `olmo-ext audit` says more.
    codes = np.where(tasks < len(names), tasks.astype(np.int32), -1)
    numbers = np.array([segment.number for segment in segments], dtype=np.uint32)
    return pd.DataFrame(
        {
            "step": steps,
            "slot": slots,
            "position": steps.astype(np.int64) * plan["batch_size"] + slots,
            "task": pd.Categorical.from_codes(codes, categories=names),
            "task_index": tasks,
            "example": column("example"),
            "segment": np.repeat(numbers, [len(segment.rows) for segment in segments]),
            "effective": states == EFFECTIVE,
            "state": pd.Categorical.from_codes(states, categories=list(STATES)),
        },
        copy=False,
    )


def export_path(run: str | Path, target: str) -> Path:
    """Where "parquet", "csv" or a file so named goes; ConfigError for another ending."""
    path = Path(run) / f"{LEDGER_FOLDER}.{target}" if target in ("parquet", "csv") else Path(target)
    if path.suffix not in (".parquet", ".csv"):
        rule = "must be parquet, csv, or a file that ends so"
        remedy = "for example --export ledger.parquet"
        raise ConfigError(key="--export", value=target, rule=rule, remedy=remedy)
    return path


def export_ledger(
    run: str | Path, path: Path, *, checkpoint: int | None = None, command: str = ""
) -> None:
    """Write `read_ledger` to a .parquet or .csv file, to a temporary name first.

    Parquet carries run, plan_hash, commit (that the run was trained with) and command as metadata.
    """
    start, identity = read_if_whole(Path(run) / RUN), load_identity(run)
    origin = {name: str(start.get(name) or "") for name in ("run", "commit")}
    origin |= {"plan_hash": identity["plan_hash"], "command": command}
    write_table(path, read_ledger(run, checkpoint=checkpoint), metadata=origin)
