"""Matched-frequency injection: a rare task in bursts, below and above its critical width.

    rows = run_cells(cells(InjectionSettings()), folder, jobs=2)

"trace": gap and burst in turns from scratch; below the critical width the rare signal spikes and
decays to about zero before the next burst, above it the baseline climbs. "forget": one burst after
a long warm-up without the task; the half-life of what it taught, against width and against
ln 2 / (4 eta mu_N). "gaps": the same frequency at several gaps, read before a burst: at a burst's
peak a larger gap looks better, not worse. These three are joint SGD on samples. "critical" is
orthogonal iteration: the critical width that each gap asks for, a burst being one weighted step.

Recurring spikes need sampling noise: in exact mode nothing restores what decays, and they die out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from theory.dynamics import gap_critical_width, half_life
from theory.lab.cells import Cell, Row, chosen, rows_by
from theory.lab.phase import sampled_groups
from theory.mixture import Mixture
from theory.settings import PowerLaw, check_positive, check_seeds
from theory.stream import Phases, burst_length, bursts
from theory.utility import critical_widths

LAGS = (0, 10, 20, 30, 40, 60, 80, 100, 120, 160,
        200, 250, 300, 350, 400, 500, 600, 800, 1000, 1500)  # fmt: skip
"""Steps after a burst at which a trace is read; so also right before the next one."""

FORGET_EVERY = 10
"""Steps between two readings of the forgetting curve."""


@dataclass(frozen=True)
class InjectionSettings:
    """Matched-frequency injection; see configs/theory/injection.yaml."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    mixture: PowerLaw = field(default_factory=lambda: PowerLaw(a=1.0, b=1.0))
    task: int = 32
    """r, from 1: the rare task, by default the rarest."""

    rate: float = 0.1
    batch_size: int = 64

    trace_widths: tuple[int, ...] = (32, 256)
    """The study's two."""

    gap: int = 2000
    """G: steps of a cycle, burst included."""

    cycles: int = 10

    forget_widths: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    warm_up: int = 6000
    """Steps without the task before the one burst."""

    forget_steps: int = 2000

    gap_widths: tuple[int, ...] = (32, 64, 128)
    gaps: tuple[int, ...] = (130, 520, 2080)
    gap_seeds: int = 3
    """How many of the seeds take part in the sweep over gaps."""

    gap_steps: int = 20_800

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        check_positive(
            self, "rate", "batch_size", "trace_widths", "gap", "cycles", "forget_widths",
            "warm_up", "forget_steps", "gap_widths", "gaps", "gap_seeds", "gap_steps",
        )  # fmt: skip
        mixture = self.mixture.mixture()
        if not 1 <= self.task <= mixture.num_tasks:
            raise ValueError(f"task must be in 1..{mixture.num_tasks}, got {self.task}")
        for gap in (self.gap, *self.gaps):
            bursts(mixture, self.task - 1, gap=gap, cycles=1)  # raises if the burst fills it
        if max(self.gaps) > self.gap_steps:
            raise ValueError(f"gap_steps must be at least the largest gap, got {self.gap_steps}")


def predictions(settings: InjectionSettings) -> list[Row]:
    """Critical width, gap-aware ones, and half-lives; from the mixture alone."""
    mixture, task = settings.mixture.mixture(), settings.task - 1
    fields = {"experiment": "injection", "task": settings.task}
    rows: list[Row] = []
    for kind in ("worst", "best"):
        width = critical_widths(mixture, ties=kind)[task, 0]
        rows.append({**fields, "metric": f"critical_width_{kind}", "value": int(width)})
    for width in settings.forget_widths:
        steps = half_life(mixture, width, task=task, rate=settings.rate)
        value = steps if np.isfinite(steps) else None
        rows.append({**fields, "metric": "half_life", "width": width, "value": value})
    for gap in settings.gaps:
        for length in (1, None):
            width = gap_critical_width(
                mixture, task=task, gap=gap, rate=settings.rate, length=length
            )
            steps = length or burst_length(mixture, task, gap)
            own = {"gap": gap, "burst": steps, "one_step": length == 1, "value": width}
            rows.append({**fields, "metric": "gap_critical_width", **own})
    return rows


def cells(settings: InjectionSettings) -> list[Cell]:
    """Cells of all three parts; wide students one seed a cell, since they are slow."""
    alone = chosen(settings, "task", "rate") | {"power_law": asdict(settings.mixture)}
    shared = alone | chosen(settings, "batch_size")
    features = settings.mixture.num_tasks * settings.mixture.rank
    made = []

    def add(run: Any, width: int, seeds: Sequence[int], steps: int, own: dict[str, Any]) -> None:
        for group, cost in sampled_groups(width, seeds, steps=steps, num_features=features):
            made.append(Cell(run, {**shared, "width": width, "seeds": group, **own}, cost=cost))

    for gap in settings.gaps:
        own = {"gap": gap, "steps": settings.gap_steps, "seeds": list(settings.seeds)}
        made.append(Cell(run_critical, alone | own, cost=len(settings.seeds)))
    for width in settings.trace_widths:
        own = {"gap": settings.gap, "cycles": settings.cycles}
        add(run_trace, width, settings.seeds, settings.gap * settings.cycles, own)
    for width in settings.forget_widths:
        own = {"gap": settings.gap, "warm_up": settings.warm_up, "steps": settings.forget_steps}
        add(run_forget, width, settings.seeds, settings.warm_up + settings.forget_steps, own)
    for width in settings.gap_widths:
        for gap in settings.gaps:
            own = {"gap": gap, "cycles": settings.gap_steps // gap}
            add(run_gap, width, settings.seeds[: settings.gap_seeds], settings.gap_steps, own)
    return made


def run_trace(
    *, power_law: dict[str, Any], task: int, rate: float, batch_size: int, width: int,
    seeds: Sequence[int], gap: int, cycles: int,
) -> list[Row]:  # fmt: skip
    """Signals and gradients over the cycles, read after each burst at LAGS and before the next.

    A row's `cycle` counts from 1 and its `lag` is steps since that cycle's burst ended; rows before
    the first burst have cycle 0.
    """
    mixture = PowerLaw(**power_law).mixture()
    phases = bursts(mixture, task - 1, gap=gap, cycles=cycles)
    students = _students(mixture, phases, width, seeds, rate, batch_size)
    length = burst_length(mixture, task - 1, gap)
    fields = {"experiment": "injection", "part": "trace", "width": width, "gap": gap}
    rows: list[Row] = []
    for step, cycle, lag in read_steps(gap=gap, length=length, cycles=cycles):
        students.run(step - students.step)
        own = {**fields, "burst": length, "step": step, "cycle": cycle, "lag": lag}
        rows += _read(students, mixture, task - 1, own)
    return rows


def read_steps(*, gap: int, length: int, cycles: int) -> list[tuple[int, int, int]]:
    """(step, cycle, lag) of every reading of a trace, ascending; `step` counts steps taken."""
    lags = [lag for lag in LAGS if lag < gap - length]
    found = []
    for cycle in range(cycles):
        # Cycle 0 begins with a gap that no burst came before.
        ended = cycle * gap
        found += [(ended + lag, cycle, lag) for lag in (*lags, gap - length)]
        found += [(ended + gap - length + i, cycle, gap - length + i) for i in range(3, length, 3)]
    return [*found, (cycles * gap, cycles, 0)]


def run_forget(
    *, power_law: dict[str, Any], task: int, rate: float, batch_size: int, width: int,
    seeds: Sequence[int], gap: int, warm_up: int, steps: int,
) -> list[Row]:  # fmt: skip
    """One burst (as long as at `gap`) after a warm-up without the task, then `steps` without it."""
    mixture = PowerLaw(**power_law).mixture()
    length = burst_length(mixture, task - 1, gap)
    cycle = bursts(mixture, task - 1, gap=gap, cycles=1)
    phases = Phases(cycle.distributions, np.repeat([0, 1, 0], [warm_up, length, steps + 1]))
    students = _students(mixture, phases, width, seeds, rate, batch_size)
    students.run(warm_up + length)
    fields = {"experiment": "injection", "part": "forget", "width": width, "gap": gap}
    rows: list[Row] = []
    for lag in range(0, steps + 1, FORGET_EVERY):
        students.run(warm_up + length + lag - students.step)
        rows += _read(students, mixture, task - 1, {**fields, "lag": lag}, signals_only=True)
    return rows


def run_gap(
    *, power_law: dict[str, Any], task: int, rate: float, batch_size: int, width: int,
    seeds: Sequence[int], gap: int, cycles: int,
) -> list[Row]:  # fmt: skip
    """Signals right before and right after every burst, from scratch."""
    mixture = PowerLaw(**power_law).mixture()
    phases = bursts(mixture, task - 1, gap=gap, cycles=cycles)
    length = burst_length(mixture, task - 1, gap)
    students = _students(mixture, phases, width, seeds, rate, batch_size)
    fields = {"experiment": "injection", "part": "gaps", "width": width, "gap": gap}
    rows: list[Row] = []
    for cycle in range(cycles):
        for when, step in (("before", (cycle + 1) * gap - length), ("after", (cycle + 1) * gap)):
            students.run(step - students.step)
            own = {**fields, "cycle": cycle + 1, "when": when, "step": step}
            rows += _read(students, mixture, task - 1, own, signals_only=True)
    return rows


def run_critical(
    *, power_law: dict[str, Any], task: int, rate: float, seeds: Sequence[int], gap: int, steps: int
) -> list[Row]:
    """The least width that spans the rare feature by half after whole cycles of gap and burst.

    Orthogonal iteration on the population gradient; a burst is one step of weight gap pi, so that
    gaps differ in how strong a burst is and not in how long it takes.
    """
    from theory.lab.orthogonal import orthogonal_iteration

    mixture = PowerLaw(**power_law).mixture()
    phases = bursts(mixture, task - 1, gap=gap, cycles=2 * steps // gap, length=1)
    first, most = (task - 1) * mixture.rank, mixture.num_features
    widths = []
    for seed in seeds:
        spanned = orthogonal_iteration(mixture, phases, rate=rate, seed=seed, max_width=most)
        learned = spanned[first] > 0.5
        widths.append(int(learned.argmax()) + 1 if learned.any() else most + 1)
    fields = {"experiment": "injection", "part": "critical", "gap": gap, "burst": 1}
    return rows_by("seed", seeds, fields, critical_width=widths)


def _students(
    mixture: Mixture, phases: Phases, width: int, seeds: Sequence[int], rate: float, batch_size: int
) -> Any:
    from theory.lab.student import JointStudents

    return JointStudents(
        mixture, width, seeds=seeds, phases=phases, rate=rate, mode="sampled", batch_size=batch_size
    )


def _read(
    students: Any, mixture: Mixture, task: int, fields: Row, *, signals_only: bool = False
) -> list[Row]:
    """What is known of the rare task now, one row a seed and metric.

    leverage, retained, r_squared; then of gradients: cos_common (G_r, G_F), cos_batch (G_r, the
    next batch's gradient, exact in x), cos_minibatch (the same on its drawn inputs: noise-limited),
    norm_common and norm_rare. F is every task but r.
    """
    from theory.lab.measures import cosine, leverage, norm, r_squared, retained

    first = task * mixture.rank
    spanned = leverage(students.U_EDN, mixture.num_features)
    values = {
        "leverage": spanned[:, first],
        "retained": retained(spanned, mixture)[:, task],
        "r_squared": r_squared(students.U_EDN, students.V_EFN, mixture)[:, first],
    }
    if not signals_only:
        alone, common = np.zeros(mixture.num_tasks), mixture.frequencies.copy()
        alone[task], common[task] = 1.0, 0.0
        rare_gradient = students.task_gradient(alone)
        common_gradient = students.task_gradient(common)
        values["cos_common"] = cosine(rare_gradient, common_gradient)
        values["norm_common"], values["norm_rare"] = norm(common_gradient), norm(rare_gradient)
        if students.step < students.phases.num_steps:
            values["cos_batch"] = cosine(rare_gradient, students.batch_gradient(in_x=True))
            values["cos_minibatch"] = cosine(rare_gradient, students.batch_gradient())
    return rows_by("seed", students.seeds, fields, **values)
