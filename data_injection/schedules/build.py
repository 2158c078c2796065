"""From an experiment's `schedule:` to the schedule it describes, refused where it cannot be.

build_schedule(ScheduleConfig(rate="1/10"), geometry, seed=0, task="rare", key="...schedule")
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from numbers import Integral
from typing import Any

from data_injection.config import ScheduleConfig
from data_injection.errors import ConfigError
from data_injection.schedules.base import Geometry, Schedule, parse_rate, rate_per_step
from data_injection.schedules.exact import Bursts, Even, Trace
from data_injection.schedules.random import Bernoulli, Random

SCHEDULES = {
    "even": {"rate", "unit", "total"},
    "random": {"rate", "unit", "total", "start", "stop"},
    "bernoulli": {"rate", "unit", "start", "stop"},
    "burst": {"rate", "unit", "per_batch", "total", "every", "phase", "stop"},
    "window": {"rate", "unit", "total", "start", "stop"},
    "trace": {"steps"},
}
"""The kinds of schedule, and which fields of the config have an effect on each."""


def build_schedule(
    config: ScheduleConfig, geometry: Geometry, *, seed: int, task: str, key: str,
    num_steps: int | None = None,
) -> Schedule:  # fmt: skip
    """The schedule that a config describes. ConfigError names `key` and the remedy.

    Args:
        num_steps: length of the training, for what is told as a share of it, or to its end.
    """
    if config.kind not in SCHEDULES:
        raise ConfigError(
            key=f"{key}.kind", value=config.kind, rule=f"must be one of {tuple(SCHEDULES)}"
        )
    _check_used_fields(config, key=key)
    if config.kind == "trace":
        return _trace(config, key=key)
    start, stop = (
        _as_step(getattr(config, name), num_steps, key=f"{key}.{name}")
        for name in ("start", "stop")
    )
    if start is None:
        raise ConfigError(key=f"{key}.start", value=None, rule="must be a step, counted from 0")
    if config.kind == "burst":
        return _burst(config, geometry, stop, key=key)
    rate = Fraction(0) if config.total is not None else rate_per_step(config, geometry, key=key)
    if config.kind == "even" and config.total is None:
        return Even(rate)
    if config.total is not None and stop is None:
        stop = _known(num_steps, key=f"{key}.stop")
    if start < 0 or (stop is not None and stop <= start):
        value = {"start": config.start, "stop": config.stop}
        raise ConfigError(key=key, value=value, rule="needs 0 <= start < stop")
    if config.total is not None:
        assert stop is not None
        rate = Fraction(_checked_total(config, key=key), stop - start)
    if config.kind in ("window", "even"):
        schedule: Schedule = Even(rate, start=start, stop=stop)
        if config.total is not None:
            schedule.promised = config.total
            schedule.label = f"{config.total} in steps {start}-{stop}"
        return schedule
    if rate > geometry.batch_size:
        rule = f"must not ask for more instances per step than its {geometry.batch_size} rows"
        asked: tuple[str, Any, str] = ("rate", float(rate), f"{geometry.batch_size} per_step")
        if config.total is not None and stop is not None:
            asked = ("total", config.total, f"{geometry.batch_size * (stop - start)}")
        name, value, most = asked
        remedy = f"the largest {name} is {most}"
        raise ConfigError(key=f"{key}.{name}", value=value, rule=rule, remedy=remedy)
    common: dict[str, Any] = {
        "batch_size": geometry.batch_size,
        "seed": seed,
        "purpose": f"schedule/{task}",
    }
    if config.kind == "bernoulli":
        return Bernoulli(rate, start=start, stop=stop, **common)
    if stop is None:
        rule = "must be given for a random schedule: its total is exact"
        raise ConfigError(key=f"{key}.stop", value=None, rule=rule)
    total = rate * (stop - start)
    if total.denominator != 1:
        rule = f"must make whole instances of {stop - start} steps at rate {rate}"
        remedy = "choose start and stop so that they do"
        raise ConfigError(key=key, value=float(total), rule=rule, remedy=remedy)
    schedule = Random(int(total), start=start, stop=stop, **common)
    schedule.promised = config.total
    return schedule


def _as_step(value: Any, num_steps: int | None, *, key: str) -> int | None:
    """A step as it is, or the last at or before a share of the training such as "25%"."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            share = parse_rate(value.strip().removesuffix("%"), key=key) / 100
        except ConfigError:
            share = Fraction(2)
        if share <= 1:
            return int(share * _known(num_steps, key=key))
    elif value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    rule = 'must be a step, counted from 0, or a share of the training, "0%" to "100%"'
    raise ConfigError(key=key, value=value, rule=rule)


def _known(num_steps: int | None, *, key: str) -> int:
    if num_steps is None:
        rule = "depends on the length of the training, which this plan is compiled without"
        raise ConfigError(key=key, rule=rule, remedy="give a step, or num_steps to compile_plan")
    return num_steps


def _checked_total(config: ScheduleConfig, *, key: str) -> int:
    if config.rate is not None or config.unit != ScheduleConfig.unit:
        rule, remedy = "excludes total", "give either: a rate, or all instances of the training"
        raise ConfigError(key=f"{key}.rate", value=config.rate, rule=rule, remedy=remedy)
    return _whole(config.total, least=0, key=f"{key}.total")


def _whole(value: Any, *, least: int, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        rule = f"must be a whole number of instances, at least {least}"
        raise ConfigError(key=key, value=value, rule=rule)
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _burst(config: ScheduleConfig, geometry: Geometry, stop: int | None, *, key: str) -> Bursts:
    every = config.every
    for name, value in (("every", every), ("phase", config.phase)):
        if value is not None and not _is_whole(value):
            rule = "must be a whole number of steps"
            raise ConfigError(key=f"{key}.{name}", value=value, rule=rule)
    if every is None or every < 1:
        rule = "must be at least 1 for a burst schedule"
        raise ConfigError(key=f"{key}.every", value=every, rule=rule)
    if config.phase is None or not 0 <= config.phase < every:
        raise ConfigError(key=f"{key}.phase", value=config.phase, rule=f"must be in [0, {every})")
    if stop is not None and stop <= config.phase:
        rule = f"must be after the first burst at step {config.phase}"
        remedy = "it is the first step that has none any more"
        raise ConfigError(key=f"{key}.stop", value=config.stop, rule=rule, remedy=remedy)
    if config.per_batch is not None:
        if config.rate is not None or config.unit != ScheduleConfig.unit:
            rule, remedy = "excludes per_batch", "give either: the mean, or the size of a burst"
            raise ConfigError(key=f"{key}.rate", value=config.rate, rule=rule, remedy=remedy)
        size = Fraction(_whole(config.per_batch, least=0, key=f"{key}.per_batch"))
        rate = size / every
    else:
        rate = rate_per_step(config, geometry, key=key)
        size = rate * every
    if size.denominator != 1:
        rule = f"must make bursts of whole instances, rate {rate} x every {every}"
        remedy = "choose rate and every so that they do"
        raise ConfigError(key=key, value=float(size), rule=rule, remedy=remedy)
    if config.total is not None:
        _whole(config.total, least=0, key=f"{key}.total")
    burst = Bursts(int(size), every=every, phase=config.phase, stop=stop, total=config.total)
    burst.promised = config.total
    return burst


def _trace(config: ScheduleConfig, *, key: str) -> Trace:
    key = f"{key}.steps"
    if config.steps is None:
        rule = "must be given for a trace schedule"
        raise ConfigError(key=key, value=None, rule=rule, remedy="give [] for none")
    steps = list(config.steps)
    for before, step in pairwise([0, *steps]):
        if not _is_whole(step):
            raise ConfigError(key=key, value=step, rule="must hold whole numbers")
        if step < before:
            rule = "must be ascending and not negative"
            remedy = f"it comes after {before}: sort them and count from 0"
            raise ConfigError(key=key, value=step, rule=rule, remedy=remedy)
    return Trace(steps)


def _check_used_fields(config: ScheduleConfig, *, key: str) -> None:
    """A field that the kind ignores would look like a setting that works."""
    default = ScheduleConfig()
    for name in ("rate", "total", "per_batch", "unit", "every", "phase", "start", "stop", "steps"):
        value = getattr(config, name)
        if name not in SCHEDULES[config.kind] and value != getattr(default, name):
            rule = f"has no effect on a {config.kind!r} schedule"
            raise ConfigError(key=f"{key}.{name}", value=value, rule=rule, remedy="remove it")
