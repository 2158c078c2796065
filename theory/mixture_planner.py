"""Which tasks of a mixture fit at which size, and the cheapest change that brings one in.

    plan = from_mapping(MixturePlan, yaml.safe_load(open("tasks.yaml")))
    table, options = learned_by_rung(plan), ways_in(plan, target="rare", rung="4M")

The theory of the lab (utility ranking, critical widths) applied to a mixture that is written down,
not measured. Three things are assumptions, and every one of them is an input: how many features a
model has room for (`features_per_d_model`), how a task's complexity is a spectrum, and what the
host text asks for. An answer is as good as these; `calibrated` reads the first off a sweep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from theory.dynamics import gap_critical_width
from theory.mixture import SUM_TOLERANCE, Mixture, given
from theory.stream import burst_length
from theory.utility import describe_ties, retained_signal, width_for_share

HOST = "host"
FLOPS_PER_TOKEN = 6
"""Times parameters: forward and backward of a dense model, embeddings left out (Kaplan 2020)."""

MOST_FEATURES = 20_000_000
"""Of the table that is ranked: above it a plan would take minutes and gigabytes."""

CLOSE = 1e-5
"""Relative precision of a frequency that is searched for."""


@dataclass(frozen=True)
class PlannedTask:
    """A task: how often it comes, and its spectrum by exactly one of three descriptions."""

    name: str
    frequency: float
    """Share of the tokens predicted that are the task's (one label a instance: the instances per
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


@dataclass(frozen=True)
class Host:
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
    host: Host | None = None
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
            parts = np.arange(1, self.host.num_tasks + 1, dtype=float) ** -self.host.decay
            frequencies += list(self.rest * parts / parts.sum())
            one = np.arange(1, self.host.features + 1, dtype=float) ** -self.host.exponent
            spectra += [one / one.sum() * self.host.loss] * self.host.num_tasks
        return given(np.array(frequencies) / math.fsum(frequencies), [list(s) for s in spectra])

    def task(self, name: str) -> PlannedTask:
        for task in self.tasks:
            if task.name == name:
                return task
        names = ", ".join(task.name for task in self.tasks)
        raise ValueError(f"target {name!r} is no task; the tasks are {names}")

    def rung(self, name: str) -> Rung:
        for rung in self.rungs:
            if rung.name == name:
                return rung
        names = ", ".join(rung.name for rung in self.rungs)
        raise ValueError(f"rung {name!r} is not in rungs; there are {names}")

    def room(self, rung: Rung) -> int:
        """N: features the rung has room for."""
        if self.features_per_d_model is None:
            raise ValueError(
                "features_per_d_model must be given: the theory's width counts features, and how "
                "many a model of some d_model holds is an assumption; state it, or calibrate it "
                "on a sweep"
            )
        return int(self.features_per_d_model * rung.d_model + 1e-9)


@dataclass(frozen=True)
class Way:
    """A change that brings the target in at a rung, or why it cannot."""

    kind: str
    """frequency, gap or width."""

    said: str
    possible: bool
    extra_tokens: float = 0.0
    """Of the task, if nothing else gives way."""

    extra_flops: float = math.nan
    """NaN without a budget of tokens."""

    pushed_out: tuple[str, ...] = ()
    """Tasks that were learned at the rung and no longer are."""

    value: float = math.nan
    """The new frequency, gap, or parameters."""


def required_widths(plan: MixturePlan) -> dict[str, int]:
    """The least N at which each task keeps `learned_share` of its signal, gaps included.

    One more than the mixture has features where no width does.
    """
    mixture = plan.mixture
    widths = width_for_share(mixture, plan.learned_share)
    found = {}
    for index, task in enumerate(plan.tasks):
        found[task.name] = int(widths[index])
        if task.gap > 1 and task.frequency > 0:
            # The larger of the two: at short gaps the count of a cycle leaves out what common
            # tasks learn during the burst.
            found[task.name] = max(found[task.name], _gap_width(plan, mixture, index, task.gap))
    return found


def learned_by_rung(plan: MixturePlan) -> pd.DataFrame:
    """One row per task and rung: task, frequency, required_width, rung, d_model, params, width,
    kept (share of its signal without gaps), learned."""
    required = required_widths(plan)
    mixture = plan.mixture
    rows = []
    for rung in sorted(plan.rungs, key=lambda one: one.params):
        width = plan.room(rung)
        kept = retained_signal(mixture, width)
        for index, task in enumerate(plan.tasks):
            rows.append(
                {
                    "task": task.name,
                    "frequency": task.frequency,
                    "required_width": required[task.name],
                    "rung": rung.name,
                    "d_model": rung.d_model,
                    "params": rung.params,
                    "width": width,
                    "kept": float(kept[index]),
                    "learned": required[task.name] <= width,
                }
            )
    return pd.DataFrame(rows)


def ways_in(plan: MixturePlan, *, target: str, rung: str) -> list[Way]:
    """Raise its frequency, shorten its gap, or widen: possible ones first, cheapest first.

    Cost: 6 x parameters x tokens. A frequency's is that of the extra task tokens with everything
    else kept; at an unchanged budget it costs no FLOPs but that many tokens of host text. Empty if
    the target is learned there already. Raises ValueError for an unknown target or rung.
    """
    plan.task(target)
    size = plan.rung(rung)
    if required_widths(plan)[target] <= plan.room(size):
        return []
    ways = [_by_frequency(plan, target, size), _by_gap(plan, target, size)]
    ways.append(_by_width(plan, target, size))

    def cost(way: Way) -> tuple[bool, float, int]:
        flops = way.extra_flops if math.isfinite(way.extra_flops) else math.inf
        return not way.possible, flops, len(way.pushed_out)

    return sorted(ways, key=cost)


def calibrated(required: float, d_model: float) -> float:
    """features_per_d_model if a task that needs `required` features is just learned at d_model."""
    if not (required > 0 and d_model > 0):
        raise ValueError(f"both must be above 0, got {required:g} features and d_model {d_model:g}")
    return required / d_model


def tie_note(plan: MixturePlan) -> str:
    """What ties in utility leave open; empty if nothing."""
    return describe_ties(plan.mixture)


# -- ways in ---------------------------------------------------------------------------------------


def _with(plan: MixturePlan, target: str, **change: Any) -> MixturePlan:
    tasks = tuple(replace(one, **change) if one.name == target else one for one in plan.tasks)
    return replace(plan, tasks=tasks)


def _by_frequency(plan: MixturePlan, target: str, rung: Rung) -> Way:
    """The least frequency that does; host text gives way, as it does when examples are spliced."""
    task, room = plan.task(target), plan.room(rung)
    if plan.host is None:
        return Way("frequency", "no host text is left to give way to more of it", False)

    def at(frequency: float) -> MixturePlan:
        return _with(plan, target, frequency=frequency)

    def enough(frequency: float) -> bool:
        return required_widths(at(frequency))[target] <= room

    most = (task.frequency + plan.rest) * (1 - 1e-6)
    low = task.frequency if task.frequency > 0 else most * 1e-12
    if not enough(most):
        return Way("frequency", f"no frequency brings it in at {rung.name}", False)
    high = most
    while high / low > 1 + CLOSE:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    before, after = required_widths(plan), required_widths(at(high))
    pushed = tuple(n for n in before if before[n] <= room < after[n])
    share = high - task.frequency
    tokens = math.nan if plan.tokens is None else plan.tokens * share / (1 - high)
    times = f", × {high / task.frequency:.3g}" if task.frequency > 0 else ""
    out = f"; pushes out {', '.join(pushed)}" if pushed else "; pushes out no other task"
    return Way(
        "frequency",
        f"raise its frequency from {task.frequency:.3g} to {high:.3g}{times}{out}",
        True,
        tokens,
        FLOPS_PER_TOKEN * rung.params * tokens,
        pushed,
        high,
    )


def _by_gap(plan: MixturePlan, target: str, rung: Rung) -> Way:
    """The longest gap at which it is learned."""
    task, room = plan.task(target), plan.room(rung)
    if task.gap <= 1:
        return Way("gap", "its gap cannot be shortened: it comes all the time", False)
    candidates = np.unique(np.geomspace(1, task.gap, 200).astype(int))[::-1]
    for gap in candidates[1:]:
        if required_widths(_with(plan, target, gap=int(gap)))[target] <= room:
            said = f"shorten its gap from {task.gap} to {gap} steps, at equal frequency"
            return Way("gap", said, True, 0.0, 0.0, (), float(gap))
    return Way("gap", f"no gap brings it in at {rung.name}: it must come more often", False)


def _by_width(plan: MixturePlan, target: str, rung: Rung) -> Way:
    """The least rung at which it is learned."""
    required = required_widths(plan)[target]
    wider = [one for one in plan.rungs if plan.room(one) >= required]
    if not wider:
        return Way("width", f"no rung has room for {required} features", False)
    best = min(wider, key=lambda one: one.params)
    tokens = math.nan if plan.tokens is None else plan.tokens
    flops = FLOPS_PER_TOKEN * (best.params - rung.params) * tokens
    said = f"widen to {best.name} (d_model {best.d_model}, room for {plan.room(best)} features)"
    return Way("width", said, True, 0.0, flops, (), best.params)


def _gap_width(plan: MixturePlan, mixture: Mixture, index: int, gap: int) -> int:
    """gap_critical_width of the feature that completes the share, not of the leading one."""
    assert plan.eta is not None, "checked with the plan"
    spectrum = mixture.spectra[index]
    kept = np.cumsum(spectrum) / spectrum.sum()
    last = int((kept >= plan.learned_share - 1e-12).argmax())
    if burst_length(mixture, index, gap) >= gap:
        return 0
    alone = mixture.spectra.copy()
    alone[index] = 0.0
    alone[index, 0] = spectrum[last]
    competing = Mixture(mixture.frequencies, alone, mixture.num_inputs)
    # Its own earlier features take room as well.
    return last + gap_critical_width(competing, task=index, gap=gap, rate=plan.eta)


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
        values = np.arange(1, task.features + 1, dtype=float) ** -task.exponent
    return values / values.sum() * task.loss


# -- checks ----------------------------------------------------------------------------------------


def _check(plan: MixturePlan) -> None:
    if not plan.tasks or not plan.rungs:
        raise ValueError("tasks and rungs must hold at least one each")
    for what, names in (
        ("tasks", [task.name for task in plan.tasks]),
        ("rungs", [rung.name for rung in plan.rungs]),
    ):
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
        _above_zero("host", features=host.features, num_tasks=host.num_tasks, loss=host.loss)
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
        _above_zero(f"rungs ({rung.name})", d_model=rung.d_model, params=rung.params)
    given_values = {
        name: getattr(plan, name)
        for name in ("features_per_d_model", "bits_per_feature", "tokens", "eta")
        if getattr(plan, name) is not None
    }
    _above_zero("the plan", **given_values)
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
    if task.bits is not None:
        _above_zero(where, bits=task.bits)
        if plan.bits_per_feature is None:
            raise ValueError(
                f"{where}.bits needs bits_per_feature: how many bits a feature stores is an "
                "assumption; state it, or give exponent and features"
            )
    _above_zero(where, loss=task.loss, gap=task.gap)
    if task.gap > 1 and plan.eta is None:
        raise ValueError(
            f"{where}.gap is {task.gap}: gaps need eta, the learning rate of the theory's flow, "
            "or there is no telling how fast the task is forgotten; state it, or leave gap out"
        )


def _above_zero(where: str, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{where}: {name} must be above 0, got {value:g}")
