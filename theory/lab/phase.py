"""The phase diagram: which tasks are learned at which width, against the analytic boundary.

    rows = run_cells(cells(PhaseSettings()), folder, jobs=2)

Task r counts as learned where the encoder spans its leading feature, q_r = b_r1^T P_U b_r1 > 0.5;
the theory says so from N >= N_r^crit on. The prediction is made from the mixture alone, before any
run. Misses at the boundary are tasks not yet swapped in: a feature takes another's place at a rate
of about 2 eta (u_r - u_c), which goes to zero where the two are nearly as useful.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from theory.lab.cells import Cell, Row, rows_by
from theory.mixture import Floats, Mixture
from theory.settings import PowerLaw, check_positive, check_seeds
from theory.utility import critical_widths, optimal_loss, retained_signal, width_for_share

LEARNED = 0.5


@dataclass(frozen=True)
class Trainer:
    """How students are trained."""

    mode: str = "exact"
    """exact or sampled (joint SGD), or orthogonal (orthogonal iteration)."""

    rate: float = 1.0
    """Learning rate eta."""

    steps: int = 12_000
    """Steps at widths that `steps_at` does not name."""

    steps_at: dict[int, int] = field(default_factory=dict)
    """Steps at some widths; orthogonal iteration takes `steps` at all of them."""

    mixtures: tuple[str, ...] = ("A",)
    """Which of the experiment's mixtures it is run on."""

    def __post_init__(self) -> None:
        if self.mode not in ("exact", "sampled", "orthogonal"):
            raise ValueError(f"mode must be exact, sampled or orthogonal, got {self.mode!r}")
        check_positive(self, "rate", "steps")


@dataclass(frozen=True)
class PhaseSettings:
    """The phase diagram; see configs/theory/phase.yaml."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of initial weights, drawn tasks and inputs."""

    widths: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    batch_size: int = 64

    mixtures: dict[str, PowerLaw] = field(
        default_factory=lambda: {
            "A": PowerLaw(),
            "B": PowerLaw(rank=16, a=1.15, b=0.75, nuisance=0),
        }
    )
    trainers: dict[str, Trainer] = field(
        default_factory=lambda: {
            "joint, exact": Trainer("exact", 1.0, 12_000, {128: 8_000, 256: 4_000}, ("A", "B")),
            "joint, sampled": Trainer("sampled", 0.05, 20_000, {256: 10_000}, ("A",)),
            "orthogonal": Trainer("orthogonal", 0.5, 10_000, {}, ("A", "B")),
        }
    )

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        check_positive(self, "widths", "batch_size")
        for name, trainer in self.trainers.items():
            if unknown := set(trainer.mixtures) - set(self.mixtures):
                raise ValueError(
                    f"trainers.{name}.mixtures names {sorted(unknown)}; there are "
                    f"{', '.join(self.mixtures)}"
                )
        for name, power_law in self.mixtures.items():
            inputs = power_law.mixture().num_inputs
            if max(self.widths) > inputs:
                raise ValueError(
                    f"widths must be at most mixture {name}'s {inputs} inputs, got "
                    f"{max(self.widths)}; raise mixtures.{name}.nuisance"
                )


def predictions(settings: PhaseSettings) -> list[Row]:
    """What the theory says of every mixture, width and task; from the mixture alone."""
    rows: list[Row] = []
    for name, power_law in settings.mixtures.items():
        mixture = power_law.mixture()
        critical, half = critical_widths(mixture)[:, 0], width_for_share(mixture)
        for width in settings.widths:
            kept = retained_signal(mixture, width)
            fields = {"experiment": "phase", "mixture": name, "width": width}
            best = float(optimal_loss(mixture, width))
            rows.append({**fields, "metric": "optimal_loss", "value": best})
            rows += rows_by(
                "task", mixture.numbers, fields, critical_width=critical, half_width=half,
                learned=(critical <= width).astype(int), retained=kept,
            )  # fmt: skip
    return rows


def cells(settings: PhaseSettings) -> list[Cell]:
    """One cell a mixture, trainer and width; all widths in one for orthogonal iteration."""
    made = []
    for name, trainer in settings.trainers.items():
        for mixture in trainer.mixtures:
            power_law = settings.mixtures[mixture]
            shared: dict[str, Any] = {
                "mixture": mixture,
                "power_law": asdict(power_law),
                "trainer": name,
                "rate": trainer.rate,
                "batch_size": settings.batch_size,
                "seeds": list(settings.seeds),
            }
            if trainer.mode == "orthogonal":
                own = {"steps": trainer.steps, "widths": list(settings.widths)}
                made.append(Cell(run_orthogonal, shared | own, cost=len(settings.seeds)))
                continue
            for width in settings.widths:
                steps = trainer.steps_at.get(width, trainer.steps)
                own = {"steps": steps, "width": width, "mode": trainer.mode}
                features = power_law.num_tasks * power_law.rank
                cost = steps * len(settings.seeds) * step_cost(width, features) / 1e4
                made.append(Cell(run_joint, shared | own, cost=cost))
    return made


def step_cost(width: int, num_features: int) -> float:
    """Rough time of a step, width 16 and 256 features being about 1."""
    return (0.6 + (width / 32) ** 1.2) * num_features / 256


def sampled_groups(
    width: int, seeds: Sequence[int], *, steps: int, num_features: int
) -> list[tuple[list[int], float]]:
    """Seeds that share a cell, and its cost, in sampled mode: wide students are slow, one each."""
    groups = [list(seeds)] if width <= 64 else [[seed] for seed in seeds]
    return [(g, (0.5 + step_cost(width, num_features)) * steps * len(g) / 1e4) for g in groups]


def run_joint(
    *, mixture: str, power_law: dict[str, Any], trainer: str, mode: Any, rate: float,
    batch_size: int, seeds: Sequence[int], width: int, steps: int,
) -> list[Row]:  # fmt: skip
    """Joint SGD at one width, all seeds."""
    from theory.lab.measures import leverage, population_loss
    from theory.lab.student import JointStudents
    from theory.stream import steady

    made = PowerLaw(**power_law).mixture()
    students = JointStudents(
        made, width, seeds=seeds, phases=steady(made, steps), rate=rate, mode=mode,
        batch_size=batch_size,
    )  # fmt: skip
    students.run(steps)
    losses = population_loss(students.U_EDN, students.V_EFN, made)
    spanned = leverage(students.U_EDN, made.num_features)
    fields = {"experiment": "phase", "mixture": mixture, "trainer": trainer, "width": width}
    rows: list[Row] = []
    for seed, loss, of_seed in zip(seeds, losses, spanned, strict=True):
        rows += _student_rows(fields | {"seed": seed, "step": steps}, made, loss, of_seed)
    return rows


def run_orthogonal(
    *, mixture: str, power_law: dict[str, Any], trainer: str, rate: float, batch_size: int,
    seeds: Sequence[int], widths: Sequence[int], steps: int,
) -> list[Row]:  # fmt: skip
    """Orthogonal iteration, all widths of a seed in one run."""
    from theory.lab.orthogonal import orthogonal_iteration
    from theory.stream import steady

    made = PowerLaw(**power_law).mixture()
    rows: list[Row] = []
    for seed in seeds:
        spanned = orthogonal_iteration(
            made, steady(made, steps), rate=rate, seed=seed, max_width=max(widths),
            batch_size=batch_size,
        )  # fmt: skip
        for width in widths:
            fields = {"experiment": "phase", "mixture": mixture, "trainer": trainer, "width": width}
            of_width = spanned[:, width - 1]
            loss = (made.utilities.ravel() * (1 - of_width)).sum()
            rows += _student_rows(fields | {"seed": seed, "step": steps}, made, loss, of_width)
    return rows


def _student_rows(fields: Row, mixture: Mixture, loss: float, leverage_F: Floats) -> list[Row]:
    """The loss, and two rows a task: the leverage of its leading feature, its retained signal."""
    per_task = leverage_F.reshape(mixture.spectra.shape)
    kept = (per_task * mixture.spectra).sum(axis=1) / mixture.traces
    rows = rows_by("task", mixture.numbers, fields, leverage=per_task[:, 0], retained=kept)
    return [{**fields, "metric": "loss", "value": float(loss)}, *rows]


def agreement(rows: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """One row per mixture, trainer, width and seed: how many of the tasks are as predicted.

    Columns: agreement (share of tasks), missed (tasks, from 1), loss_ratio (population loss over
    L_inf(N); NaN where that is 0).
    """
    learned = predicted[predicted.metric == "learned"].set_index(["mixture", "width", "task"]).value
    best = predicted[predicted.metric == "optimal_loss"].set_index(["mixture", "width"]).value
    table = []
    for group, of_run in rows.groupby(["mixture", "trainer", "width", "seed"], sort=True):
        mixture, _, width, _ = group
        measured = of_run[of_run.metric == "leverage"].set_index("task").value > LEARNED
        right = measured == (learned.loc[mixture, width].astype(bool))
        loss = of_run[of_run.metric == "loss"].value.iloc[0]
        floor = best.loc[mixture, width]
        table.append(
            dict(zip(("mixture", "trainer", "width", "seed"), group, strict=True))
            | {"agreement": float(right.mean()), "missed": [int(t) for t in right.index[~right]]}
            | {"loss_ratio": loss / floor if floor > 0 else np.nan}
        )
    return pd.DataFrame(table)
