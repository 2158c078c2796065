"""From records to the surfaces that advice is read off: which runs belong together.

    groups, left_out = load_groups(Path("runs/quickstart"), Question(size="w64"))

Tasks of different protocol or family never share a surface (as in eval.scores.cells). Runs that
differ in the gap between bursts alone do, and with a question about bits all families of a protocol
do.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from data_injection.errors import ConfigError
from data_injection.schedules.base import UNITS
from eval.records import record_files
from eval.report.write import load_runs
from eval.scores.cells import run_rows
from eval.scores.rows import run_names
from eval.statistics import MIN_SEEDS
from theory.advice.surface import Surface, fit_surface
from theory.same import merged

SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}
RESPONSES = ("learned", "score")
SAME_BATCH = 1e-3
"""Relative difference up to which two runs' units of frequency are the same."""


@dataclass(frozen=True)
class Question:
    """What is asked, as typed."""

    frequency: str | None = None
    size: str | None = None
    unit: str | None = None
    """One of UNITS; None is per step, or per token where the sizes' batches differ."""

    gap: float | None = None
    """Steps between bursts; None is the longest measured, where gaps were varied."""

    bits: float | None = None
    family: str | None = None
    protocol: str | None = None
    run: str | None = None
    """Glob over names of runs."""

    response: Literal["learned", "score"] = "learned"


@dataclass
class Group:
    """The runs of one protocol and family, their surface, and what was answered."""

    protocol: str
    family: str
    rows: pd.DataFrame
    """params, rung, frequency (in `unit`), gap, bits, run, seed, score."""

    unit: str
    surface: Surface
    units: Mapping[str, float]
    """Each unit's value of one instance in `unit`; those that differ between runs are left out."""

    note: str = ""
    lines: list[str] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    asked: dict[str, float] = field(default_factory=dict)


def load_groups(source: Path, question: Question) -> tuple[list[Group], list[str]]:
    """A surface for each protocol and family, and why the others have none."""
    check_choices(question)
    frame, _ = load_runs(source)
    # Before families are named: a rung's second learning rate would else join the name.
    frame = _fitting(frame, "run", question.run, question.run, option="run")
    rows = _chosen(run_rows(frame), question)
    surfaces: list[Group] = []
    left_out: list[str] = []
    for (protocol, family), group in rows.groupby(["protocol", "setting"], sort=True):
        try:
            surfaces.append(_group(str(protocol), str(family), group, question))
        except ValueError as error:  # ConfigError is one
            left_out.append(f"{family}, {protocol}: {error}")
    if not surfaces:
        reasons = "; ".join(left_out)
        rule = f"hold no surface to advise from: {reasons}"
        raise ConfigError(key=f"the records of {source}", rule=rule)
    return surfaces, left_out


def check_choices(question: Question) -> None:
    """Raise ConfigError for a unit or response that is none: no fault of the records."""
    for key, value, known in (
        ("--unit", question.unit or UNITS[0], UNITS),
        ("--response", question.response, RESPONSES),
    ):
        if value not in known:
            raise ConfigError(key=key, value=value, rule=f"must be one of {', '.join(known)}")


def _chosen(rows: pd.DataFrame, question: Question) -> pd.DataFrame:
    """The rows of the families and protocol asked for, with the column `setting`."""
    if not (rows.rate_per_step > 0).any():
        rule = "is 0 in every record of a task"
        remedy = "a threshold needs tasks that come, at two frequencies at least"
        raise ConfigError(key="rate_per_step", rule=rule, remedy=remedy)
    rows = rows[rows.rate_per_step > 0].copy()
    # Bursts that differ in the gap alone share a surface.
    bursts = (rows.timing == "burst") & rows.gap.notna()
    rows["setting"] = [
        name.replace(f", {schedule}", "", 1) + ", bursts" if burst else name
        for name, schedule, burst in zip(rows.family, rows.schedule, bursts, strict=True)
    ]
    if question.bits is not None:
        if rows.bits.isna().all():
            rule = "needs records of the complexity, which these do not hold"
            raise ConfigError(key="--bits", rule=rule, remedy="leave it out")
        rows = rows[rows.bits.notna()].assign(setting="all families")
    rows = _fitting(rows, "protocol", question.protocol, question.protocol, option="protocol")
    if question.family in set(rows.setting):
        return rows[rows.setting == question.family]
    return _fitting(rows, "setting", question.family, f"*{question.family}*", option="family")


def _fitting(
    rows: pd.DataFrame, column: str, wanted: str | None, glob: str | None, *, option: str
) -> pd.DataFrame:
    """The rows whose column fits a glob, all where nothing is asked for."""
    if wanted is None:
        return rows
    kept = rows[[fnmatch.fnmatchcase(str(text), str(glob)) for text in rows[column]]]
    if kept.empty:
        seen = ", ".join(repr(name) for name in sorted(set(rows[column]))[:8])
        raise ConfigError(key=f"--{option}", value=wanted, rule=f"must fit one of {seen}")
    return kept


def _group(protocol: str, family: str, rows: pd.DataFrame, question: Question) -> Group:
    rates = rows[[f"rate_{unit}" for unit in UNITS]].astype(float).set_axis(list(UNITS), axis=1)
    unit, note = _unit(rates, question.unit)
    table = pd.DataFrame(
        {
            # Those that rounding alone tells apart are one size, one frequency.
            "params": merged(rows.params),
            "rung": rows.rung,
            "frequency": merged(rates[unit]),
            "gap": rows.gap.astype(float),
            "bits": rows.bits.astype(float),
            "run": run_names(rows),
            "seed": rows.seed,
            "score": rows.value,
        }
    )
    names = ["params"] if table.frequency.nunique() == 1 else ["params", "frequency"]
    if table.gap.notna().all() and table.groupby(["params", "frequency"]).gap.nunique().max() > 1:
        names.append("gap")
    if question.bits is not None:
        names.append("bits")
    if names == ["params"]:
        rule = "has one value only; a threshold needs at least two, or two gaps"
        raise ConfigError(key="frequency", rule=rule)
    surface = fit_surface(table, covariates=names, response=question.response)
    point = [name for name in ("gap", "bits") if name in names]
    alike = table.assign(task=rows.task).groupby(["params", "frequency", *point, "seed", "task"])
    if alike.run.nunique().max() > 1:
        note += " some cells hold several runs of one seed: choose with --run if they differ;"
    if surface.num_seeds < MIN_SEEDS:
        note += f" fewer than {MIN_SEEDS} seeds: provisional;"
    units = {
        name: float((rates[name] / rates[unit]).mean())
        for name in UNITS
        if (rates[name] / rates[unit]).notna().all() and _constant(rates[name] / rates[unit])
    }
    return Group(protocol, family, table, unit, surface, units, note.strip(" ;"))


def _unit(rates: pd.DataFrame, asked: str | None) -> tuple[str, str]:
    """The unit to fit in, and what must be said of it."""
    same = _constant(rates.per_token / rates.per_step)
    known = rates.per_token.notna().all()
    unit = asked or ("per_step" if same or not known else "per_token")
    if rates[unit].isna().any():
        rule = "must be one that all records hold"
        raise ConfigError(key="--unit", value=unit, rule=rule, remedy="ask in another")
    if unit == "per_step" and known and not same:
        return unit, "batches differ, so that a rate per step is not one frequency over the sizes;"
    return unit, ""


def _constant(values: pd.Series) -> bool:
    return bool(values.max() <= values.min() * (1 + SAME_BATCH))


def parse_size(text: str, rows: pd.DataFrame) -> float:
    """Parameters (without the input embedding) of a rung's name, or of a number like 98.5K, 1B."""
    named = rows.loc[rows.rung == text, "params"].unique()
    if len(named):
        return float(named[0])
    match = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*([KMB]?)", text.strip(), re.IGNORECASE)
    with contextlib.suppress(ValueError):
        size = float(match[1]) * SUFFIXES[match[2].upper()] if match else math.nan
        if math.isfinite(size) and size > 0:
            return size
    rungs = ", ".join(dict.fromkeys(rows.sort_values("params").rung))
    rule = f"must be a rung of the records ({rungs}) or parameters such as 98.5K"
    raise ConfigError(key="--size", value=text, rule=rule)


def records_hash(source: Path) -> str:
    """sha256 over the record files, in their order."""
    digest = hashlib.sha256()
    for file in record_files(source):
        digest.update(file.read_bytes())
    return digest.hexdigest()
