"""Whether what is asked for has room: in a row, in a batch, and a total in the run's steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_injection.errors import ConfigError
from data_injection.schedules.base import Geometry, Schedule
from data_injection.tasks.base import Task


def check_rows(
    tasks: Sequence[Task], schedules: Sequence[Schedule], geometry: Geometry, *, offset: int
) -> None:
    """Raise ConfigError if an example does not fit a row, or a step's instances never a batch."""
    for index, (task, schedule) in enumerate(zip(tasks, schedules, strict=True)):
        if not task.has_label:  # laid out step by step: see `lay_out`
            continue
        most = geometry.seq_len - task.length - 1
        if not 0 <= offset <= most:
            room = f"({task.length} tokens and EOS in rows of {geometry.seq_len})"
            rule = f"must be in [0, {most}] for {task.name!r} {room}"
            raise ConfigError(key="injection.offset", value=offset, rule=rule)
        if schedule.peak is not None and schedule.peak > geometry.batch_size:
            key = f"injection.tasks[{index}].schedule"
            rule = f"must ask for at most {geometry.batch_size} instances in one step, the rows of "
            raise ConfigError(key=key, value=schedule.peak, rule=f"{rule}a batch")


def check_batch(
    tasks: Sequence[Task], schedules: Sequence[Schedule], geometry: Geometry, *, step: int
) -> None:
    """Raise ConfigError if a step's instances that need a row of their own outnumber the rows."""
    both = zip(tasks, schedules, strict=True)
    own = [schedule.count(step) if task.has_label else 0 for task, schedule in both]
    total, batch = sum(own), geometry.batch_size
    if total <= batch:
        return
    worst = int(np.argmax(own))
    name, asked = tasks[worst].name, own[worst]
    rule = f"must fit a batch of {batch} rows, but ask for {total} at step {step}"
    remedy = f"the most that {name!r} can have beside the others is "
    remedy += f"{max(batch - total + asked, 0)} a step (it asks for {asked})"
    raise ConfigError(key="injection.tasks", rule=rule, remedy=remedy)


def check_totals(schedules: Sequence[Schedule], num_steps: int) -> None:
    """Raise ConfigError if a promised total is not reached in the run's steps."""
    for index, schedule in enumerate(schedules):
        placed, promised = schedule.before(num_steps), schedule.promised
        if promised is not None and placed != promised:
            raise ConfigError(
                key=f"injection.tasks[{index}].schedule",
                value=placed,
                rule=f"must have all {promised} instances within {num_steps} steps",
                remedy="end its window by then, make it denser, or train longer",
            )


def check_beginning(schedules: Sequence[Schedule], step: int) -> None:
    """Raise ConfigError if an instance comes before a step that was reached without a plan."""
    for index, schedule in enumerate(schedules):
        if placed := schedule.before(step):
            raise ConfigError(
                key=f"injection.tasks[{index}].schedule",
                value=f"{placed} instances before it",
                rule=f"must begin at step {step} or later: the steps before had no plan",
                remedy=f"give kind: window with start: {step}",
            )
