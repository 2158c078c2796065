"""What a schedule is: a non-decreasing counting function, exact; and a rate in every unit.

    schedule.count(9), schedule.before(50_000)     # (1, 5000)
    parse_rate("1/10", key="rate")

`before(step)` is the number of instances in steps 0 .. step-1. Rates are Fractions: with r = 2.3 in
float64, floor((s+1)r) - floor(s r) is wrong at 5,003 of the first 50,000 steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, ClassVar

from data_injection.config import ScheduleConfig
from data_injection.errors import ConfigError

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
        rule = 'must be a number, a decimal or a fraction such as "1/10"'
        raise ConfigError(key=f"{key}.rate", value=value, rule=rule) from None
    if rate < 0:
        rule = "must not be negative"
        raise ConfigError(key=f"{key}.rate", value=value, rule=rule, remedy="give 0 for none")
    return rate


def rate_per_step(config: ScheduleConfig, geometry: Geometry, *, key: str) -> Fraction:
    """The configured mean frequency in instances per optimizer step."""
    if config.unit not in UNITS:
        raise ConfigError(key=f"{key}.unit", value=config.unit, rule=f"must be one of {UNITS}")
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

    promised: int | None = None
    """Instances in all, where the config says so: the training must have room for them."""

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
