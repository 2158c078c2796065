"""From records to the surfaces that advice is read off: which runs belong together.

    groups, left_out = load_groups(Path("runs/quickstart"), Question(size="w64"))

Tasks of different protocol or family never share a surface (as in eval.scores.cells). Runs that
differ in the gap between bursts alone do, and with a question about bits all families of a protocol
do.
"""

from __future__ import annotations

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
    if question.run is not None:
        # Before families are named: a rung's second learning rate would else join the name.
        kept = [fnmatch.fnmatchcase(str(name), question.run) for name in frame.run]
        if not any(kept):
            seen = ", ".join(repr(name) for name in sorted(set(frame.run))[:8])
            raise ConfigError(f"--run {question.run!r} fits none of {seen}, ...")
        frame = frame[kept]
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
        raise ConfigError(f"the records of {source} hold no surface to advise from: {reasons}")
    return surfaces, left_out


def check_choices(question: Question) -> None:
    """Raise ConfigError for a unit or response that is none: no fault of the records."""
    if question.unit is not None and question.unit not in UNITS:
        raise ConfigError(f"--unit must be one of {', '.join(UNITS)}, got {question.unit!r}")
    if question.response not in RESPONSES:
        raise ConfigError(
            f"--response must be one of {', '.join(RESPONSES)}, got {question.response!r}"
        )


def check_target(path: Path | None, option: str) -> None:
    """Raise ConfigError, before any answer, for a file that cannot be written for its folder."""
    if path is not None and path.is_dir():
        raise ConfigError(f"{option} must be a file, got the folder {path}")
    if path is not None and not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}; make it first")


def _chosen(rows: pd.DataFrame, question: Question) -> pd.DataFrame:
    """The rows of the families and protocol asked for, with the column `setting`."""
    if not (rows.rate_per_step > 0).any():
        raise ConfigError(
            "rate_per_step is 0 in every record of a task; a threshold needs tasks that come, at "
            "two frequencies at least"
        )
    rows = rows[rows.rate_per_step > 0].copy()
    rows["setting"] = [_without_gap(row) for row in rows.to_dict("records")]
    if question.bits is not None:
        if "bits" not in rows or rows.bits.dropna().empty:
            raise ConfigError("--bits: these records hold no complexity; leave it out")
        rows = rows[rows.bits.notna()].assign(setting="all families")
    for column, wanted, pattern in (
        ("protocol", question.protocol, question.protocol),
        ("setting", question.family, f"*{question.family}*"),
    ):
        if wanted is None:
            continue
        if column == "setting" and (rows.setting == wanted).any():
            kept = rows.setting == wanted
        else:
            kept = rows[column].map(lambda text, p=pattern: fnmatch.fnmatchcase(str(text), str(p)))
        if not kept.any():
            option = "family" if column == "setting" else column
            seen = ", ".join(repr(name) for name in sorted(set(rows[column]))[:8])
            raise ConfigError(f"--{option} {wanted!r} fits none of {seen}")
        rows = rows[kept]
    return rows


def _without_gap(row: Mapping[str, Any]) -> str:
    """The family with its variant, but for a burst schedule's gap: gaps share a surface."""
    family, schedule, gap = str(row["family"]), row.get("schedule"), row.get("gap")
    if isinstance(schedule, str) and schedule.startswith("burst") and pd.notna(gap):
        return family.replace(f", {schedule}", "", 1) + ", bursts"
    return family


def _group(protocol: str, family: str, rows: pd.DataFrame, question: Question) -> Group:
    rates = _rates(rows)
    unit, note = _unit(rates, question.unit)
    table = pd.DataFrame(
        {
            # Those that rounding alone tells apart are one size, one frequency.
            "params": merged(rows.params),
            "rung": rows.rung,
            "frequency": merged(rates[unit]),
            "gap": rows.gap.astype(float) if "gap" in rows else math.nan,
            "bits": rows.bits.astype(float) if "bits" in rows else math.nan,
            # Two folders may hold runs of one name, and a name may stand for several seeds.
            "run": rows[["folder", "run", "rung", "seed"]].astype(str).agg(" ".join, axis=1),
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
        raise ConfigError("one frequency only; a threshold needs at least two, or two gaps")
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


def _rates(rows: pd.DataFrame) -> pd.DataFrame:
    """Each row's frequency in the three units, as eval.scores.cells has them; NaN if unknown."""
    per_step = rows.rate_per_step.astype(float)
    nothing = pd.Series(math.nan, index=rows.index)
    per_sequence = rows.rate_per_sequence if "rate_per_sequence" in rows else nothing
    per_token = rows.rate_per_token if "rate_per_token" in rows else nothing
    batch = rows.batch_size if "batch_size" in rows else nothing
    tokens = rows.tokens / rows.step.where(rows.step > 0)
    return pd.DataFrame(
        {
            "per_step": per_step,
            "per_sequence": per_sequence.astype(float).fillna(per_step / batch),
            "per_token": per_token.astype(float).fillna(per_step / tokens),
        }
    )


def _unit(rates: pd.DataFrame, asked: str | None) -> tuple[str, str]:
    """The unit to fit in, and what must be said of it."""
    same = _constant(rates.per_token / rates.per_step)
    known = rates.per_token.notna().all()
    unit = asked or ("per_step" if same or not known else "per_token")
    if rates[unit].isna().any():
        raise ConfigError(f"--unit {unit}: some records do not hold it; ask in another")
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
    try:
        size = float(match[1]) * SUFFIXES[match[2].upper()] if match else math.nan
    except ValueError:
        size = math.nan
    if not (math.isfinite(size) and size > 0):
        rungs = ", ".join(dict.fromkeys(rows.sort_values("params").rung))
        raise ConfigError(
            f"--size must be a rung of the records ({rungs}) or parameters such as 98.5K, got "
            f"{text!r}"
        )
    return size


def records_hash(source: Path) -> str:
    """sha256 over the record files, in their order."""
    digest = hashlib.sha256()
    for file in record_files(source):
        digest.update(file.read_bytes())
    return digest.hexdigest()
