"""The complexity sweep: does frequency or utility say in which order tasks are learned?

    rows = run_cells(cells(ComplexitySettings()), folder, jobs=2)

Half of the tasks, drawn at random, get slow spectra (b = 1 - D/2, complex) and half fast ones
(b = 1 + D/2). All have Tr C_k = 1: otherwise every leading eigenvalue is 1 and the order of leading
features is the order of frequencies whatever the complexity. A task's width is the least at which
half of its signal is retained. The correlation with frequency depends strongly on which tasks draw
which half: read its mean over assignments.

The widths come from orthogonal iteration, which is near-tautological, so joint SGD is asked too, at
one width: there the tasks' retained signals are ranked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from theory.lab.cells import Cell, Row, chosen, rows_by
from theory.mixture import Mixture, power_law
from theory.settings import check_positive, check_seeds
from theory.utility import critical_widths, retained_signal, width_for_share


@dataclass(frozen=True)
class ComplexitySettings:
    """The complexity sweep; see configs/theory/complexity.yaml."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Each draws an assignment of complexities, initial weights and tasks."""

    gaps: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
    """D: by how much the two halves' decay exponents differ, in [0, 2]."""

    num_tasks: int = 32
    rank: int = 16
    a: float = 1.0
    """Exponent of the frequencies."""

    max_width: int = 320
    """Tasks that need more count as max_width + 1."""

    rate: float = 0.5
    steps: int = 6000
    batch_size: int = 64

    joint_gaps: tuple[float, ...] = (0.0, 1.0, 2.0)
    """D at which joint SGD is trained as well."""

    joint_width: int = 64
    joint_rate: float = 1.0
    joint_steps: int = 12_000

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        check_positive(
            self, "num_tasks", "rank", "max_width", "rate", "steps", "batch_size",
            "joint_width", "joint_rate", "joint_steps",
        )  # fmt: skip
        if wrong := [gap for gap in (*self.gaps, *self.joint_gaps) if not 0 <= gap <= 2]:
            raise ValueError(f"gaps must be in [0, 2], got {wrong[0]:g}: spectra do not rise")
        if max(self.max_width, self.joint_width) > self.num_tasks * self.rank:
            raise ValueError(
                f"max_width and joint_width must be at most num_tasks x rank = "
                f"{self.num_tasks * self.rank}, got {self.max_width} and {self.joint_width}"
            )


def assigned_mixture(seed: int, gap: float, *, num_tasks: int, rank: int, a: float) -> Mixture:
    """A random half of the tasks complex, the other simple, each with Tr C_k = 1."""
    decay = np.full(num_tasks, 1 + gap / 2)
    complex_tasks = np.random.default_rng([seed, 3]).permutation(num_tasks)[: num_tasks // 2]
    decay[complex_tasks] = 1 - gap / 2
    return power_law(num_tasks, rank, a=a, b=decay, unit_trace=True)


def predictions(settings: ComplexitySettings) -> list[Row]:
    """Per assignment, gap and task: the width the theory asks for, and l_k* at the joint width."""
    rows: list[Row] = []
    for seed in settings.seeds:
        for gap in settings.gaps:
            mixture = assigned_mixture(seed, gap, **chosen(settings, "num_tasks", "rank", "a"))
            half, first = width_for_share(mixture), critical_widths(mixture)[:, 0]
            kept = retained_signal(mixture, settings.joint_width)
            fields = {"experiment": "complexity", "seed": seed, "gap": gap}
            widths = {"half_width": half, "critical_width": first}
            rows += rows_by("task", mixture.numbers, fields, **widths, retained=kept)
    return rows


def cells(settings: ComplexitySettings) -> list[Cell]:
    """One cell per assignment and gap."""
    shape = chosen(settings, "num_tasks", "rank", "a", "batch_size")
    alone = shape | chosen(settings, "max_width", "rate", "steps")
    joint = {"width": settings.joint_width, "rate": settings.joint_rate}
    joint |= shape | {"steps": settings.joint_steps}
    made = []
    for seed in settings.seeds:
        made += [Cell(run_orthogonal, {**alone, "seed": seed, "gap": gap}) for gap in settings.gaps]
        made += [
            Cell(run_joint, {**joint, "seed": seed, "gap": gap}, cost=4.0)
            for gap in settings.joint_gaps
        ]
    return made


def run_orthogonal(
    *, seed: int, gap: float, num_tasks: int, rank: int, a: float, batch_size: int,
    max_width: int, rate: float, steps: int,
) -> list[Row]:  # fmt: skip
    """The least width at which each task retains half of its signal, all widths in one run."""
    from theory.lab.orthogonal import orthogonal_iteration
    from theory.stream import steady

    mixture = assigned_mixture(seed, gap, num_tasks=num_tasks, rank=rank, a=a)
    spanned = orthogonal_iteration(
        mixture, steady(mixture, steps), rate=rate, seed=seed, max_width=max_width,
        batch_size=batch_size,
    )  # fmt: skip
    kept = (spanned.reshape(num_tasks, rank, max_width) * mixture.spectra[:, :, None]).sum(axis=1)
    enough = kept >= 0.5
    widths = np.where(enough.any(axis=1), enough.argmax(axis=1) + 1, max_width + 1)
    fields = {"experiment": "complexity", "trainer": "orthogonal", "seed": seed, "gap": gap}
    return rows_by("task", mixture.numbers, fields | {"step": steps}, half_width=widths)


def run_joint(
    *, seed: int, gap: float, num_tasks: int, rank: int, a: float, batch_size: int,
    width: int, rate: float, steps: int,
) -> list[Row]:  # fmt: skip
    """Each task's retained signal at one width after joint SGD, exact in x."""
    from theory.lab.measures import leverage, population_loss, retained
    from theory.lab.student import JointStudents
    from theory.stream import steady
    from theory.utility import optimal_loss

    mixture = assigned_mixture(seed, gap, num_tasks=num_tasks, rank=rank, a=a)
    students = JointStudents(
        mixture, width, seeds=(seed,), phases=steady(mixture, steps), rate=rate,
        batch_size=batch_size,
    )  # fmt: skip
    students.run(steps)
    kept = retained(leverage(students.U_EDN, mixture.num_features), mixture)[0]
    loss = population_loss(students.U_EDN, students.V_EFN, mixture)[0]
    fields = {"experiment": "complexity", "trainer": "joint, exact", "seed": seed, "gap": gap}
    fields |= {"step": steps, "width": width}
    ratio = float(loss / optimal_loss(mixture, width))
    rows = rows_by("task", mixture.numbers, fields, retained=kept)
    return [{**fields, "metric": "loss_ratio", "value": ratio}, *rows]


def correlations(rows: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rho over tasks, per trainer, gap and assignment.

    Columns: trainer, gap, seed, frequency, utility. Orthogonal iteration: of the width at which a
    task is half learned, with its rank by frequency and with the width the theory gives. Joint SGD:
    of what is retained at one width, with frequency and with l_k*(N); NaN if all are equal.
    """
    table = []
    for (trainer, gap, seed), of_run in rows.groupby(["trainer", "gap", "seed"], sort=True):
        metric = "half_width" if trainer == "orthogonal" else "retained"
        measured = of_run[of_run.metric == metric].set_index("task").value.sort_index()
        same = predicted[(predicted.gap == gap) & (predicted.seed == seed)]
        theory = same[same.metric == metric].set_index("task").value.sort_index()
        # A task's number is its rank by frequency; what is retained falls with it.
        by_frequency = np.arange(len(measured)) * (1 if trainer == "orthogonal" else -1)
        table.append(
            {"trainer": trainer, "gap": gap, "seed": seed}
            | {"frequency": _spearman(measured.to_numpy(), by_frequency)}
            | {"utility": _spearman(measured.to_numpy(), theory.to_numpy())}
        )
    return pd.DataFrame(table)


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    from scipy.stats import spearmanr

    # Rounded: what differs in the last digits of fp32 is tied.
    a, b = np.round(first, 6), np.round(second, 6)
    return float("nan") if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)
