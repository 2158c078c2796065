"""The schedules of a run's tasks: of sequences, the copies that their file asks for are the total.

build_schedules(config, tasks, geometry, num_steps=400)
variant(plan, 0)            # "burst every 20, 50 symbols"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from data_injection.config import InjectionConfig, ScheduleConfig
from data_injection.errors import ConfigError
from data_injection.schedules.base import Geometry, Schedule
from data_injection.schedules.build import build_schedule
from data_injection.tasks.base import Task

if TYPE_CHECKING:
    from data_injection.plan import InjectionPlan


def build_schedules(
    config: InjectionConfig, tasks: Sequence[Task], geometry: Geometry, *, num_steps: int | None
) -> list[Schedule]:
    """A schedule for each task. ConfigError names key and remedy."""
    schedules = []
    for index, (asked, task) in enumerate(zip(config.tasks, tasks, strict=True)):
        key, timing = f"injection.tasks[{index}].schedule", asked.schedule
        if not task.has_label:
            timing = _of_copies(timing, len(task.pool), key=key)
        try:
            built = build_schedule(
                timing, geometry, seed=config.seed, task=asked.name, key=key, num_steps=num_steps
            )
        except ConfigError as error:
            if task.has_label or error.key != f"{key}.total":
                raise
            # The total is the file's, by its copies: what the schedule has a key of is the kind.
            rule = f"{error.rule}, as {error.value} copies do"
            remedy, where = f"{error.remedy}; sequences without kind share rows", f"{key}.kind"
            raise ConfigError(key=where, value=timing.kind, rule=rule, remedy=remedy) from None
        if not task.has_label:
            built.promised = len(task.pool)
        schedules.append(built)
    return schedules


def needs_length(config: ScheduleConfig, task: Task) -> bool:
    """Whether the schedule depends on the length of the training."""
    shares = any(isinstance(value, str) for value in (config.start, config.stop))
    spread = config.kind in ("even", "window", "random") and config.stop is None
    return shares or (spread and (config.total is not None or not task.has_label))


def _of_copies(config: ScheduleConfig, total: int, *, key: str) -> ScheduleConfig:
    """The schedule's config with all copies as its total; ConfigError if it says otherwise."""
    if config.rate is not None or config.kind == "bernoulli":
        rule = f"must leave the number of instances to the file, whose copies are {total} in all"
        remedy = "remove rate, and take even, random, window, burst with per_batch, or trace"
        field, value = ("rate", config.rate) if config.rate is not None else ("kind", config.kind)
        raise ConfigError(key=f"{key}.{field}", value=value, rule=rule, remedy=remedy)
    if config.kind == "burst" and config.per_batch is None:
        rule, remedy = "must be given for bursts of sequences", f"{total} in all: give their size"
        raise ConfigError(key=f"{key}.per_batch", value=None, rule=rule, remedy=remedy)
    told = len(config.steps or []) if config.kind == "trace" else config.total
    if told not in (None, total):
        rule = f"must be {total}, the copies of the file"
        field = "steps" if config.kind == "trace" else "total"
        raise ConfigError(key=f"{key}.{field}", value=told, rule=rule, remedy="remove it")
    return config if config.kind == "trace" else replace(config, total=total)


def variant(plan: InjectionPlan, index: int) -> str:
    """What sets a task apart from another of its family and rate; empty for the study's setting
    (evenly spread, 100 symbols, the first tokens of a row, default parameters)."""
    task, schedule = plan.tasks[index], plan.schedules[index]
    if not task.has_label:
        shared = [f"{plan.per_row} a row"] if plan.per_row > 1 else []
        return ", ".join([schedule.label, *shared, *["at documents"] * plan.at_documents])
    parts = [schedule.label] if schedule.label != "even" else []
    if len(task.symbols) != 100:
        parts.append(f"{len(task.symbols)} symbols")
    if plan.offset:
        parts.append(f"offset {plan.offset}")
    parts += [f"{name}={value}" for name, value in sorted(task.params.items())]
    others = [other for other in plan.tasks if other is not task]
    if any(set(task.labels.tolist()) & set(other.labels.tolist()) for other in others):
        parts.append("shared labels")
    return ", ".join(parts)
