"""From an experiment's `schedule:` to the schedule it describes, refused where it cannot be.

build_schedule(ScheduleConfig(rate="1/10"), geometry, seed=0, task="rare", key="...schedule")
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

from data_injection.config import ScheduleConfig
from data_injection.errors import ConfigError
from data_injection.schedules.base import Geometry, Schedule, rate_per_step
from data_injection.schedules.exact import Burst, Even, Trace
from data_injection.schedules.random import Bernoulli, Random

SCHEDULES = {
    "even": {"rate", "unit"},
    "random": {"rate", "unit", "start", "stop"},
    "bernoulli": {"rate", "unit", "start", "stop"},
    "burst": {"rate", "unit", "every", "phase", "stop"},
    "window": {"rate", "unit", "start", "stop"},
    "trace": {"steps"},
}
"""The kinds of schedule, and which fields of the config have an effect on each."""


def build_schedule(
    config: ScheduleConfig, geometry: Geometry, *, seed: int, task: str, key: str
) -> Schedule:
    """The schedule that a config describes. ConfigError names `key` and the remedy."""
    if config.kind not in SCHEDULES:
        raise ConfigError(
            key=f"{key}.kind", value=config.kind, rule=f"must be one of {tuple(SCHEDULES)}"
        )
    _check_used_fields(config, key=key)
    if config.kind == "trace":
        return _trace(config, key=key)
    rate = rate_per_step(config, geometry, key=key)
    if config.kind == "even":
        return Even(rate)
    if config.kind == "burst":
        return _burst(config, rate, key=key)
    if config.start < 0 or (config.stop is not None and config.stop <= config.start):
        raise ConfigError(
            key=key,
            value={"start": config.start, "stop": config.stop},
            rule="needs 0 <= start < stop",
        )
    if config.kind == "window":
        return Even(rate, start=config.start, stop=config.stop)
    if rate > geometry.batch_size:
        raise ConfigError(
            key=f"{key}.rate",
            value=float(rate),
            rule=f"must not ask for more instances per step than its {geometry.batch_size} rows",
            remedy=f"the largest rate is {geometry.batch_size} per_step",
        )
    common: dict[str, Any] = {
        "batch_size": geometry.batch_size,
        "seed": seed,
        "purpose": f"schedule/{task}",
    }
    if config.kind == "bernoulli":
        return Bernoulli(rate, start=config.start, stop=config.stop, **common)
    if config.stop is None:
        rule = "must be given for a random schedule: its total is exact"
        raise ConfigError(key=f"{key}.stop", value=None, rule=rule)
    total = rate * (config.stop - config.start)
    if total.denominator != 1:
        raise ConfigError(
            key=key,
            value=float(total),
            rule=f"must make whole instances of {config.stop - config.start} steps at rate {rate}",
            remedy="choose start and stop so that they do",
        )
    return Random(int(total), start=config.start, stop=config.stop, **common)


def _burst(config: ScheduleConfig, rate: Fraction, *, key: str) -> Burst:
    every = config.every
    if every is None or every < 1:
        rule = "must be at least 1 for a burst schedule"
        raise ConfigError(key=f"{key}.every", value=every, rule=rule)
    if not 0 <= config.phase < every:
        raise ConfigError(key=f"{key}.phase", value=config.phase, rule=f"must be in [0, {every})")
    if config.stop is not None and config.stop <= config.phase:
        raise ConfigError(
            key=f"{key}.stop",
            value=config.stop,
            rule=f"must be after the first burst at step {config.phase}",
            remedy="it is the first step that has none any more",
        )
    size = rate * every
    if size.denominator != 1:
        raise ConfigError(
            key=key,
            value=float(size),
            rule=f"must make bursts of whole instances, rate {rate} x every {every}",
            remedy="choose rate and every so that they do",
        )
    return Burst(int(size), every=every, phase=config.phase, stop=config.stop)


def _trace(config: ScheduleConfig, *, key: str) -> Trace:
    key = f"{key}.steps"
    if config.steps is None:
        rule = "must be given for a trace schedule"
        raise ConfigError(key=key, value=None, rule=rule, remedy="give [] for none")
    steps = list(config.steps)
    for before, step in pairwise([0, *steps]):
        if step < before:
            raise ConfigError(
                key=key,
                value=step,
                rule="must be ascending and not negative",
                remedy=f"it comes after {before}: sort them and count from 0",
            )
    return Trace(steps)


def _check_used_fields(config: ScheduleConfig, *, key: str) -> None:
    """A field that the kind ignores would look like a setting that works."""
    default = ScheduleConfig()
    for name in ("rate", "unit", "every", "phase", "start", "stop", "steps"):
        value = getattr(config, name)
        if name not in SCHEDULES[config.kind] and value != getattr(default, name):
            rule = f"has no effect on a {config.kind!r} schedule"
            raise ConfigError(key=f"{key}.{name}", value=value, rule=rule, remedy="remove it")
