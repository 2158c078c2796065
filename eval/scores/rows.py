"""The rows of records that cells are made of, each with what older records leave unsaid.

rows = task_rows(read_records("runs/quickstart"))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import pandas as pd

from data_injection.errors import ConfigError

FOUND = (
    *("subset", "variant", "schedule", "timing", "gap", "bits", "learning_rate", "d_model"),
    *("batch_size", "rate_per_sequence", "rate_per_token", "low", "high", "n", "majority", "layer"),
    *("corpus_hash", "perp_share"),
)
"""Columns that `task_rows` has whether a record said them or not."""

Options = ParamSpec("Options")
Table = Callable[Concatenate[pd.DataFrame, Options], pd.DataFrame]
_KEPT: ContextVar[dict[Any, Any] | None] = ContextVar("kept", default=None)


@contextmanager
def each_once() -> Iterator[None]:
    """Inside, what is marked `once` is worked out once a frame, which nobody may change meanwhile:
    a report's figures and tables ask for the same ones many times."""
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def once(function: Table[Options]) -> Table[Options]:
    """Mark a table that is made of a frame and of options alone."""

    @wraps(function)
    def found(frame: pd.DataFrame, *args: Options.args, **options: Options.kwargs) -> pd.DataFrame:
        if (kept := _KEPT.get()) is None:
            return function(frame, *args, **options)
        key = (function, id(frame), *args, *options.items())
        if key not in kept:  # with the frame, or another could come to have its id
            kept[key] = (frame, function(frame, *args, **options))
        return kept[key][1].copy(deep=False)

    return found


@once
def task_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The defined measurements of tasks over all their pairs: no step losses, no mirror subsets.

    Rates are rounded to four digits, so that a schedule that rounds its total over the run's steps
    still falls in its own column. Where a record has a variant (another schedule, offset, number of
    symbols or parameter than the study's), it joins the family's name, as does what `told_apart`
    says: such cells never merge. Columns of FOUND that no record has are NaN; rates in the other
    units, and the timing, are worked out where older records do not say them.
    """
    one_precision(frame)
    chosen = (frame.task != "") & (frame.family != "") & frame.value.notna()
    if "subset" in frame:
        chosen &= frame.subset.isna() | (frame.subset == "all")
    rows = frame[chosen]
    rows = rows.reindex(columns=[*rows, *(name for name in FOUND if name not in rows)])
    rates = {value: float(f"{value:.4g}") for value in rows.rate_per_step.unique()}
    rate = rows.rate_per_step.map(rates).astype(float)
    variant = rows.variant.fillna("")
    family = rows.family.where(variant == "", rows.family + ", " + variant)
    tokens_per_step = rows.tokens / rows.step.where(rows.step > 0)
    return rows.assign(
        rate_per_step=rate,
        rate_per_sequence=rows.rate_per_sequence.astype(float).fillna(rate / rows.batch_size),
        rate_per_token=rows.rate_per_token.astype(float).fillna(rate / tokens_per_step),
        timing=timing(rows),
        family=family + told_apart(rows),
    )


CONTROLS = {"learning_rate": ", learning rate {:g}", "corpus_hash": ", corpus {:.8}"}
"""What no table averages over where a rung has several, and how a name says it."""


def told_apart(rows: pd.DataFrame, texts: Mapping[str, str] = CONTROLS) -> pd.Series:
    """ ", learning rate 0.003, corpus 0fb8f25e" of rows whose rung has several; else nothing.

    Along the ladder they go with the size; where one size has several, they are a control, and no
    table may average over them.
    """
    said = pd.Series("", index=rows.index, dtype=object)
    for column, text in texts.items():
        if column in rows:
            num = rows.groupby(["family", "rung", "params"])[column].transform("nunique")
            several = (num > 1) & rows[column].notna()
            told = rows[column][several].map(text.format).astype(str)  # text even of no row
            said = said.where(~several, said + told.reindex(rows.index))
    return said


def one_precision(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame. Raises ConfigError if its runs computed in several precisions, as far as records
    say: what bf16 does to a score is nothing that a table should average or compare unsaid."""
    said = frame.precision.dropna().unique() if "precision" in frame else []
    if len(said) > 1:
        rule = "must be one in a table, and the records are of runs in several"
        remedy = "read the folders of one precision at a time"
        raise ConfigError(key="precision", value=", ".join(said), rule=rule, remedy=remedy)
    return frame


def timing(rows: pd.DataFrame) -> pd.Series:
    """The kind of schedule of each row: even, burst, window, ...

    Records of before say it in words alone: their schedule, or variant, begins with it.
    """
    words = rows.schedule.fillna(rows.variant).fillna("").astype(str)
    known = words.str.extract(r"^(burst|window|trace|random|bernoulli)\b")[0].fillna("even")
    return rows.timing.fillna(known)


def setting(rows: pd.DataFrame) -> pd.Series:
    """What sets a task apart from the study's besides its schedule: "40 symbols", or nothing."""
    said = rows[["variant", "schedule"]].fillna("").astype(str).itertuples(index=False)
    text = [one.variant.removeprefix(one.schedule).removeprefix(", ") for one in said]
    return pd.Series(text, index=rows.index, dtype=object)


def run_names(rows: pd.DataFrame) -> pd.Series:
    """A name for each run: two folders may hold one of the same name, and a name several seeds."""
    told = [name for name in ("folder", "run", "rung", "seed") if name in rows]
    return rows[told].astype(str).agg(" ".join, axis=1)
