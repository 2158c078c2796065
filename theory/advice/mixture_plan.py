"""A mixture on paper: tasks, host text, sizes, and the assumptions that a plan stands on.

    plan = MixturePlan(tasks=(PlannedTask("rare", 1e-8),), rungs=(Rung("4M", 128, 4e6),))
    plan.mixture, plan.room(plan.rungs[0])

What follows from it: theory/advice/mixture_planner.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from theory.mixture import SUM_TOLERANCE, Mixture, given
from theory.settings import check_positive

HOST = "host"
MOST_FEATURES = 20_000_000
"""Of the table that is ranked: above it a plan would take minutes and gigabytes."""


@dataclass(frozen=True)
class PlannedTask:
    """A task: how often it comes, and its spectrum by exactly one of three descriptions."""

    name: str
    frequency: float
    """Share of the tokens predicted that are the task's (one label an instance: the instances per
    token), in [0, 1]."""

    exponent: float | None = None
    """lambda_j ~ j^-exponent over `features`: slow decay is a complex task."""

    features: int | None = None
    """How many features; with `exponent` only."""

    spectrum: tuple[float, ...] | None = None
    """Eigenvalues, from the largest down; scaled to `loss`."""

    bits: float | None = None
    """What must be stored, as in records: bits / bits_per_feature features of equal weight."""

    loss: float = 1.0
    """Tr C: the loss of not having learned it at all, relative to the other tasks."""

    gap: int = 1
    """Steps between its bursts; 1 comes all the time."""

    tokens_per_instance: int = 4
    """Of the stream, for costs: two operands, the label and EOS unless said."""


@dataclass(frozen=True)
class HostText:
    """The text that takes what the tasks leave: one or more common tasks of power-law spectrum."""

    exponent: float
    """lambda_j ~ j^-exponent. The loss it leaves falls as width^-(exponent - 1), so that a scaling
    exponent alpha of loss with width says exponent = 1 + alpha."""

    features: int
    num_tasks: int = 1
    decay: float = 0.0
    """Of the tasks' shares, k^-decay; 0 shares equally."""

    loss: float = 1.0


@dataclass(frozen=True)
class Rung:
    """A model size."""

    name: str
    d_model: int
    params: float
    """Without the input embedding."""


@dataclass(frozen=True)
class MixturePlan:
    """Tasks, host, sizes and the assumptions; checked at construction (ValueError)."""

    tasks: tuple[PlannedTask, ...]
    rungs: tuple[Rung, ...]
    host: HostText | None = None
    features_per_d_model: float | None = None
    """Room for features, per unit of d_model. No default: the theory does not say it."""

    bits_per_feature: float | None = None
    tokens: float | None = None
    """That each size is trained on; for costs."""

    learned_share: float = 0.5
    """A task counts as learned from this share of its signal on."""

    eta: float | None = None
    """Learning rate of the theory's gradient flow, for gaps: logit of what was learned falls by
    4 eta u a step while the task is away."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def shares(self) -> dict[str, float]:
        """Frequency of each task, and of the host text."""
        shares = {task.name: task.frequency for task in self.tasks}
        return shares | ({HOST: self.rest} if self.host is not None else {})

    @property
    def rest(self) -> float:
        """What the tasks leave to the host text."""
        return max(0.0, 1 - math.fsum(task.frequency for task in self.tasks))

    @property
    def mixture(self) -> Mixture:
        """The tasks in their order, then the host's."""
        frequencies = [task.frequency for task in self.tasks]
        spectra = [_spectrum(self, task) for task in self.tasks]
        if self.host is not None and self.rest > 0:
            frequencies += list(self.rest * _power_law(self.host.num_tasks, self.host.decay))
            one = _power_law(self.host.features, self.host.exponent)
            spectra += [one * self.host.loss] * self.host.num_tasks
        return given(np.array(frequencies) / math.fsum(frequencies), [list(s) for s in spectra])

    def task(self, name: str) -> PlannedTask:
        if name not in (found := {task.name: task for task in self.tasks}):
            raise ValueError(f"target {name!r} is no task; the tasks are {', '.join(found)}")
        return found[name]

    def rung(self, name: str) -> Rung:
        if name not in (found := {rung.name: rung for rung in self.rungs}):
            raise ValueError(f"rung {name!r} is not in rungs; there are {', '.join(found)}")
        return found[name]

    def room(self, rung: Rung) -> int:
        """N: features the rung has room for."""
        if self.features_per_d_model is None:
            raise ValueError(
                "features_per_d_model must be given: the theory's width counts features, and how "
                "many a model of some d_model holds is an assumption; state it in the file, or "
                "calibrate it on a sweep with --calibrate RUNS"
            )
        return int(self.features_per_d_model * rung.d_model + 1e-9)


def _spectrum(plan: MixturePlan, task: PlannedTask) -> np.ndarray:
    """(features,) eigenvalues that sum to the task's loss."""
    if task.spectrum is not None:
        values = np.array(task.spectrum, dtype=float)
    elif task.bits is not None:
        assert plan.bits_per_feature is not None, "checked with the plan"
        values = np.ones(max(1, math.ceil(task.bits / plan.bits_per_feature - 1e-9)))
    else:
        assert task.exponent is not None, "checked with the plan"
        assert task.features is not None, "checked with the plan"
        values = _power_law(task.features, task.exponent)
    return values / values.sum() * task.loss


def _power_law(num: int, exponent: float) -> np.ndarray:
    """k^-exponent, k = 1..num, scaled to sum to 1."""
    values = np.arange(1, num + 1, dtype=float) ** -exponent
    return values / values.sum()


# -- checks ----------------------------------------------------------------------------------------


def _check(plan: MixturePlan) -> None:
    if not plan.tasks or not plan.rungs:
        raise ValueError("tasks and rungs must hold at least one each")
    for what in ("tasks", "rungs"):
        names = [one.name for one in getattr(plan, what)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{what}: the name {twice[0]!r} comes twice; names tell them apart")
    for index, task in enumerate(plan.tasks):
        _check_task(plan, task, f"tasks[{index}] ({task.name})")
    total = math.fsum(task.frequency for task in plan.tasks)
    if total > 1 + SUM_TOLERANCE:
        raise ValueError(
            f"frequencies must sum to 1 or less, got {total:.6g}; they are shares of all tokens, "
            "and what they leave is host text"
        )
    if plan.host is None and total < 1 - SUM_TOLERANCE:
        raise ValueError(
            f"frequencies sum to {total:.6g}; add `host`, which says what the other "
            f"{1 - total:.6g} asks for, or frequencies that sum to 1: text without any features "
            "would take no room"
        )
    if plan.host is not None:
        host = plan.host
        check_positive(host, "features", "num_tasks", "loss", where="host: ")
        if host.exponent < 0 or host.decay < 0:
            raise ValueError("host.exponent and host.decay must be at least 0")
        table = host.features * (host.num_tasks + len(plan.tasks))
        if table > MOST_FEATURES:
            raise ValueError(
                f"host.features {host.features:,} for {host.num_tasks} host tasks makes a table of "
                f"{table:,} features; keep it to {MOST_FEATURES:,} (those beyond the widest rung's "
                "room never matter)"
            )
    for rung in plan.rungs:
        check_positive(rung, "d_model", "params", where=f"rungs ({rung.name}): ")
    assumed = ("features_per_d_model", "bits_per_feature", "tokens", "eta")
    check_positive(plan, *assumed, where="the plan: ")
    if not 0 < plan.learned_share <= 1:
        raise ValueError(f"learned_share must be in (0, 1], got {plan.learned_share:g}")


def _check_task(plan: MixturePlan, task: PlannedTask, where: str) -> None:
    if not 0 <= task.frequency <= 1:
        raise ValueError(f"{where}.frequency must be in [0, 1], a share, got {task.frequency:g}")
    said = [n for n in ("exponent", "spectrum", "bits") if getattr(task, n) is not None]
    if len(said) != 1:
        raise ValueError(
            f"{where} must say its complexity by one of exponent (with features), spectrum or "
            f"bits, got {' and '.join(said) or 'none'}"
        )
    if (task.exponent is None) != (task.features is None):
        raise ValueError(f"{where}: exponent and features belong together; give both or neither")
    if task.exponent is not None and (task.exponent < 0 or (task.features or 0) < 1):
        raise ValueError(f"{where}: exponent must be at least 0 and features at least 1")
    if task.spectrum is not None and (
        min(task.spectrum) < 0
        or task.spectrum[0] <= 0
        or any(b > a for a, b in zip(task.spectrum, task.spectrum[1:], strict=False))
    ):
        raise ValueError(f"{where}.spectrum must be positive, from the largest down")
    check_positive(task, "bits", "loss", "gap", "tokens_per_instance", where=f"{where}: ")
    if task.bits is not None and plan.bits_per_feature is None:
        raise ValueError(
            f"{where}.bits needs bits_per_feature: how many bits a feature stores is an "
            "assumption; state it, or give exponent and features"
        )
    if task.gap > 1 and plan.eta is None:
        raise ValueError(
            f"{where}.gap is {task.gap}: gaps need eta, the learning rate of the theory's flow, "
            "or there is no telling how fast the task is forgotten; state it, or leave gap out"
        )
