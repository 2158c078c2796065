"""Schedules: how many instances of a task enter the stream at each step, exactly.

    schedule = build_schedule(ScheduleConfig(rate="1/10"), batch_size=2048, seq_len=2048, ...)
    schedule.count(9), schedule.before(50_000)     # (1, 5000)

A schedule is a non-decreasing counting function `before(step)`: instances in steps 0 .. step-1.
Rates are Fractions: with r = 2.3 in float64, floor((s+1)r) - floor(s r) is wrong at 5,003 of the
first 50,000 steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from data_injection.config import ConfigError, ScheduleConfig
from data_injection.philox import raw_words, word_stream

UNITS = ("per_step", "per_sequence", "per_token")


@dataclass(frozen=True)
class Geometry:
    """The shape of a batch, which turns one unit of frequency into another."""

    batch_size: int
    """Rows per optimizer step over all ranks (global batch)."""

    seq_len: int
    """Tokens per row."""


def parse_rate(value: Any, *, key: str) -> Fraction:
    """The exact fraction that a number, decimal string or "p/q" stands for; ConfigError if none."""
    try:
        if isinstance(value, bool) or value is None:
            raise ValueError
        # str() of a float is its shortest decimal, so that 0.1 means one tenth.
        text = str(value).strip()
        decimal = Decimal(0) if "/" in text else Decimal(text)
        if abs(decimal.adjusted()) > 100:  # would be a fraction of as many digits
            raise ValueError
        rate = Fraction(text) if "/" in text else Fraction(decimal)
    except (ValueError, ZeroDivisionError, InvalidOperation, OverflowError):
        raise ConfigError(
            f'{key}.rate must be a number, a decimal or a fraction such as "1/10", got {value!r}'
        ) from None
    if rate < 0:
        raise ConfigError(f"{key}.rate must not be negative, got {value!r}; give 0 for none")
    return rate


def rate_per_step(config: ScheduleConfig, geometry: Geometry, *, key: str) -> Fraction:
    """The configured mean frequency in instances per optimizer step."""
    if config.unit not in UNITS:
        raise ConfigError(f"{key}.unit must be one of {UNITS}, got {config.unit!r}")
    rate = parse_rate(config.rate, key=key)
    if config.unit == "per_sequence":
        rate *= geometry.batch_size
    elif config.unit == "per_token":
        rate *= geometry.batch_size * geometry.seq_len
    return rate


def rate_in_all_units(
    rate: Fraction, geometry: Geometry, *, tokens_per_instance: int | Fraction
) -> dict:
    """A rate per step in every unit the field uses.

    Returns floats: per_step, per_sequence (rows), per_token (instances per token of the stream) and
    task_tokens_per_token (`tokens_per_instance` includes the EOS).
    """
    per_sequence = rate / geometry.batch_size
    per_token = per_sequence / geometry.seq_len
    return {
        "per_step": float(rate),
        "per_sequence": float(per_sequence),
        "per_token": float(per_token),
        "task_tokens_per_token": float(per_token * tokens_per_instance),
    }


class Schedule(ABC):
    """A counting function over steps; everything else follows from `before`."""

    kind: ClassVar[str]
    label: str
    """The kind with all that tells it from others of equal rate, for people: "burst every 20"."""

    rate: Fraction
    """Mean instances per step over the span in which the schedule is active."""

    gap: int | None = None
    """Steps from one that has instances to the next, where that is one number all through."""

    @abstractmethod
    def before(self, step: int) -> int:
        """Instances in steps 0 .. step-1; non-decreasing, before(0) = 0."""

    @abstractmethod
    def canonical(self) -> dict[str, Any]:
        """What the counting function depends on, as JSON: part of the plan's hash."""

    def count(self, step: int) -> int:
        """Instances in this step."""
        return self.before(step + 1) - self.before(step)

    @property
    def peak(self) -> int | None:
        """The most instances any step can have; None where only chance bounds it."""
        return None


class Even(Schedule):
    """As evenly as whole numbers allow: step s gets floor((s+1) r) - floor(s r) instances.

    With `start` and `stop` the same inside a window and nothing outside (kind "window").
    """

    kind = "even"

    def __init__(self, rate: Fraction, *, start: int = 0, stop: int | None = None) -> None:
        self.rate, self.start, self.stop = rate, start, stop
        windowed = start > 0 or stop is not None
        self.label = f"window {start}-{'end' if stop is None else stop}" if windowed else "even"
        if not windowed:
            one_each = rate.denominator if rate.numerator == 1 else None
            self.gap = 1 if rate >= 1 else one_each

    def before(self, step: int) -> int:
        if self.stop is not None:
            step = min(step, self.stop)
        steps = max(step - self.start, 0)
        return steps * self.rate.numerator // self.rate.denominator

    def canonical(self) -> dict[str, Any]:
        if self.start == 0 and self.stop is None:
            return {"kind": "even", "rate_per_step": str(self.rate)}
        return {
            "kind": "window",
            "rate_per_step": str(self.rate),
            "start": self.start,
            "stop": self.stop,
        }

    @property
    def peak(self) -> int:
        return -(-self.rate.numerator // self.rate.denominator)


class Burst(Schedule):
    """`size` instances in one step every `every` steps, the first at step `phase`.

    The study's matched-frequency experiment (Fig. 6b) is size = every = 1, 10, 20, 50, 100. With
    `stop` there is none from that step on: until then it is the run without it, bit for bit, which
    makes it the control of the burst that is left out (eval/retention/retained.py).
    """

    kind = "burst"

    def __init__(self, size: int, *, every: int, phase: int = 0, stop: int | None = None) -> None:
        self.size, self.every, self.phase, self.stop = size, every, phase, stop
        self.rate = Fraction(size, every)
        self.gap = every if stop is None else None
        self.label = f"burst every {every}" + (f" from {phase}" if phase else "")
        self.label += "" if stop is None else f" until {stop}"

    def before(self, step: int) -> int:
        if self.stop is not None:
            step = min(step, self.stop)
        return self.size * max(-(-(step - self.phase) // self.every), 0)

    def canonical(self) -> dict[str, Any]:
        stop = {} if self.stop is None else {"stop": self.stop}
        return {
            "kind": "burst",
            "size": self.size,
            "every": self.every,
            "phase": self.phase,
            **stop,
        }

    @property
    def peak(self) -> int:
        return self.size


class Trace(Schedule):
    """Explicit: one instance at each listed step (ascending, repeats allowed)."""

    kind = label = "trace"

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps
        self.rate = Fraction(len(steps), steps[-1] + 1) if steps else Fraction(0)

    def before(self, step: int) -> int:
        return bisect_left(self.steps, step)

    def canonical(self) -> dict[str, Any]:
        return {"kind": "trace", "steps": self.steps}

    @property
    def peak(self) -> int:
        return int(np.unique(self.steps, return_counts=True)[1].max()) if self.steps else 0


class Random(Schedule):
    """An exact total on distinct rows of the span [start, stop), chosen uniformly by the seed."""

    kind = "random"

    def __init__(
        self, total: int, *, start: int, stop: int, batch_size: int, seed: int, purpose: str
    ) -> None:
        self.total, self.start, self.stop, self.batch_size = total, start, stop, batch_size
        self.rate = Fraction(total, stop - start)
        self.label = f"random {start}-{stop}"
        rows = _distinct(total, (stop - start) * batch_size, seed=seed, purpose=purpose)
        counts = np.count_nonzero(rows.reshape(stop - start, batch_size), axis=1)
        self._before = np.concatenate([[0], np.cumsum(counts)])

    def before(self, step: int) -> int:
        return int(self._before[min(max(step - self.start, 0), self.stop - self.start)])

    def canonical(self) -> dict[str, Any]:
        return {"kind": "random", "total": self.total, "start": self.start, "stop": self.stop}

    @property
    def peak(self) -> int:
        return int(np.diff(self._before).max())


class Bernoulli(Schedule):
    """Every row is an instance with the same probability: the one schedule that is not exact.

    The realised count is `before`; it is stored block by block as steps are asked for, each block a
    pure function of (seed, task, block).
    """

    kind = "bernoulli"
    BLOCK = 256
    """Steps per stored block."""

    def __init__(
        self,
        rate: Fraction,
        *,
        start: int,
        stop: int | None,
        batch_size: int,
        seed: int,
        purpose: str,
    ) -> None:
        self.rate, self.start, self.stop, self.batch_size = rate, start, stop, batch_size
        self.seed, self.purpose = seed, purpose
        self.label = f"bernoulli {start}-{'end' if stop is None else stop}"
        probability = rate / batch_size
        self._threshold = min(int(probability * 2**64), 2**64 - 1)
        self._before = np.zeros(1, dtype=np.int64)

    def before(self, step: int) -> int:
        if self.stop is not None:
            step = min(step, self.stop)
        step = max(step - self.start, 0)
        before = self._before  # one array throughout: another thread may store a longer one
        while len(before) <= step:
            block = (len(before) - 1) // self.BLOCK
            words = raw_words(
                self.BLOCK * self.batch_size, seed=self.seed, purpose=self.purpose, counter=block
            )
            counts = (words.reshape(self.BLOCK, -1) < np.uint64(self._threshold)).sum(axis=1)
            self._before = before = np.concatenate([before, before[-1] + np.cumsum(counts)])
        return int(before[step])

    def canonical(self) -> dict[str, Any]:
        return {
            "kind": "bernoulli",
            "rate_per_step": str(self.rate),
            "start": self.start,
            "stop": self.stop,
        }


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


def _distinct(num: int, span: int, *, seed: int, purpose: str) -> np.ndarray:
    """Which of range(span) are among `num` chosen uniformly: a mask, shape (span,).

    A pure function of the arguments: the first `num` distinct numbers of a stream of random words,
    which comes in blocks of num + 64 words, one a counter.
    """
    if 2 * num > span:  # choose the ones to leave out: rejection would hardly end
        out = _distinct(span - num, span, seed=seed, purpose=purpose)
        return np.logical_not(out, out=out)
    chosen = np.zeros(span, dtype=bool)
    counted, drawn, counter, left = 0, 0, -1, 0
    while counted < num:
        # A word chooses at most one number: as many as are missing never choose too many, and the
        # mask, which is long, need not be counted before they are drawn.
        missing = num - counted - drawn
        if missing == 0:
            counted, drawn = int(np.count_nonzero(chosen)), 0
            continue
        if left == 0:
            counter, left = counter + 1, num + 64
            bits = word_stream(seed=seed, purpose=purpose, counter=counter)
        size = min(missing, left, 2**17)
        rows = _remainder(bits.random_raw(size), span)  # the modulo's bias: span / 2^64
        left -= size
        if (
            drawn == 0 and missing * 128 < span
        ):  # so few are sooner told apart than the mask counted
            rows = np.unique(rows)
            rows = rows[~chosen[rows]]
            counted += len(rows)
        else:
            drawn += size
        chosen[rows] = True
    return chosen


def _remainder(words: np.ndarray, span: int) -> np.ndarray:
    """words % span as int64, which indexes faster; NumPy divides by one number faster, too."""
    quotients = words // np.uint64(span)
    quotients *= np.uint64(span)
    words -= quotients
    return words.view(np.int64)
