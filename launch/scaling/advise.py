"""`olmo-ext scaling advise`: what a sweep's records say about size and frequency, in a line each.

    olmo-ext scaling advise runs/quickstart --size w64
    olmo-ext scaling advise runs/quickstart --frequency 4 --json advice.json

Which runs share a surface: eval/advice/groups.py. Warnings before a run: launch/plan/warnings.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_injection.errors import ConfigError
from data_injection.files import check_folder, replace_file
from data_injection.schedules.base import parse_rate
from eval.advice.groups import Group, Question, load_groups, parse_size, records_hash
from eval.text import count, number
from launch.json_file import write_json
from launch.terminal import say, typed_command
from theory.advice.surface import misplaced, no_trend
from theory.advice.thresholds import Exchange, Threshold, exchange, threshold

if TYPE_CHECKING:
    from rich.console import Console

FREQUENCY_WORDS = {
    "near above": "learned from about {edge} or above",
    "near below": "learned from about {edge} or below",
    "beyond above": "learned only above {edge}, if at all",
    "beyond below": "learned already below {edge}",
    "all": "learned at every frequency measured, from {edge} on",
    "none": "learned at no frequency measured, up to {edge}",
}
SIZE_WORDS = {
    "near above": "least size about {edge} or more",
    "near below": "least size about {edge} or less",
    "beyond above": "needs more than {edge}, if size does it",
    "beyond below": "least size below {edge}",
    "all": "learned at every size measured, from {edge} on",
    "none": "learned at no size measured, up to {edge}",
}
"""Where the line is not inside the data: near or beyond an edge, or all cells are on one side."""

UNIT_WORDS = {"per_step": "per step", "per_sequence": "per sequence", "per_token": "per token"}


def advise(
    source: Path, *, question: Question, out: Path | None, as_json: Path | None, console: Console
) -> None:
    """Print a line per answer; write advice.png (to `out`, or beside the runs) and the JSON.

    Raises ConfigError or FileNotFoundError, with what to do, where the records hold no surface.
    """
    from eval.advice.figure import thresholds
    from eval.commit import git_commit
    from eval.figures.style import png

    if question.frequency is None and question.size is None:
        rule = "must be given, one of them or both: there is nothing to advise on"
        raise ConfigError(key="--frequency and --size", rule=rule)
    if out is not None:
        check_folder(out, "--out")
    found, left_out = load_groups(source, question)
    for group in found:
        answer(group, question)
    told = {
        "command": typed_command(),
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
            say(console, line)
    if left_out:
        more = "; ..." if len(left_out) > 1 else ""
        say(console, f"({len(left_out)} other groups of tasks left out: {left_out[0]}{more})")
    folder = out or (source if source.is_dir() else source.parent)
    folder.mkdir(parents=True, exist_ok=True)
    say(console, str(replace_file(folder / "advice.png", png(thresholds(found, told)))))
    if as_json is not None:
        say(console, str(write_json(as_json, told)))


# -- questions to answers --------------------------------------------------------------------------


def answer(group: Group, question: Question) -> None:
    """Add to a group its lines and answers."""
    surface, rows = group.surface, group.rows
    size = None if question.size is None else parse_size(question.size, rows)
    frequency = None
    if question.frequency is not None:
        frequency = float(parse_rate(question.frequency, key="--frequency"))
        if frequency == 0:
            rule = "must be above 0: a task that never comes is not learned"
            raise ConfigError(key="--frequency", rule=rule)
    fixed = _fixed(group, question)
    asked = {"params": size, "frequency": frequency}
    group.asked = {name: value for name, value in asked.items() if value is not None} | fixed
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
        idle = "--gap has no effect: each frequency was measured at one"
        group.note = f"{group.note}; {idle}" if group.note else idle
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
    else:
        said = f"  {who}: {_unsaid(group, found, FREQUENCY_WORDS, _rate(group, found.edge))}"
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
    else:
        said = f"  {who}: {_unsaid(group, found, SIZE_WORDS, f'{count(found.edge)} parameters')}"
    group.lines.append(said)
    group.answers.append({"question": "size for a frequency", "given": frequency} | _told(found))


def _unsaid(group: Group, found: Threshold, words: Mapping[str, str], edge: str) -> str:
    """What is said in place of a number inside the data, with the reason."""
    if not (found.near or found.beyond):
        return f"no advice: {found.reason}"
    end = _interval(group, found) if found.near else ""
    case = f"near {found.near}" if found.near else f"beyond {found.beyond}"
    if not found.near and not 0 < group.surface.num_learned < group.surface.num_cells:
        # No cell was learned, or every one: then what was measured is all that is said.
        case = "none" if found.beyond == "above" else "all"
    return f"{words[case].format(edge=edge)}{end}: {found.reason}"


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
    """The interval in words; an end outside the data is said as such, not as a number, and of one
    about a line beyond the data there is the end on the data's side alone."""
    write = count if found.of == "params" else number
    low_edge, high_edge = group.surface.ranges[found.of]
    low = write(found.low) if found.low >= low_edge else f"below {write(low_edge)}"
    high = write(found.high) if found.high <= high_edge else f"above {write(high_edge)}"
    if math.isnan(found.low) and math.isnan(found.high):
        return "" if found.near else f", provisional: {found.reason}"
    if found.near:
        return f", 95% from {low} on" if found.near == "above" else f", 95% up to {high}"
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
