"""What the settings of the lab's experiments share: a power-law mixture, and what they refuse.

PowerLaw(num_tasks=8).mixture()
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from theory.mixture import Mixture, power_law


@dataclass(frozen=True)
class PowerLaw:
    """A power-law mixture: pi_k ~ k^-a, lambda_j = j^-b."""

    num_tasks: int = 32
    """K; the study's."""

    rank: int = 8
    """m: features a task."""

    a: float = 1.25
    """Exponent of the frequencies."""

    b: float = 0.9
    """Exponent of the spectra."""

    nuisance: int = 256
    """Input dimensions that no task asks for: without them a random encoder already spans N / K m
    of every feature."""

    def mixture(self) -> Mixture:
        num_inputs = self.num_tasks * self.rank + self.nuisance
        return power_law(self.num_tasks, self.rank, a=self.a, b=self.b, num_inputs=num_inputs)


def check_positive(settings: object, *names: str, where: str = "") -> None:
    """Raise ValueError unless each named number that is given, or all of a tuple, is above 0."""
    for name in names:
        value = getattr(settings, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(one is not None and not (math.isfinite(one) and one > 0) for one in numbers):
            raise ValueError(f"{where}{name} must be above 0, got {value}")


def check_seeds(seeds: tuple[int, ...]) -> None:
    """Raise ValueError for seeds that are negative or come twice."""
    if any(seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different numbers of at least 0, got {list(seeds)}")
