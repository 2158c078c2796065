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

SCHEDULES = ("even", "random", "bernoulli", "burst", "window", "trace")


def build_schedule(
    config: ScheduleConfig, geometry: Geometry, *, seed: int, task: str, key: str
) -> Schedule:
    """The schedule that a config describes. ConfigError names `key` and the remedy."""
    if config.kind not in SCHEDULES:
        raise ConfigError(f"{key}.kind must be one of {SCHEDULES}, got {config.kind!r}")
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
            f"{key}: need 0 <= start < stop, got start={config.start}, stop={config.stop}"
        )
    if config.kind == "window":
        return Even(rate, start=config.start, stop=config.stop)
    if rate > geometry.batch_size:
        raise ConfigError(
            f"{key}.rate is {float(rate):g} instances per step but a step has only "
            f"{geometry.batch_size} rows; the largest rate is {geometry.batch_size} per_step"
        )
    common: dict[str, Any] = {
        "batch_size": geometry.batch_size,
        "seed": seed,
        "purpose": f"schedule/{task}",
    }
    if config.kind == "bernoulli":
        return Bernoulli(rate, start=config.start, stop=config.stop, **common)
    if config.stop is None:
        raise ConfigError(f"{key}.stop must be given for a random schedule: its total is exact")
    total = rate * (config.stop - config.start)
    if total.denominator != 1:
        raise ConfigError(
            f"{key}: {config.stop - config.start} steps at rate {rate} make {float(total):g} "
            f"instances, not a whole number; choose start and stop so that they do"
        )
    return Random(int(total), start=config.start, stop=config.stop, **common)


def _burst(config: ScheduleConfig, rate: Fraction, *, key: str) -> Burst:
    every = config.every
    if every is None or every < 1:
        raise ConfigError(f"{key}.every must be at least 1 for a burst schedule, got {every}")
    if not 0 <= config.phase < every:
        raise ConfigError(f"{key}.phase must be in [0, {every}), got {config.phase}")
    if config.stop is not None and config.stop <= config.phase:
        raise ConfigError(
            f"{key}.stop must be after the first burst at step {config.phase}, got {config.stop}; "
            "it is the first step that has none any more"
        )
    size = rate * every
    if size.denominator != 1:
        raise ConfigError(
            f"{key}: rate {rate} x every {every} = {float(size):g} instances a burst, not a whole "
            "number; choose rate and every so that it is"
        )
    return Burst(int(size), every=every, phase=config.phase, stop=config.stop)


def _trace(config: ScheduleConfig, *, key: str) -> Trace:
    if config.steps is None:
        raise ConfigError(f"{key}.steps must be given for a trace schedule; give [] for none")
    steps = list(config.steps)
    for before, step in pairwise([0, *steps]):
        if step < before:
            raise ConfigError(
                f"{key}.steps must be ascending and not negative, got {step} after {before}; sort "
                "them and count from 0"
            )
    return Trace(steps)


def _check_used_fields(config: ScheduleConfig, *, key: str) -> None:
    """A field that the kind ignores would look like a setting that works."""
    used = {
        "even": {"rate", "unit"},
        "window": {"rate", "unit", "start", "stop"},
        "random": {"rate", "unit", "start", "stop"},
        "bernoulli": {"rate", "unit", "start", "stop"},
        "burst": {"rate", "unit", "every", "phase", "stop"},
        "trace": {"steps"},
    }[config.kind]
    default = ScheduleConfig()
    for name in ("rate", "unit", "every", "phase", "start", "stop", "steps"):
        if name not in used and getattr(config, name) != getattr(default, name):
            raise ConfigError(
                f"{key}.{name} has no effect on a {config.kind!r} schedule; remove it"
            )
