"""`olmo-ext scaling mixture`: a mixture on paper, its tasks at each size, and ways to bring one in.

olmo-ext scaling mixture tasks.yaml --target rare --rung 4M
olmo-ext scaling mixture tasks.yaml --calibrate runs/quickstart

The file's keys are the fields of theory.advice.mixture_plan.MixturePlan; a rung of the ladder may
be given by its name alone. See docs/advice.md for one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_injection.errors import ConfigError
from data_injection.schedules.base import parse_rate
from eval.advice.groups import Question, load_groups, records_hash
from eval.text import count, new_table, number, print_table
from launch.json_file import write_json
from launch.terminal import say, typed_command
from launch.yaml_file import from_mapping, read_yaml
from theory.advice.mixture_plan import HOST, MixturePlan
from theory.advice.mixture_planner import (
    Way,
    calibrated,
    learned_by_rung,
    required_widths,
    tie_note,
    ways_in,
)
from theory.advice.thresholds import threshold

if TYPE_CHECKING:
    from rich.console import Console

LADDER: dict[str, tuple[int, float]] = {
    "4M": (64, 3.7e6),
    "20M": (192, 19.1e6),
    "300M": (1024, 320.0e6),
    "1B": (2048, 1176.8e6),
    "4B": (3840, 3968e6),
}
"""d_model, and parameters without the input embedding (configs/olmo_4M_to_4B)."""


@dataclass(frozen=True)
class Calibration:
    """What a sweep says about features per d_model, from one task of the plan."""

    task: str
    frequency: float
    required_width: int
    d_model: float = math.nan
    """At which the sweep's surface puts the line for this frequency."""

    factor: float = math.nan
    low: float = math.nan
    high: float = math.nan
    reason: str = ""


def mixture(
    path: Path,
    *,
    target: str | None,
    rung: str | None,
    sweep: Path | None,
    question: Question,
    as_json: Path | None,
    console: Console,
) -> None:
    """Print what is learned where, and the ways in for `target`; ConfigError for what is wrong."""
    from eval.commit import git_commit

    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; docs/advice.md has a mixture to start from")
    try:
        plan = load_plan(path)
        measured = calibrate(plan, sweep, question) if sweep is not None else []
        if measured:
            plan = replace(plan, features_per_d_model=_mean_factor(measured, plan, console))
        table = learned_by_rung(plan)
        where = rung or min(plan.rungs, key=lambda one: one.params).name
        ways = ways_in(plan, target=target, rung=where) if target is not None else None
    except ConfigError as error:
        raise error.told_of(path) from None
    except ValueError as error:
        raise ConfigError(key=path, rule=f"cannot be used: {error}") from None
    _show(plan, console)
    if ways is not None and target is not None:
        _show_ways(plan, ways, target, where, console)
    if as_json is not None:
        told = {
            "command": typed_command(),
            "commit": git_commit(),
            "plan": asdict(plan),
            "calibration": [asdict(one) for one in measured],
            "calibrated_on": None if sweep is None else str(sweep),
            "records_sha256": None if sweep is None else records_hash(sweep),
            "table": table.to_dict("records"),
            "target": target,
            "rung": where,
            "ways": None if ways is None else [asdict(way) for way in ways],
        }
        say(console, str(write_json(as_json, told)))


def load_plan(path: Path) -> MixturePlan:
    """The plan of a YAML file. Raises ConfigError or ValueError with key, value and remedy."""
    read = read_yaml(path)
    if not isinstance(read, dict):
        raise ConfigError(key=path, rule="must hold keys with values: tasks, rungs, host, ...")
    rungs, tasks = read.get("rungs"), read.get("tasks")
    if not isinstance(rungs, list) or not isinstance(tasks, list):
        raise ConfigError(key=path, rule="must hold the lists `tasks` and `rungs`")
    for key in ("tokens", "features_per_d_model", "eta"):
        if isinstance(read.get(key), str):  # YAML reads 1e9 as text
            read[key] = float(parse_rate(read[key], key=key))
    _lacks_none(read.get("host"), "host", ("exponent", "features"))
    for index, one in enumerate(tasks):
        _lacks_none(one, f"tasks[{index}]", ("name", "frequency"))
    for index, one in enumerate(rungs):
        _lacks_none(one, f"rungs[{index}]", ("name", "d_model", "params"))
    read["rungs"] = [_rung(one) for one in rungs]
    read["tasks"] = [_task(one, index) for index, one in enumerate(tasks)]
    return from_mapping(MixturePlan, read)


def _lacks_none(given: Any, where: str, needed: tuple[str, ...]) -> None:
    if isinstance(given, dict) and (missing := [key for key in needed if key not in given]):
        rule = f"lacks {', '.join(missing)}"
        raise ConfigError(key=where, rule=rule, remedy="there is no default for it")


def _rung(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    if given not in LADDER:
        rule = f"is no rung of the ladder ({', '.join(LADDER)})"
        remedy = "give name, d_model and params"
        raise ConfigError(key=f"rungs: {given!r}", rule=rule, remedy=remedy)
    d_model, params = LADDER[given]
    return {"name": given, "d_model": d_model, "params": params}


def _task(given: Any, index: int) -> Any:
    if isinstance(given, dict) and isinstance(given.get("frequency"), str):
        frequency = float(parse_rate(given["frequency"], key=f"tasks[{index}].frequency"))
        return given | {"frequency": frequency}
    return given


# -- calibration -----------------------------------------------------------------------------------


def calibrate(plan: MixturePlan, sweep: Path, question: Question) -> list[Calibration]:
    """Features per d_model from a sweep's own line, once for each task whose frequency it holds.

    The theory says how many features a task needs, the sweep at which size it is just learned. The
    rungs of the sweep must be among the plan's. Where the factors disagree, room is not
    proportional to d_model, or the spectra are wrong.
    """

    groups, _ = load_groups(sweep, replace(question, unit="per_token"))
    if len(groups) > 1:
        names = "; ".join(f"{group.family}, {group.protocol}" for group in groups)
        rule = "needs one family"
        remedy = f"choose by --family and --protocol: {names}"
        raise ConfigError(key="--calibrate", rule=rule, remedy=remedy)
    (group,) = groups
    if set(group.surface.covariates) != {"params", "frequency"}:
        raise ConfigError(key="--calibrate", rule="needs a sweep over size and frequency alone")
    d_models = {rung.name: rung.d_model for rung in plan.rungs}
    sizes = group.rows[["rung", "params"]].drop_duplicates().sort_values("params")
    if missing := [name for name in sizes.rung if name not in d_models]:
        raise ConfigError(key=f"rungs: the sweep's {', '.join(missing)}", rule="must be among them")
    log_params = np.log(sizes.params.to_numpy(float))
    log_d = np.log([d_models[name] for name in sizes.rung])

    def d_model(params: float) -> float:
        return float(np.exp(np.interp(np.log(params), log_params, log_d)))

    required = required_widths(plan)
    found = []
    for task in plan.tasks:
        if task.frequency == 0:
            continue
        line = threshold(group.surface, of="params", at={"frequency": task.frequency})
        needs = required[task.name]
        one = Calibration(task.name, task.frequency, needs, reason=line.reason)
        if line.status in ("inside", "provisional"):
            at = d_model(line.value)
            low, high = (
                math.nan if math.isnan(end) else calibrated(needs, d_model(end))
                for end in (line.high, line.low)
            )
            one = replace(one, d_model=at, low=low, high=high, factor=calibrated(needs, at))
        found.append(one)
    if all(math.isnan(one.factor) for one in found):
        reasons = "; ".join(f"{one.task}: {one.reason}" for one in found)
        rule = f"has a line for none of the tasks: {reasons}"
        raise ConfigError(key="--calibrate: the sweep", rule=rule)
    return found


def _mean_factor(found: list[Calibration], plan: MixturePlan, console: Console) -> float:
    """The geometric mean, printed with what went into it."""
    factors = [one.factor for one in found if not math.isnan(one.factor)]
    mean = float(np.exp(np.mean(np.log(factors))))
    for one in found:
        said = one.reason
        if not math.isnan(one.factor):
            said = f"needs {one.required_width} features, learned from d_model {one.d_model:.3g} on"
            said += f": {one.factor:.3g} features per d_model"
            if not math.isnan(one.low):
                said += f" [{one.low:.3g}, {one.high:.3g} within the sizes measured]"
        say(console, f"calibration, {one.task}: {said}")
    told = plan.features_per_d_model
    instead = f", in place of the file's {told:g}" if told is not None else ""
    say(console, f"features per d_model: {mean:.3g} (mean of {len(factors)}){instead}")
    if len(factors) > 1 and max(factors) > 2 * min(factors):
        say(
            console,
            f"the tasks disagree by a factor of {max(factors) / min(factors):.2g}: room is not "
            "proportional to d_model here, or the spectra are wrong",
        )
    return mean


# -- printing --------------------------------------------------------------------------------------


def _show(plan: MixturePlan, console: Console) -> None:
    rungs = sorted(plan.rungs, key=lambda one: one.params)
    shares, required = plan.shares, required_widths(plan)
    rows = learned_by_rung(plan).set_index(["task", "rung"])
    widths = [f"{one.name}\nN = {plan.room(one)}" for one in rungs]
    grid = new_table("task", numbers=("frequency", "features\nneeded", *widths))
    for task in plan.tasks:
        cells = [rows.loc[(task.name, one.name)] for one in rungs]
        marks = [f"{'* ' if cell.learned else ''}{cell.kept:.2f}" for cell in cells]
        grid.add_row(task.name, number(shares[task.name]), str(required[task.name]), *marks)
    print_table(grid, console)
    host = f"; {HOST} text takes {number(shares[HOST])}" if HOST in shares else ""
    say(
        console,
        f"* learned: {plan.learned_share:g} of its signal kept{host}. Assumed: room for "
        f"{plan.features_per_d_model:.3g} features per d_model, the file's spectra and host.",
    )
    if said := tie_note(plan):
        say(console, said)


def _show_ways(
    plan: MixturePlan, ways: list[Way], target: str, rung: str, console: Console
) -> None:
    if not ways:
        say(console, f"{target} is learned at {rung}: nothing needs to change")
        return
    say(console, f"to bring {target} in at {rung}, cheapest first:")
    for index, way in enumerate(ways, start=1):
        cost = ""
        if way.possible and way.kind == "frequency" and plan.tokens is not None:
            each = plan.task(target).tokens_per_instance
            fewer = count(plan.tokens * each * (way.value - plan.shares[target]))
            cost = f"; {count(way.extra_tokens)} extra tokens ({each} an instance) and "
            cost += f"{way.extra_flops:.2g} extra FLOPs, or no FLOPs and {fewer} host tokens fewer"
        elif way.possible and not math.isnan(way.extra_flops):
            cost = f"; {way.extra_flops:.2g} extra FLOPs" if way.extra_flops else "; no extra FLOPs"
        mark = f"{index}." if way.possible else "-"
        say(console, f"  {mark} {way.said}{cost}")
