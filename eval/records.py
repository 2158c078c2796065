"""Records: one JSON line per measurement; every table, figure and claim is read from these.

    from eval.records import read_records
    table = read_records("runs/quickstart")        # every records.jsonl below the folder
    table[table.metric == "score"]

A file is only ever appended to. A run that was killed and resumed measures some steps twice, so
readers keep the last row of each measurement. Which rows are of one measurement is said in one
place, `coordinates`, for the file as for the curves of W&B.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from data_injection.errors import ConfigError
from data_injection.plan import InjectionPlan
from data_injection.tasks.schedules import variant
from eval.record_lines import end_whole, whole_rows
from eval.run import RECORDS as FILE_NAME
from eval.run import find_below

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
    "metric",  # name of what was measured
    "value",  # what it gave; null where it is undefined
)
"""Fields that every record has. A metric adds its own: outcomes, or coordinates of any name."""

OUTCOMES = frozenset(("value", "low", "high", "n", "draws", "permutations", "diverged"))
"""What measuring gave, and how surely; so is every field named null_* or *_seconds."""

_COSINES = (
    *("cos_g", "cos_g_nt", "cos_g_r", "cos_update"),
    *("cos_g_t_all", "cos_g_t_label", "cos_g_t_others"),
)

_INNER = ("inner", "inner_spread")
_BURST = ("burst_step", "instances")
_LOSSES = ("label", "choice", "format")

OUTCOMES_OF = {
    "ablation_drop": ("intact",),
    **{f"answer_loss{suffix}": ("tokens_per_answer",) for suffix in ("", "_null", "_bare")},
    **{f"choice_accuracy{suffix}": ("chance", "majority") for suffix in ("", "_null", "_bare")},
    **dict.fromkeys(("budget", "budget_actual"), ("closure", "split_error")),
    "host_step": ("first_order", "split_error"),
    "fourier_modes": ("threshold", "units", "present"),
    "interchange_accuracy": ("least", "most", "majority", "above_majority", "train_pairs"),
    "label_accuracy": ("majority",),
    **{f"{loss}_loss_{when}": _BURST for loss in _LOSSES for when in ("before", "lag")},
    "mirror_consistency": ("chance",),
    "natural_count": ("false_statements", "num_scanned", "distinct", "documents"),
    "norm_g_r": ("perp_share", "dim", "split_error"),
    **dict.fromkeys(("overlap", "subset_cosine", "pull_g_nt"), ("noise", "dim", "split_error")),
    "probe_count": ("threshold", "units", "present"),
    "score": ("majority",),
    "score_before": ("majority", *_BURST),
    "score_lag": ("majority", *_BURST),
    **dict.fromkeys(_COSINES, (*_INNER, "perp", "norm", "dim", "random_spread", "split_error")),
}
"""What stands beside them, by metric: in a metric not listed a `threshold` is a coordinate."""

FOLLOWING = frozenset(
    (
        *("tokens", "batch_size", "seq_len", "params_total", "d_model", "precision"),
        *("family", "schedule", "timing", "gap", "variant", "bits", "exposures_per_example"),
        *("rate_per_step", "rate_per_sequence", "rate_per_token", "task_tokens_per_token"),
        *("rate_low", "rate_high"),
        "reference",  # which natural statements were asked: asked otherwise, it is measured anew
    )
)
"""What follows from the run, its plan, step and task: said so that tables need no plan. Left out of
the identity, for a run that is resumed by a version that says more must not seem another. No
callback can have a field of these names (`ExperimentTrainer.record`)."""


def coordinates(row: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a measurement from all others: every field but outcomes and FOLLOWING, by name.

    A field that nobody here has heard of is one: a callback's own `head` needs no registration and
    is never dropped. A field without a value is as good as absent.
    """
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in sorted(row.items())
        if is_coordinate(name, metric=row["metric"])
        and value is not None
        and value == value  # NaN: a frame's word for absent
    }


@cache
def is_coordinate(name: str, *, metric: str) -> bool:
    """Whether a field of a metric's records is one of its `coordinates`."""
    left_out = name in OUTCOMES or name in FOLLOWING or name in OUTCOMES_OF.get(metric, ())
    return not (left_out or name.startswith("null_") or name.endswith("_seconds"))


def identity(row: Mapping[str, Any]) -> str:
    """`coordinates` as a string: of two rows with the same one the later replaces the earlier."""
    return json.dumps(coordinates(row))


OF_THE_RUN = ("run", "rung", "params", "seed", "plan_hash", "corpus_hash", "protocol")


def record_name(callback: str, row: Mapping[str, Any]) -> str:
    """A measurement's curve over a run's steps: "olmo_ext/task_eval/cmp/test/all/score".

    Made of the `coordinates` that differ within a run, so that two rows of a step are on two curves
    exactly if they are two records.
    """
    own = coordinates(row)
    for name in (*OF_THE_RUN, "learning_rate", "step"):
        own.pop(name, None)
    bare = [str(own.pop(name, "")) for name in ("task", "split", "subset", "group", "other_task")]
    layer = [f"layer{own.pop('layer')}"] if "layer" in own else []
    metric = own.pop("metric")
    parts = ["olmo_ext", callback, *bare, *layer, *(f"{k}={v}" for k, v in own.items()), metric]
    return "/".join(part for part in parts if part)


def check_record(record: Mapping[str, Any]) -> None:
    """Raise ValueError if a required field is missing or the value is not a number."""
    missing = [name for name in REQUIRED if name not in record]
    if missing:
        raise ValueError(f"record lacks {', '.join(missing)}; every record needs {REQUIRED}")
    value = record["value"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"record value of {record['metric']!r} must be a number, got {value!r}")


class RecordWriter:
    """Appends records to one file; each call is one write, all of it or nothing.

    Not-a-number values are written as null: JSON has no NaN, and "undefined" is not 0. What a
    killed writer left of a line is cut off first; the folder's lock must be held.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab", buffering=0)
        end_whole(self._file, self.path)

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        lines = []
        for record in records:
            check_record(record)
            clean = {
                k: None if isinstance(v, float) and not math.isfinite(v) else v
                for k, v in record.items()
            }
            lines.append(json.dumps(clean, allow_nan=False) + "\n")
        data, before = "".join(lines).encode(), self._file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:  # a full disk, which says not where
            self._file.truncate(before)
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def sync(self) -> None:
        """Force everything written so far onto the disk (called at checkpoints)."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def task_fields(plan: InjectionPlan, name: str, *, step: int) -> dict[str, Any]:
    """The fields of a record that say which task it is of and how often it was seen by `step`."""
    index = plan.task_index(name)
    task = plan.tasks[index]
    rates = plan.rates(index)
    return {
        "task": name,
        "family": task.family,
        "schedule": plan.schedules[index].label,
        "timing": plan.canonical["tasks"][name]["schedule"]["kind"],
        "gap": plan.schedules[index].gap,
        "variant": variant(plan, index),
        "bits": math.nan if task.shuffled else task.bits,
        "rate_per_step": rates["per_step"],
        "rate_per_sequence": rates["per_sequence"],
        "rate_per_token": rates["per_token"],
        "exposures_per_example": plan.exposures_per_example(index, step),
    }


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
    """All records of a file, run or folder of runs: of each measurement (`identity`) the last row.

    Returns a frame with the columns of REQUIRED first; optional fields are missing (NaN) where a
    metric has none. Raises FileNotFoundError if there are no record files, ConfigError on a line
    that is no record (one that a kill cut off is skipped with a warning), and where two files have
    other values of one measurement: two runs of a name, which nothing in their rows tells apart.
    """
    latest: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in record_files(source):
        own: dict[str, dict[str, Any]] = {}
        for row in whole_rows(path, REQUIRED):
            key = identity(row)
            own.pop(key, None)  # so that the row stands where it was measured last
            own[key] = row
        for key, row in own.items():
            other, before = latest.pop(key, (path, row))
            told, here = before["value"], row["value"]
            if told != here and (told == told or here == here):  # a copy of a folder is no other
                rule = f"must be one run's name, but in {other} its {row['metric']} at step "
                rule += f"{row['step']} is {told}, here {here}"
                remedy = "read folder by folder, or as eval.report.write.load_runs, which names it"
                raise ConfigError(key=f"{path}: run", value=row["run"], rule=rule, remedy=remedy)
            latest[key] = path, row
    frame = pd.DataFrame([row for _, row in latest.values()])
    if frame.empty:
        return pd.DataFrame(columns=list(REQUIRED))
    frame["value"] = frame["value"].astype(float)
    return frame[[*REQUIRED, *[name for name in frame.columns if name not in REQUIRED]]]


def records_of(folder: Path, *columns: str) -> pd.DataFrame:
    """The records of one run, none where it has none yet; with these columns at least."""
    file = folder / FILE_NAME
    frame = read_records(file) if file.is_file() else pd.DataFrame(columns=list(REQUIRED))
    return frame.reindex(columns=[*frame, *(name for name in columns if name not in frame)])
