"""Bursts of a task: where a schedule has them, and at which steps each is measured.

    for burst in find_bursts(plan.schedules[0], num_steps=1200, min_gap=4):
        print(burst.start, [moment.step for moment in moments(burst, lags=(1, 2, 5))])

Read from the plan, not from the config, so that any schedule will do: a burst is one step or
several with instances after at least `min_gap` steps without, and lasts until the next such gap.
Steps count from 0; "at step s" means after s optimizer steps, when the step `s` is the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_injection.errors import ConfigError
from data_injection.schedules.base import Schedule


@dataclass(frozen=True)
class Burst:
    """One burst of a task, or the place of one that a control run leaves out."""

    number: int
    """From 1, those left out counted."""

    start: int
    """Its first step."""

    stop: int
    """The step after its last."""

    next: int
    """The first step of the burst after it, or the number of steps of the run."""

    first: int
    """Number of its first instance: the task's instances before it."""

    count: int
    """Its instances; of one that is left out, those it would have had."""

    injected: bool = True
    """False where the run leaves it out."""

    @property
    def gap(self) -> int:
        """Steps after it without instances: the longest lag."""
        return self.next - self.stop


@dataclass(frozen=True)
class Moment:
    """A step at which something is measured for the sake of a burst."""

    step: int
    burst: Burst
    lag: int | None
    """Steps since the burst's last: 0 is right after it; None is right before the burst."""


def find_bursts(
    schedule: Schedule, *, num_steps: int, min_gap: int, left_out: Sequence[int] = ()
) -> list[Burst]:
    """The bursts in the first `num_steps` steps, in their order.

    left_out: steps at which a control run would have had one like the burst before it, of as many
    steps and instances. Raises ConfigError if there is none before it, or it would not lie in a gap
    or in the run.
    """
    before = np.array([schedule.before(step) for step in range(num_steps + 1)], dtype=np.int64)
    steps = np.flatnonzero(np.diff(before))
    # The first step with instances begins one, whatever was before it.
    begins = np.flatnonzero(np.diff(steps, prepend=-min_gap - 1) > min_gap)
    starts = steps[begins]
    stops = steps[np.append(begins, len(steps))[1:] - 1] + 1
    bursts = [
        Burst(0, int(start), int(stop), 0, int(before[start]), int(before[stop] - before[start]))
        for start, stop in zip(starts, stops, strict=True)
    ]
    return _with_left_out(bursts, left_out, num_steps)


def _with_left_out(bursts: list[Burst], left_out: Sequence[int], num_steps: int) -> list[Burst]:
    """All bursts in order, numbered, each knowing the next."""
    for start in sorted(left_out):
        earlier = [burst for burst in bursts if burst.start <= start]
        if not 0 <= start < num_steps or not earlier or earlier[-1].stop > start:
            key = "callbacks.retention.left_out"
            rule = "must hold places of bursts that this run leaves out, which lie below "
            rule += f"{num_steps}, after a burst and outside of all"
            remedy = "in a mixture say in callbacks.retention.tasks which task leaves it out"
            raise ConfigError(key=key, value=start, rule=rule, remedy=remedy)
        like = earlier[-1]
        new = replace(
            like,
            start=start,
            stop=start + like.stop - like.start,
            first=like.first + like.count * like.injected,
            injected=False,
        )
        bursts = [*earlier, new, *bursts[len(earlier) :]]
    ends = [*(burst.start for burst in bursts), num_steps][1:]
    return [
        replace(burst, number=number, next=end)
        for number, (burst, end) in enumerate(zip(bursts, ends, strict=True), start=1)
    ]


def moments(burst: Burst, *, lags: Sequence[int]) -> Iterator[Moment]:
    """When a burst is measured: right before, right after, and at the lags before the next one.

    The last possible lag is the burst's gap, at the step at which the next one is measured before.
    """
    yield Moment(burst.start, burst, None)
    for lag in (0, *lags):
        if lag <= burst.gap:
            yield Moment(burst.stop + lag, burst, lag)


def geometric_lags(longest: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... up to `longest`, which ends the list."""
    steps = (digit * 10**power for power in range(len(str(longest))) for digit in (1, 2, 5))
    return sorted({lag for lag in steps if lag < longest} | ({longest} if longest > 0 else set()))
