"""Schedules in closed form: evenly spread (also in a window), in bursts, or step by step as listed.

Even(Fraction(1, 10)).before(50_000)            # 5000
Bursts(20, every=20).count(40)                   # 20
"""

from __future__ import annotations

from bisect import bisect_left
from fractions import Fraction
from typing import Any

import numpy as np

from data_injection.schedules.base import Schedule


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
        return max(step - self.start, 0) * self.rate.numerator // self.rate.denominator

    def canonical(self) -> dict[str, Any]:
        if self.start == 0 and self.stop is None:
            return {"kind": "even", "rate_per_step": str(self.rate)}
        span = {"start": self.start, "stop": self.stop}
        return {"kind": "window", "rate_per_step": str(self.rate), **span}

    @property
    def peak(self) -> int:
        return -(-self.rate.numerator // self.rate.denominator)


class Bursts(Schedule):
    """`size` instances in one step every `every` steps, the first at step `phase`.

    The study's matched-frequency experiment (Fig. 6b) is size = every = 1, 10, 20, 50, 100. With
    `stop` there is none from that step on: until then it is the run without it, bit for bit, which
    makes it the control of the burst that is left out (eval/retention/retained.py). With `total`
    the bursts end when there have been so many instances.
    """

    kind = "burst"

    def __init__(
        self, size: int, *, every: int, phase: int = 0, stop: int | None = None,
        total: int | None = None,
    ) -> None:  # fmt: skip
        self.size, self.every, self.phase, self.stop = size, every, phase, stop
        self.total = total
        self.rate = Fraction(size, every)
        self.gap = every if stop is None and total is None else None
        self.label = f"burst every {every}" + (f" from {phase}" if phase else "")
        self.label += "" if stop is None else f" until {stop}"
        self.label += "" if total is None else f", {total} in all"

    def before(self, step: int) -> int:
        if self.stop is not None:
            step = min(step, self.stop)
        instances = self.size * max(-(-(step - self.phase) // self.every), 0)
        return instances if self.total is None else min(instances, self.total)

    def canonical(self) -> dict[str, Any]:
        told = {"kind": "burst", "size": self.size, "every": self.every, "phase": self.phase}
        ends = {"stop": self.stop, "total": self.total}
        return told | {name: end for name, end in ends.items() if end is not None}

    @property
    def peak(self) -> int:
        return self.size if self.total is None else min(self.size, self.total)


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
