"""How strongly common tasks pull at each width: residual, Theorem 4's bounds, the norm itself.

    rows = run_cells(cells(GradientSettings()), folder, jobs=2)

Joint SGD on samples; the encoder is read over the last quarter of training. Theorem 4 is a
statement about the bound: residual and bounds fall with width, the raw norm need not, and at small
widths it rises. (At the optimum itself the population gradient is zero at every width.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from theory.bounds import covariance, gradient_bounds, residual_at_optimum
from theory.lab.cells import Cell, Row, chosen, rows_by
from theory.lab.phase import sampled_groups
from theory.settings import PowerLaw, check_positive, check_seeds


@dataclass(frozen=True)
class GradientSettings:
    """Common gradients against width; see configs/theory/gradients.yaml."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    widths: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    mixture: PowerLaw = field(default_factory=lambda: PowerLaw(a=1.0, b=1.0))
    common: int = 8
    """F: the so many most frequent tasks."""

    rate: float = 0.1
    batch_size: int = 64
    steps: int = 8000
    read_every: int = 100
    """Steps between readings over the last quarter."""

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        check_positive(self, "widths", "common", "rate", "batch_size", "steps", "read_every")
        if self.common > self.mixture.num_tasks:
            raise ValueError(
                f"common must be at most the {self.mixture.num_tasks} tasks, got {self.common}"
            )
        if self.read_every > self.steps // 4:
            raise ValueError(f"read_every must be at most steps / 4, got {self.read_every}")


def predictions(settings: GradientSettings) -> list[Row]:
    """Residual and bound of the best encoder of each width; from the mixture alone."""
    mixture, tasks = settings.mixture.mixture(), range(settings.common)
    largest = float(covariance(mixture, tasks).max())
    left = np.array([residual_at_optimum(mixture, n, tasks=tasks) for n in settings.widths])
    fields = {"experiment": "gradients"}
    operator = 2 * np.sqrt(largest * left)
    return rows_by("width", settings.widths, fields, residual=left, operator=operator)


def cells(settings: GradientSettings) -> list[Cell]:
    """One cell a width, and a seed where students are wide."""
    shared = chosen(settings, "common", "rate", "batch_size", "steps", "read_every")
    shared["power_law"] = asdict(settings.mixture)
    features = settings.mixture.num_tasks * settings.mixture.rank
    made = []
    for width in settings.widths:
        for group, cost in sampled_groups(
            width, settings.seeds, steps=settings.steps, num_features=features
        ):
            made.append(Cell(run_width, {**shared, "width": width, "seeds": group}, cost=cost))
    return made


def run_width(
    *, power_law: dict[str, Any], common: int, rate: float, batch_size: int, steps: int,
    read_every: int, width: int, seeds: Sequence[int],
) -> list[Row]:  # fmt: skip
    """One row per seed and metric: the mean over the last quarter, but `worst`, which is a maximum.

    residual, norm, split, operator, trace, residual_norm as in GradientBounds; minibatch, the
    norm of the batch's gradient; joint, the norm of G_F with the decoders as trained; worst, the
    largest norm / bound of all readings and bounds.
    """
    from theory.lab.measures import norm
    from theory.lab.student import JointStudents
    from theory.stream import steady

    mixture = PowerLaw(**power_law).mixture()
    # One step more than is taken: the last reading looks at the batch after it.
    students = JointStudents(
        mixture, width, seeds=seeds, phases=steady(mixture, steps + 1), rate=rate, mode="sampled",
        batch_size=batch_size,
    )  # fmt: skip
    weights = np.where(np.arange(mixture.num_tasks) < common, mixture.frequencies, 0.0)
    readings: dict[str, list[list[float]]] = {}
    for step in range(steps - steps // 4, steps + 1, read_every):
        students.run(step - students.step)
        for name, values in _reading(students, mixture, range(common), weights, norm).items():
            readings.setdefault(name, []).append(values)
    fields = {"experiment": "gradients", "width": width, "step": steps}
    reduced = {
        name: np.max(values, axis=0) if name == "worst" else np.mean(values, axis=0)
        for name, values in readings.items()
    }
    return rows_by("seed", seeds, fields, **reduced)


def _reading(
    students: Any, mixture: Any, tasks: range, weights: np.ndarray, norm: Any
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for encoder in students.U_EDN.double().numpy():
        basis, _ = np.linalg.qr(encoder)
        bounds = asdict(gradient_bounds(basis, mixture, tasks=tasks))
        limits = ("split", "operator", "trace", "residual_norm")
        bounds["worst"] = max(bounds["norm"] / bounds[name] for name in limits)
        for name, value in bounds.items():
            found.setdefault(name, []).append(value)
    found["minibatch"] = norm(students.batch_gradient()).tolist()
    found["joint"] = norm(students.task_gradient(weights)).tolist()
    return found
