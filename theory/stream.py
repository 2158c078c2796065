"""Which tasks each step's batch is of: the mixture throughout, or the same with a task in bursts.

    phases = bursts(mixture, task=31, gap=2000, cycles=10)

Draws come from a seed and the step alone: an ensemble, another width or a pause in between change
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from theory.mixture import Floats, Ints, Mixture

CHUNK = 64
"""Steps drawn at once; part of what a seed means, so not to be tuned."""


@dataclass(frozen=True, eq=False)
class Phases:
    """What each step draws its tasks from."""

    distributions: Floats
    """(P, K): task frequencies of each kind of step."""

    of_step: Ints
    """(T,): the kind of each step."""

    @property
    def num_steps(self) -> int:
        return len(self.of_step)


def steady(mixture: Mixture, num_steps: int) -> Phases:
    """The mixture's own frequencies at every step."""
    return Phases(mixture.frequencies[None, :], np.zeros(num_steps, dtype=np.int64))


def burst_length(mixture: Mixture, task: int, gap: int) -> int:
    """L = round(gap pi_task), at least 1: all-task batches that make up for `gap` steps without."""
    return max(1, round(gap * float(mixture.frequencies[task])))


def bursts(
    mixture: Mixture, task: int, *, gap: int, cycles: int, length: int | None = None
) -> Phases:
    """Cycles of `gap` steps, the last L of which bring `task` alone and the others never.

    So its long-run frequency is the mixture's, up to the rounding of L.

    Args:
        length: L; default `burst_length`, batches all of the task. Another L weighs each of its
            steps gap pi / L, so that the frequency stays: for the population gradient only, which
            nothing is drawn for. In joint training one step of weight above 1 can diverge.
    Raises ValueError if a burst is as long as the gap.
    """
    weight = 1.0 if length is None else gap * float(mixture.frequencies[task]) / length
    length = length or burst_length(mixture, task, gap)
    if not 0 < length < gap:
        raise ValueError(
            f"gap must be longer than its burst of {length} steps, got {gap}; raise the gap or "
            "choose a rarer task"
        )
    alone = np.zeros(mixture.num_tasks)
    alone[task] = weight
    cycle = np.zeros(gap, dtype=np.int64)
    cycle[gap - length :] = 1
    return Phases(np.stack([mixture.without(task), alone]), np.tile(cycle, cycles))


def draw_tasks(phases: Phases, *, batch_size: int, seed: int) -> Iterator[Ints]:
    """Chunks (up to CHUNK, B) of task indices, step after step.

    Raises ValueError for weights that are no distribution.
    """
    if not np.allclose(phases.distributions.sum(axis=1), 1):
        raise ValueError(
            f"tasks are drawn from distributions, got weights that sum to "
            f"{phases.distributions.sum(axis=1).tolist()}; leave out `length`, or take no batches"
        )
    rng = np.random.default_rng([seed, 0])
    cumulative = np.cumsum(phases.distributions, axis=1)
    # The last task that is drawn at all takes what rounding leaves of 1.
    last = phases.distributions.shape[1] - 1 - (phases.distributions[:, ::-1] > 0).argmax(axis=1)
    for start in range(0, phases.num_steps, CHUNK):
        uniform = rng.random((CHUNK, batch_size))
        kinds = phases.of_step[start : start + CHUNK]
        uniform = uniform[: len(kinds)]
        tasks = np.empty(uniform.shape, dtype=np.int64)
        for kind in np.unique(kinds):
            rows = kinds == kind
            found = np.searchsorted(cumulative[kind], uniform[rows], side="right")
            tasks[rows] = np.minimum(found, last[kind])
        yield tasks


def shares(tasks: Ints, num_tasks: int) -> Floats:
    """The share of each task (..., K) among the last axis of task indices (..., B)."""
    rows = tasks.reshape(-1, tasks.shape[-1])
    flat = rows + num_tasks * np.arange(len(rows))[:, None]
    counts = np.bincount(flat.ravel(), minlength=num_tasks * len(rows))
    return np.asarray(
        counts.reshape(*tasks.shape[:-1], num_tasks) / tasks.shape[-1], dtype=np.float64
    )
