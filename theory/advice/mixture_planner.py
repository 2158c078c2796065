"""Which tasks of a mixture fit at which size, and the cheapest change that brings one in.

    plan = MixturePlan(tasks=(PlannedTask("rare", 1e-8),), rungs=(Rung("4M", 128, 4e6),))
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

from theory.advice.mixture_plan import MixturePlan, Rung
from theory.dynamics import gap_critical_width
from theory.mixture import Mixture
from theory.stream import burst_length
from theory.utility import describe_ties, retained_signal, width_for_share

FLOPS_PER_TOKEN = 6
"""Times parameters: forward and backward of a dense model, embeddings left out (Kaplan 2020)."""

CLOSE = 1e-5
"""Relative precision of a frequency that is searched for."""


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
        size = {"rung": rung.name, "d_model": rung.d_model, "params": rung.params, "width": width}
        for index, task in enumerate(plan.tasks):
            needed = required[task.name]
            told = {"task": task.name, "frequency": task.frequency, "required_width": needed}
            rows.append(told | size | {"kept": float(kept[index]), "learned": needed <= width})
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
    ways = [by(plan, target, size) for by in (_by_frequency, _by_gap, _by_width)]

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

    # Instances take more tokens than the one predicted: host text gives way to all of them.
    each = task.tokens_per_instance
    text = 1 - math.fsum(one.frequency * one.tokens_per_instance for one in plan.tasks)
    if text < 0:
        said = f"the tasks take {1 - text:.3g} of the stream: give their tokens_per_instance"
        return Way("frequency", said, False)
    most = (task.frequency + text / each) * (1 - 1e-6)
    low = task.frequency if task.frequency > 0 else most * 1e-12
    if most <= low or not enough(most):
        said = f"no frequency up to {max(most, low):.3g}, where no text is left, brings it in"
        return Way("frequency", f"{said} at {rung.name}", False)
    high = most
    while high / low > 1 + CLOSE:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    before, after = required_widths(plan), required_widths(at(high))
    pushed = tuple(n for n in before if before[n] <= room < after[n])
    share = each * (high - task.frequency)
    tokens = math.nan if plan.tokens is None else plan.tokens * share / (1 - each * high)
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
