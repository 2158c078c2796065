"""A table of runs (params, tokens, loss) for a scaling law: from CSV, Parquet or a folder of runs.

    table = read_losses("runs/sweep")
    table.frame, table.notes, table.sha256

From runs of ours the loss is the record `train_loss` of the last step: the engine's
train/CrossEntropyLoss, the mean over all tokens of the one batch of that step, the few injected
ones among them. It is measured before the batch is trained on, so on host text that is new as long
as the run reads its corpus once.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data_injection.errors import ConfigError
from eval.records import read_records, record_files
from eval.run import RUN, read_if_whole, whole
from eval.text import number
from theory.same import clusters
from theory.scaling.law import FLOPS
from theory.scaling.runs import positive

COLUMNS = ("params", "tokens", "loss")
METRIC = "train_loss"
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
SAME = ("learning_rate", "batch_size", "seq_len", "protocol", "plan_hash")
"""What runs of one law share or else differ by: named where it differs within a size."""


@dataclass(frozen=True)
class LossTable:
    """Rows of params, tokens, loss and run, and what a reader must know of them."""

    frame: pd.DataFrame
    kind: str
    """What the loss is, in words."""

    notes: tuple[str, ...]
    sha256: str
    """Of the file; of the names and bytes of all record files for a folder."""


def read_losses(source: str | Path, *, names: Mapping[str, str] | None = None) -> LossTable:
    """Read a table of runs.

    names: the file's own column names by ours ("loss": "val_loss"), for CSV and Parquet; "flops" in
    place of "tokens" means D = C / 6 N. A column `run` is taken as the name of the run: rows of one
    are resampled together.

    Raises FileNotFoundError or ConfigError naming what is missing and what to do. The numbers are
    checked by `theory.scaling.runs.Runs`.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(
            f"no file or folder {source}; give a CSV or Parquet file with the columns "
            f"{', '.join(COLUMNS)}, or a folder of runs"
        )
    if source.is_dir() or source.suffix == ".jsonl":
        if names:
            rule = f"names a column of a CSV or Parquet file, but {source} holds records"
            raise ConfigError(key=f"--{next(iter(names))}", rule=rule, remedy="leave it out")
        return _from_records(source)
    return _from_file(source, dict(names or {}))


def _from_file(path: Path, names: dict[str, str]) -> LossTable:
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            _check_shape(path)
            frame = pd.read_csv(path)
    except ConfigError:
        raise
    except Exception as error:  # each parser has its own
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "give a CSV with a header line, or .parquet"
        raise ConfigError(key=str(path), rule=f"cannot be read ({first})", remedy=remedy) from None
    if "flops" in names and "tokens" in names:
        raise ConfigError(key="--tokens and --flops", rule="both say what D is", remedy="give one")
    third = "flops" if "flops" in names else "tokens"
    wanted = {name: names.get(name, name) for name in ("params", third, "loss")}
    if missing := [column for column in wanted.values() if column not in frame.columns]:
        rule = f"has no column {', '.join(missing)}, but {', '.join(map(str, frame.columns))}"
        remedy = "rename it, or name it with --params, --tokens (or --flops), --loss"
        raise ConfigError(key=str(path), rule=rule, remedy=remedy)
    found = frame[list(wanted.values())].set_axis(list(COLUMNS), axis=1)
    notes: tuple[str, ...] = ()
    if third == "flops":
        size, work = positive("params", found.params), positive(wanted["flops"], found.tokens)
        found["tokens"] = work / (FLOPS * size)
        notes = (f"tokens are column {wanted['flops']} / ({FLOPS:g} params)",)
    if "run" in frame.columns:
        if rows := [row for row, empty in enumerate(frame["run"].isna(), start=1) if empty]:
            some = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
            rule = f"is empty in {len(rows)} of {len(frame)} rows ({some})"
            remedy = "name every row's run, or leave the column out where each row is a run"
            raise ConfigError(key=f"{path}: column run", rule=rule, remedy=remedy)
        found["run"] = frame["run"].astype(str)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    kind = f"column {wanted['loss']} of {path.name}, nats per token"
    return LossTable(found, kind, notes, digest)


def _check_shape(path: Path) -> None:
    """Raise ConfigError for a CSV of other separators or names, which pandas would read shifted."""
    if b"\0" in path.read_bytes():
        rule = "holds NUL bytes, at which pandas would cut a number off, or is UTF-16"
        raise ConfigError(key=str(path), rule=rule, remedy="save it as UTF-8 text")
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        head = next(lines, [])
        rows = ((len(row), lines.line_num) for row in lines)
        longest, line = max(rows, key=lambda one: one[0], default=(0, 0))
    if len(head) == 1 and (found := [one for one in SEPARATORS if one in head[0]]):
        comma = "" if longest < 2 else ", and decimal commas for points"
        rule = f"is separated by {SEPARATORS[found[0]]}, not by commas"
        raise ConfigError(key=str(path), rule=rule, remedy=f"save it with commas{comma}")
    for name in head:
        key = f"{path}: the column name {name!r}"
        if head.count(name) > 1:
            raise ConfigError(key=key, rule="stands twice", remedy="rename one")
        if name != name.strip():
            remedy = "save the header without (and the values)"
            raise ConfigError(key=key, rule="has spaces around it", remedy=remedy)
    if head and longest > len(head):
        rule = f"has {longest} values, the header {len(head)} names ({', '.join(head)}), so that "
        rule += "the columns would be shifted"
        raise ConfigError(key=f"{path}: line {line}", rule=rule, remedy="name every column")


def _from_records(source: Path) -> LossTable:
    files = record_files(source)
    root = source if source.is_dir() else source.parent
    digest, rows, notes, seen = hashlib.sha256(), [], [], []
    for file in files:
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
        for name, run in read_records(file).groupby("run", sort=True):
            label = str(file.parent.relative_to(root)) if len(files) > 1 else str(name)
            losses = run[(run.metric == METRIC) & (run.task == "")].sort_values("step")
            if losses.empty:
                notes.append(f"{label} is left out: it has no record {METRIC} (callback task_eval)")
                continue
            last = losses.iloc[-1]
            planned = whole(read_if_whole(file.parent / RUN), "num_steps")
            if planned is not None and last.step < planned:
                notes.append(
                    f"{label} is left out: it is at step {last.step:,} of {planned:,}, and the "
                    "loss on the way is not that of a run planned to end there"
                )
                continue
            rows.append(
                {"params": last.params, "tokens": last.tokens, "loss": last.value, "run": label}
            )
            seen.append(last)
    if not rows:
        remedy = "train with the callback task_eval, and to the end"
        remedy += "".join(f"\n  {note}" for note in notes[:3])
        rule = f"has no finished run with a record {METRIC} in or below it"
        raise ConfigError(key=str(source), rule=rule, remedy=remedy)
    notes += _differences(pd.DataFrame(seen))
    kind = (
        f"record {METRIC}: the engine's train/CrossEntropyLoss of the last step's batch, injected "
        "tokens included, nats per token; params without the input embedding"
    )
    return LossTable(pd.DataFrame(rows), kind, tuple(notes), digest.hexdigest())


def _differences(runs: pd.DataFrame) -> Iterable[str]:
    """What differs between the runs beside N, D and seed. Raises ConfigError for two corpora."""
    corpora = sorted(
        {str(one)[:12] for one in runs.get("corpus_hash", pd.Series(dtype=str)).dropna()}
    )
    if len(corpora) > 1:
        rule = f"were trained on {len(corpora)} corpora, whose losses are no one law's"
        remedy = "give a folder with the runs of one"
        raise ConfigError(key="the runs", value=corpora, rule=rule, remedy=remedy)
    for name in SAME:
        values = runs[name].dropna().unique() if name in runs else []
        within = runs.groupby(clusters(runs.params))[name].nunique().max() if len(values) else 0
        if within > 1:
            shown = [number(v) if isinstance(v, float) else str(v)[:12] for v in sorted(values)[:4]]
            yield (
                f"runs of one size differ in {name} ({', '.join(shown)}"
                + (", ..." if len(values) > 4 else "")
                + "): what it does to the loss counts as noise here"
            )
