"""Records: one JSON line per measurement; every table, figure and claim is read from these.

    from eval.records import read_records
    table = read_records("runs/quickstart")        # every records.jsonl below the folder
    table[table.metric == "score"]

A file is only ever appended to. A run that was killed and resumed measures some steps twice, so
readers keep the last row of each key; a torn last line (the writer was killed) is skipped and said.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from data_injection.config import ConfigError
from data_injection.plan import InjectionPlan
from eval.run import find_below

log = logging.getLogger(__name__)

FILE_NAME = "records.jsonl"

REQUIRED = (
    "run",  # name of the run
    "rung",  # name of the model size, e.g. "w32" or "20M"
    "params",  # parameters without the input embedding
    "seed",  # model seed of the run
    "plan_hash",  # identity of the injection plan
    "protocol",  # "single" (one task a run) or "mixture" (several)
    "step",  # optimizer steps taken
    "tokens",  # tokens trained on, host and task
    "task",  # name of the task in the run
    "family",  # key of data_injection.tasks.build.TASKS, or "reference" of a natural task
    "rate_per_step",  # mean instances per step over the schedule, a float
    "exposures_per_example",  # instances seen by this step / train examples
    "split",  # "train" or "test"; empty for a measure of all symbols
    "metric",
    "value",
)
"""Fields that every record has. A metric adds its own (n, low, high, subset, ...)."""

KEY = (
    *("run", "rung", "seed", "learning_rate", "plan_hash", "protocol"),
    *("step", "task", "split", "subset", "metric", "layer", "group", "other_task"),
    *("burst", "lag"),
    *("position", "component", "variable", "held_out", "control"),
)
"""What tells two measurements apart; a later row with the same key replaces an earlier one."""


def check_record(record: Mapping[str, Any]) -> None:
    """Raise ValueError if a required field is missing or the value is not a number."""
    missing = [name for name in REQUIRED if name not in record]
    if missing:
        raise ValueError(f"record lacks {', '.join(missing)}; every record needs {REQUIRED}")
    value = record["value"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"record value of {record['metric']!r} must be a number, got {value!r}")


class RecordWriter:
    """Appends records to one file; each call is one write, flushed, so a kill tears at most a line.

    Not-a-number values are written as null: JSON has no NaN, and "undefined" is not 0.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A line torn by a kill must not swallow the first new record.
        torn = self.path.exists() and not _ends_with_newline(self.path)
        self._file = self.path.open("a", encoding="utf-8")
        if torn:
            self._file.write("\n")

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        lines = []
        for record in records:
            check_record(record)
            clean = {
                k: None if isinstance(v, float) and not math.isfinite(v) else v
                for k, v in record.items()
            }
            lines.append(json.dumps(clean, allow_nan=False) + "\n")
        try:
            self._file.write("".join(lines))
            self._file.flush()
        except OSError as error:  # which says not where
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def sync(self) -> None:
        """Force everything written so far onto the disk (called at checkpoints)."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextlib.contextmanager
def lock_folder(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a run's folder against other writers; released when the process ends, however it ends.

    Raises ConfigError if another process still holds it after `patience` seconds. Where there are
    no locks it only warns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    give_up = time.monotonic() + patience
    with (folder / ".lock").open("w") as file:
        try:
            while not _locked(file):
                if time.monotonic() > give_up:
                    raise ConfigError(
                        f"the run's folder {folder} is being written by another process; wait for "
                        "it or choose another folder"
                    )
                time.sleep(0.2)
        except OSError as error:
            log.warning(
                "%s cannot be locked (%s); make sure that one process writes it", folder, error
            )
        yield


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def task_fields(plan: InjectionPlan, name: str, *, step: int) -> dict[str, Any]:
    """The fields of a record that say which task it is of and how often it was seen by `step`."""
    index = plan.task_index(name)
    rates = plan.rates(index)
    return {
        "task": name,
        "family": plan.tasks[index].family,
        "schedule": plan.schedules[index].label,
        "gap": plan.schedules[index].gap,
        "variant": plan.variant(index),
        "bits": plan.tasks[index].bits,
        "rate_per_step": rates["per_step"],
        "rate_per_sequence": rates["per_sequence"],
        "rate_per_token": rates["per_token"],
        "exposures_per_example": plan.exposures_per_example(index, step),
    }


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def record_files(source: str | Path) -> list[Path]:
    """The record files of a file, a run's folder, or a folder of runs, sorted by path."""
    source = Path(source)
    if source.is_file():
        return [source]
    files = find_below(source, FILE_NAME)
    if not files:
        raise FileNotFoundError(
            f"no {FILE_NAME} in or below {source}; has a run been trained there?"
        )
    return files


def read_records(source: str | Path) -> pd.DataFrame:
    """All records of a file, run or folder of runs, one row per measurement, latest row per key.

    Returns a frame with the columns of REQUIRED first; optional fields are missing (NaN) where a
    metric has none. Raises FileNotFoundError if there are no record files, ConfigError on a line
    that is JSON but no record; a line that is no JSON at all was torn by a kill and is skipped.
    """
    rows: list[dict[str, Any]] = []
    for path in record_files(source):
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                # Torn by a kill: either the very end, or just before a resumed writer's newline.
                log.warning(
                    "%s:%d is not a complete record (killed writer?), skipped", path, number
                )
                continue
            if not isinstance(row, dict):
                raise ConfigError(
                    f"{path}:{number} is not a record: must be a JSON object, got {line[:40]}; "
                    "mend or drop the line"
                )
            missing = [name for name in REQUIRED if name not in row]
            if missing:
                raise ConfigError(
                    f"{path}:{number} is not a record: lacks {', '.join(missing)}; mend or drop "
                    "the line"
                )
            if not isinstance(row["value"], int | float | None):
                raise ConfigError(
                    f"{path}:{number} is not a record: value must be a number, got "
                    f"{row['value']!r}; mend or drop the line"
                )
            rows.append(row)
    frame = pd.DataFrame(rows)
    if frame.empty:
        return pd.DataFrame(columns=list(REQUIRED))
    frame["value"] = frame["value"].astype(float)
    key = [name for name in KEY if name in frame.columns]
    frame = frame.drop_duplicates(subset=key, keep="last")
    rest = [name for name in frame.columns if name not in REQUIRED]
    return frame[[*REQUIRED, *rest]].reset_index(drop=True)
