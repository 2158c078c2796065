"""The trained-ledger: which example stood in which row of which optimizer step that was taken.

    with LedgerWriter(run / "ledger", start_step=0, parent=None, header={...}) as ledger:
        ledger.append(step, plan.at(step))      # after the step has been taken
        position = ledger.seal(step + 1)        # at a checkpoint, which keeps the position
    segments = read_segments(run / "ledger")

A folder of segments, one for each start of the run, only ever appended to. A segment is a line of
text (magic, checksum, JSON) and then records of 14 bytes, little-endian: one for each injected row,
and a **seal** after a block of rows, which holds their number, their CRC-32 and the step reached.
Rows are written when their step has been taken, so that they outlive the process at once; a seal is
forced onto the disk before the checkpoint it belongs to.

Steps redone after a kill stand in two segments. The header of each names its **parent**: the place
in the ledger at which the checkpoint was sealed that it went on from: data_injection/lineage.py.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_injection.errors import ConfigError
from data_injection.files import parse_json, sync_path
from data_injection.plan import StepRows

ROW = np.dtype([("step", "<u4"), ("slot", "<u4"), ("example", "<u4"), ("task", "<u2")])
"""One record, packed: 14 bytes. In a seal `task` is SEAL, `step` is the number of steps taken,
`slot` the number of rows since the seal before, `example` the CRC-32 of header, rows and both."""

SEAL = 0xFFFF

SKIPPED = 0xFF00
"""`task` of the record of a step whose batch was read but moved no weight (OLMo-core's
SkipStepAdamW, steps_to_skip): in place of the step's rows, whose number is its `slot`. Many bits
away from SEAL, so that no flipped one makes a mark of a seal."""

LEDGER_FOLDER = "ledger"
"""Where a run keeps its segments."""

MAX_BLOCK_ROWS = 2**16
"""Rows after which a block is sealed even without a checkpoint: what one flipped bit can spoil."""

MAGIC = b"olmo-ext-ledger-1"

DAMAGED = "records {} to {} are damaged: their checksum does not hold"

_NAME = re.compile(r"segment-(\d{5,})\.bin")


@dataclass(frozen=True)
class Position:
    """A place in the ledger: the end of so many records of a segment."""

    segment: int
    records: int
    """Rows and seals from the segment's start."""


class LedgerWriter(AbstractContextManager["LedgerWriter"]):
    """Appends to a new segment; one process of a run writes.

    Args:
        folder: of the ledger; made if need be.
        start_step: steps taken before this start of the run.
        parent: where the checkpoint stands that the run goes on from; None for a new run, and for a
            checkpoint from before there was a ledger.
        header: further JSON values for the segment's first line (plan hash, world size, ...).
        above: number of a segment that was once there, which must not be given again.

    Raises OSError with the file's name where the disk refuses; what was written before stays.
    """

    def __init__(
        self, folder: Path, *, start_step: int, parent: Position | None, header: Mapping[str, Any],
        above: int = -1,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        # By number and not by time: clocks go backwards.
        numbers = [number for number, _ in _segment_files(folder)]
        self.segment = max([*numbers, above, parent.segment if parent else -1]) + 1
        self.path = folder / f"segment-{self.segment:05d}.bin"
        values = {
            "segment": self.segment,
            "start_step": start_step,
            "parent": asdict(parent) if parent is not None else None,
            **header,
        }
        self._header_crc, line = _header_line(values)
        self._descriptor = os.open(
            self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644
        )
        self._size = 0
        self._write(line)
        self._num_records = 0
        self._next_step = start_step
        self._num_rows, self._crc = 0, self._header_crc
        os.fsync(self._descriptor)
        sync_path(folder)

    def append(self, step: int, rows: StepRows) -> None:
        """Write the rows of a step (counted from 0) that has been taken; in one system call."""
        records = np.empty(len(rows), dtype=ROW)
        records["step"], records["slot"] = step, rows.slots
        records["task"], records["example"] = rows.tasks, rows.examples
        self._append(step, records)

    def _append(self, step: int, records: NDArray[np.void]) -> None:
        assert step >= self._next_step, "steps of a segment ascend"
        data = records.tobytes()
        self._write(data)
        self._next_step = step + 1
        self._num_records += len(records)
        self._num_rows += len(records)
        self._crc = zlib.crc32(data, self._crc)
        if self._num_rows >= MAX_BLOCK_ROWS:
            self._seal_block()

    def skip(self, step: int, rows: StepRows) -> None:
        """Mark a step that read its batch and took no update."""
        self._append(step, np.array([(step, len(rows), 0, SKIPPED)], dtype=ROW))

    def seal(self, step: int) -> Position:
        """Close the block: `step` steps have been taken. Forces all onto the disk."""
        assert step >= self._next_step
        self._next_step = step
        self._seal_block()
        os.fsync(self._descriptor)
        return Position(self.segment, self._num_records)

    def close(self) -> None:
        """Close the file; without a seal, since the step may not have been finished."""
        os.close(self._descriptor)

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _seal_block(self) -> None:
        self._write(_seal(self._next_step, self._num_rows, self._crc).tobytes())
        self._num_records += 1
        self._num_rows, self._crc = 0, self._header_crc

    def _write(self, data: bytes) -> None:
        """All of it or, on a full disk, nothing: a torn record would shift all that follow."""
        try:
            done = 0
            while done < len(data):
                done += os.write(self._descriptor, data[done:])
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        self._size += len(data)


@dataclass(frozen=True)
class Segment:
    """One segment as it could be read."""

    path: Path
    number: int
    header: dict[str, Any]
    """Empty if the first line is damaged."""

    rows: NDArray[np.void]
    """Its rows (dtype ROW) outside damaged blocks, in file order, sealed or not."""

    record: NDArray[np.int64]
    """Number of each row's record in the segment: what `Position.records` counts."""

    num_records: int
    num_unsealed: int
    """Rows after the last seal: the process was killed before its next checkpoint."""

    problems: tuple[str, ...] = field(default=())
    """What is damaged, for people."""

    skipped: tuple[int, ...] = ()
    """Steps, counted from 0, whose batch moved no weight; none of their rows is in `rows`."""

    torn: int = 0
    """Bytes of a last record that is not whole: a killed writer, one at work, or truncated."""

    @property
    def start_step(self) -> int:
        return int(self.header["start_step"])

    @property
    def parent(self) -> Position | None:
        value = self.header["parent"]
        return Position(**value) if value is not None else None


def read_segments(folder: str | Path) -> dict[int, Segment]:
    """All segments of a ledger by number; damaged places are told in `Segment.problems`.

    Raises FileNotFoundError if there is no ledger.
    """
    files = _segment_files(Path(folder))
    if not files:
        raise FileNotFoundError(
            f"no ledger in {folder}: the run was trained before olmo-ext kept one, or never started"
        )
    return {number: read_segment(path) for number, path in files}


def read_segment(path: Path) -> Segment:
    """Read one segment, block by block: what a seal does not vouch for is told.

    Rows after the last seal are read too (a killed process wrote them); their number is
    `num_unsealed`. Rows of a damaged block are left out.
    """
    match = _NAME.fullmatch(path.name)
    number = int(match[1]) if match else -1
    data = path.read_bytes()
    end = data.find(b"\n") + 1
    header = _parse_header(data[:end])
    if header is None or header.get("segment") != number:
        empty = np.zeros(0, dtype=ROW)
        said = "its first line is damaged or torn; none of its rows can be trusted"
        return Segment(path, number, {}, empty, np.zeros(0, np.int64), 0, 0, (said,))
    body = memoryview(data)[end:]
    num_records, torn = divmod(len(body), ROW.itemsize)
    records = np.frombuffer(body, dtype=ROW, count=num_records)
    trusted = np.zeros(num_records, dtype=bool)
    problems = []
    covered, header_crc = 0, zlib.crc32(data[:end])
    for seal in np.flatnonzero(records["task"] == SEAL).tolist():
        # The number of rows stands in the seal, so that a block is found again after a damaged one.
        first = seal - int(records["slot"][seal])
        if first < covered:
            continue
        rows = body[first * ROW.itemsize : seal * ROW.itemsize]
        claimed = records[seal : seal + 1]
        expected = _seal(int(claimed["step"][0]), seal - first, zlib.crc32(rows, header_crc))
        if claimed.tobytes() != expected.tobytes():
            continue
        if first > covered:
            problems.append(DAMAGED.format(covered, first - 1))
        trusted[first:seal] = True
        covered = seal + 1
    tail = records[covered:]
    if (tail["task"] == SEAL).any():
        # A seal that does not fit what it seals: a block is damaged, not just unfinished.
        last = covered + int(np.flatnonzero(tail["task"] == SEAL)[-1]) + 1
        problems.append(DAMAGED.format(covered, last - 1))
        covered = last
    trusted[covered:] = True
    marks = trusted & (records["task"] == SKIPPED)
    trusted &= ~marks
    return Segment(
        path=path,
        number=number,
        header=header,
        rows=records[trusted],
        record=np.flatnonzero(trusted),
        num_records=num_records,
        num_unsealed=num_records - covered,
        problems=tuple(problems),
        skipped=tuple(records["step"][marks].tolist()),
        torn=torn,
    )


def _segment_files(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted((int(match[1]), path) for match, path in found if match)


def _seal(step: int, num_rows: int, crc: int) -> NDArray[np.void]:
    """The record that seals a block, given the CRC-32 of the header and its rows."""
    seal = np.array([(step, num_rows, 0, SEAL)], dtype=ROW)
    seal["example"] = zlib.crc32(seal.tobytes(), crc)
    return seal


def _header_line(values: Mapping[str, Any]) -> tuple[int, bytes]:
    """The first line of a segment and its CRC-32, from which every block's starts."""
    text = json.dumps(values, sort_keys=True).encode()
    line = b"%s %08x %s\n" % (MAGIC, zlib.crc32(text), text)
    return zlib.crc32(line), line


def _parse_header(line: bytes) -> dict[str, Any] | None:
    parts = line.rstrip(b"\n").split(b" ", 2)
    if len(parts) != 3 or parts[0] != MAGIC or parts[1] != b"%08x" % zlib.crc32(parts[2]):
        return None
    return parse_json(parts[2])


def position_from(value: Any, *, where: str) -> Position | None:
    """The position that a checkpoint keeps as JSON; ConfigError if it is none."""
    if value is None:
        return None
    match value:
        case {"segment": segment, "records": records} if (
            type(segment) is type(records) is int and min(segment, records) >= 0
        ):
            return Position(segment, records)
    rule = "holds no place in the ledger: it needs segment and records in whole numbers"
    raise ConfigError(key=where, value=value, rule=rule)
