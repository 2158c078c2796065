"""`olmo-ext scaling advise`: what a sweep's records say about size and frequency, in a line each.

    olmo-ext scaling advise runs/quickstart --size w64
    olmo-ext scaling advise runs/quickstart --frequency 4 --json advice.json

Tasks of different protocol or family never share a surface (as in eval.grid). Runs that differ in
the gap between bursts alone do, and with --bits all families of a protocol do.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from data_injection.config import ConfigError
from data_injection.schedule import UNITS, parse_rate
from eval.grid import run_rows
from eval.plots import count, number
from eval.records import read_records, record_files
from theory.advisor import (
    Exchange,
    Surface,
    Threshold,
    exchange,
    fit_surface,
    misplaced,
    no_trend,
    threshold,
)

if TYPE_CHECKING:
    from rich.console import Console

SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}
UNIT_WORDS = {"per_step": "per step", "per_sequence": "per sequence", "per_token": "per token"}
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


def advise(
    source: Path,
    *,
    question: Question,
    out: Path | None,
    as_json: Path | None,
    command: str,
    console: Console,
) -> None:
    """Print a line per answer; write advice.png (to `out`, or beside the runs) and the JSON.

    Raises ConfigError or FileNotFoundError, with what to do, where the records hold no surface.
    """
    from olmo_ext.run_folder import git_commit

    if question.frequency is None and question.size is None:
        raise ConfigError("give --frequency, --size or both; there is nothing to advise on")
    found, left_out = load_groups(source, question)
    for group in found:
        answer(group, question)
    told = {
        "command": command,
        "commit": git_commit(),
        "records": str(source),
        "records_sha256": records_hash(source),
        "interval": "95%, leave-one-run-out jackknife, Student's t, Fieller",
        "response": question.response,
        "groups": [as_table(group) for group in found],
        "left_out": left_out,
    }
    for group in found:
        for line in group.lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if left_out:
        console.print(
            f"({len(left_out)} other groups of tasks left out: {left_out[0]}"
            f"{'; ...' if len(left_out) > 1 else ''})",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    _write(source, out, as_json, found, told, console)


def _write(
    source: Path,
    out: Path | None,
    as_json: Path | None,
    found: list[Group],
    told: dict[str, Any],
    console: Console,
) -> None:
    from eval.plots import png
    from eval.records import replace_file
    from launch.advise_plots import thresholds

    folder = out or (source if source.is_dir() else source.parent)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = replace_file(folder / "advice.png", png(thresholds(found, told)))
    console.print(str(drawn), markup=False, highlight=False, soft_wrap=True)
    if as_json is not None:
        replace_file(as_json, (json.dumps(_finite(told), indent=1) + "\n").encode())
        console.print(str(as_json), markup=False, highlight=False, soft_wrap=True)


# -- records to surfaces ---------------------------------------------------------------------------


def load_groups(source: Path, question: Question) -> tuple[list[Group], list[str]]:
    """A surface for each protocol and family, and why the others have none."""
    frame = read_records(source)
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


def _chosen(rows: pd.DataFrame, question: Question) -> pd.DataFrame:
    """The rows of the families and protocol asked for, with the column `setting`."""
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
            "params": rows.params.astype(float),
            "rung": rows.rung,
            "frequency": rates[unit],
            "gap": rows.gap.astype(float) if "gap" in rows else math.nan,
            "bits": rows.bits.astype(float) if "bits" in rows else math.nan,
            # Two folders may hold runs of one name; a seed of another size is another run anyway.
            "run": rows.run.astype(str) + " " + rows.rung.astype(str) + " " + rows.seed.astype(str),
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
    units = {
        name: float((rates[name] / rates[unit]).mean())
        for name in UNITS
        if (rates[name] / rates[unit]).notna().all() and _constant(rates[name] / rates[unit])
    }
    return Group(protocol, family, table, unit, surface, units, note.strip(" ;"))


def _rates(rows: pd.DataFrame) -> pd.DataFrame:
    """Each row's frequency in the three units, as eval.grid finds them; NaN where unknown."""
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
    if asked is not None and asked not in UNITS:
        raise ConfigError(f"--unit must be one of {', '.join(UNITS)}, got {asked!r}")
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


# -- questions to answers --------------------------------------------------------------------------


def answer(group: Group, question: Question) -> None:
    """Add to a group its lines and answers."""
    surface, rows = group.surface, group.rows
    size = None if question.size is None else parse_size(question.size, rows)
    frequency = None
    if question.frequency is not None:
        frequency = float(parse_rate(question.frequency, key="--frequency"))
        if frequency == 0:
            raise ConfigError("--frequency must be above 0; a task that never comes is not learned")
    fixed = _fixed(group, question)
    group.asked = {
        name: value
        for name, value in (("params", size), ("frequency", frequency))
        if value is not None
    } | fixed
    group.lines.append(_head(group, question))
    if size is not None and "frequency" not in surface.covariates:
        group.lines.append("  f*(N) is not said: the records have one frequency only")
    elif size is not None:
        _frequency_for(group, size, frequency, fixed)
    if frequency is not None:
        _size_for(group, frequency, fixed)
    _worth(group)
    wrong = misplaced(surface, rows, response=question.response)
    num_cells = len(rows[list(surface.covariates)].drop_duplicates())
    if len(wrong):
        group.lines.append(
            f"  of {num_cells} measured cells {len(wrong)} lie on the other side of the fitted line"
        )
    group.answers.append({"cells": num_cells, "misplaced": wrong.to_dict("records")})


def _fixed(group: Group, question: Question) -> dict[str, float]:
    """Gap and complexity at which the question is asked."""
    fixed: dict[str, float] = {}
    if "gap" in group.surface.covariates:
        fixed["gap"] = question.gap or group.surface.ranges["gap"][1]
    elif question.gap is not None:
        group.note = "; ".join(
            filter(None, [group.note, "--gap has no effect: each frequency was measured at one"])
        )
    if question.bits is not None:
        fixed["bits"] = question.bits
    return fixed


def _head(group: Group, question: Question) -> str:
    surface = group.surface
    what = "score" if question.response == "score" else f"{surface.num_learned:.0f} learned"
    note = f"; {group.note}" if group.note else ""
    return (
        f"{group.family}, {group.protocol} protocol: {surface.num_cells} tasks in "
        f"{surface.num_runs} runs, {surface.num_seeds} seeds, {what}{note}"
    )


def _frequency_for(
    group: Group, size: float, frequency: float | None, fixed: dict[str, float]
) -> None:
    """f*(N), and the upsampling that a frequency needs."""
    found = threshold(group.surface, of="frequency", at={"params": size, **fixed})
    who = f"{count(size)} parameters{_rung_of(group, size)}{_at(fixed)}"
    if found.status in ("inside", "provisional"):
        said = f"  {who}: learned from {_rate(group, found.value)} on{_interval(group, found)}"
    elif found.beyond:
        said = f"  {who}: learned only {found.beyond} {_rate(group, found.edge)}, if at all: "
        said += f"{found.reason}"
        if found.beyond == "below":
            said = f"  {who}: learned at every frequency measured: {found.reason}"
    else:
        said = f"  {who}: no advice: {found.reason}"
    if found.status == "inside" and no_trend(group.surface, "params"):
        said += "; size makes no clear difference in these records"
    group.lines.append(said)
    group.answers.append({"question": "frequency for a size", "params": size} | _told(found))
    if frequency is None or found.status not in ("inside", "provisional"):
        return
    factors = [value / frequency for value in (found.value, found.low, found.high)]
    most = group.surface.ranges["frequency"][1] / frequency
    high = f"{factors[2]:.2g}" if factors[2] <= most else f"above {most:.2g}"
    bounds = "" if math.isnan(factors[1]) else f" [{factors[1]:.2g}, {high}]"
    if found.high < frequency:
        said = f"{_rate(group, frequency)} is enough"
    elif factors[0] <= 1:
        said = f"{_rate(group, frequency)} is likely enough, not surely (needs × {factors[0]:.2g}"
        said += f"{bounds})"
    else:
        said = f"from {_rate(group, frequency)} that is upsampling × {factors[0]:.2g}{bounds}"
    group.lines.append(f"    {said}")
    group.answers[-1] |= {"given": frequency, "upsampling": factors}


def _size_for(group: Group, frequency: float, fixed: dict[str, float]) -> None:
    """N*(f), and the first rung at or above it."""
    at = {"frequency": frequency, **fixed}
    if "frequency" not in group.surface.covariates:
        only = float(group.rows.frequency.iloc[0])
        if not math.isclose(frequency, only, rel_tol=1e-3):
            group.lines.append(f"  N*(f) is not said: only {_rate(group, only)} was measured")
            return
        at = dict(fixed)
    found = threshold(group.surface, of="params", at=at)
    who = f"{_rate(group, frequency)}{_at(fixed)}"
    if found.status in ("inside", "provisional"):
        sizes = group.rows[["params", "rung"]].drop_duplicates().sort_values("params")
        first = sizes[sizes.params >= found.value * (1 - 1e-9)].iloc[0]
        said = f"  {who}: least size {count(found.value)} parameters{_interval(group, found)}; the "
        said += f"first measured rung there is {first.rung} ({count(first.params)})"
    elif found.beyond == "below":
        said = f"  {who}: learned at every size measured, from {count(found.edge)} parameters on: "
        said += found.reason
    elif found.beyond:
        said = f"  {who}: needs more than {count(found.edge)} parameters, if size does it: "
        said += found.reason
    else:
        said = f"  {who}: no advice: {found.reason}"
    group.lines.append(said)
    group.answers.append({"question": "size for a frequency", "given": frequency} | _told(found))


def _worth(group: Group) -> None:
    """What a shorter gap at equal long-run frequency, or a simpler task, is worth."""
    surface = group.surface
    words = {
        "gap": "a gap of {stop:g} steps in place of {start:g}, at equal frequency",
        "bits": "{stop:.3g} bits in place of {start:.3g}",
    }
    for change in [name for name in words if name in surface.covariates]:
        start, stop = group.asked[change], surface.ranges[change][0]
        if math.isclose(start, stop):
            start, stop = stop, surface.ranges[change][1]
        for into in [name for name in ("frequency", "params") if name in surface.covariates]:
            found: Exchange = exchange(surface, change=change, start=start, stop=stop, into=into)
            said = f"  {words[change].format(start=start, stop=stop)}: "
            if found.status in ("inside", "provisional"):
                said += f"worth × {found.factor:.2g} the {_word(into)}"
                if not math.isnan(found.low):
                    said += f" [{found.low:.2g}, {number(found.high)}]"
            else:
                said += f"worth in {_word(into)} not said: {found.reason}"
            group.lines.append(said)
            group.answers.append({"question": change} | asdict(found))


def _word(covariate: str) -> str:
    return "parameters" if covariate == "params" else covariate


def _at(fixed: Mapping[str, float]) -> str:
    words = {"gap": "a gap of {:g} steps", "bits": "{:g} bits"}
    said = ", ".join(words[name].format(value) for name, value in fixed.items())
    return f", {said}" if said else ""


def _rung_of(group: Group, size: float) -> str:
    names = group.rows.loc[(group.rows.params - size).abs() < 0.5, "rung"].unique()
    return f" ({names[0]})" if len(names) else ""


def _rate(group: Group, value: float) -> str:
    """A frequency in the fitted unit, and in brackets in the others that are known."""
    others = [
        f"{number(value * factor)} {UNIT_WORDS[name]}"
        for name, factor in group.units.items()
        if name != group.unit
    ]
    said = f"{number(value)} {UNIT_WORDS[group.unit]}"
    return said + (f" ({', '.join(others)})" if others else "")


def _interval(group: Group, found: Threshold) -> str:
    """The interval in words; an end outside the data is said as such, not as a number."""
    if math.isnan(found.low):
        return f", provisional: {found.reason}"
    write = count if found.of == "params" else number
    low_edge, high_edge = group.surface.ranges[found.of]
    low = write(found.low) if found.low >= low_edge else f"below {write(low_edge)}"
    high = write(found.high) if found.high <= high_edge else f"above {write(high_edge)}"
    return f", 95% [{low}, {high}]"


def _told(found: Threshold) -> dict[str, Any]:
    return asdict(found) | {"at": dict(found.at)}


def as_table(group: Group) -> dict[str, Any]:
    """A group as JSON values."""
    surface = group.surface
    rungs = group.rows[["rung", "params"]].drop_duplicates().sort_values("params")
    return {
        "protocol": group.protocol,
        "family": group.family,
        "unit": group.unit,
        "in_other_units": dict(group.units),
        "runs": surface.num_runs,
        "seeds": surface.num_seeds,
        "tasks": surface.num_cells,
        "learned": surface.num_learned,
        "rungs": {str(row.rung): float(row.params) for row in rungs.itertuples()},
        "ranges": {name: list(span) for name, span in surface.ranges.items()},
        "slopes": {name: list(surface.slope(name)) for name in surface.covariates},
        "note": group.note,
        "lines": list(group.lines),
        "answers": list(group.answers),
    }


def _finite(value: Any) -> Any:
    """NaN as null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
