"""The injection plan: for every step, which rows carry which example; compiled before training.

    plan = compile_plan(config, batch_size=2048, seq_len=2048, epoch_rows=1_000_000,
                        vocab_size=50_280, eos_token_id=0)
    plan.at(17).slots, plan.hash

`plan.at(step)` is a pure function of (config, seed, step): the same on any rank, worker, thread or
world size and after any restart. A **position** is a global index into one endless stream of rows;
step = position // batch_size and slot = position % batch_size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_injection.config import InjectionConfig
from data_injection.errors import ConfigError
from data_injection.philox import permutation
from data_injection.schedules.base import Geometry, Schedule, rate_in_all_units
from data_injection.schedules.fits import check_batch, check_rows, check_totals
from data_injection.schedules.layout import DOCUMENTS, check_layout, lay_out
from data_injection.tasks.base import IntArray, Task
from data_injection.tasks.build import build_tasks
from data_injection.tasks.schedules import build_schedules, needs_length
from data_injection.tasks.sequence_file import Encode, SequenceTable

ALGORITHM_VERSION = 1
"""Raised whenever the same config would give other rows."""

SAMPLE_STEPS = (*range(16), 63, 64, 255, 256, 1023, 1024, 4095)
"""Steps whose expanded rows go into the plan's hash."""


@dataclass(frozen=True)
class StepRows:
    """The injections of one step, in plan order: equally long arrays, one entry an instance."""

    slots: IntArray
    """Row of the global batch, in [0, batch_size); only sequences can share one."""

    tasks: IntArray
    """Index into `plan.tasks`."""

    examples: IntArray
    """Index into that task's `tokens`; always of the train split."""

    offsets: IntArray
    """Place in the row of the first token that is written; of sequences at documents counted from
    where the row's first begins, which its text decides (`rows.Spans`)."""

    def __len__(self) -> int:
        return len(self.slots)


class InjectionPlan:
    """Tasks and schedules of one run over one batch geometry. Build it with `compile_plan`."""

    def __init__(
        self, config: InjectionConfig, *, tasks: list[Task], schedules: list[Schedule],
        geometry: Geometry, epoch_rows: int, eos_token_id: int, num_steps: int | None = None,
    ) -> None:  # fmt: skip
        self.num_steps = num_steps
        """Length of the training, where a schedule depends on it."""
        self.seed, self.offset = config.seed, config.offset
        self.per_row, self.at_documents = config.sequences_per_row, config.sequences_at == DOCUMENTS
        self.tasks, self.schedules, self.geometry = tasks, schedules, geometry
        self.epoch_rows, self.eos_token_id = epoch_rows, eos_token_id
        self.labelled = [task for task in tasks if task.has_label]
        """The tasks that can be asked: all but sequences."""
        self._has_sequences = len(self.labelled) < len(tasks)
        self._orders: dict[int, tuple[int, IntArray]] = {}
        self.canonical = self._canonical()
        """All that the plan depends on, as JSON values."""
        text = json.dumps(self.canonical, sort_keys=True, separators=(",", ":"))
        self.hash = hashlib.sha256(text.encode()).hexdigest()
        """Identity of the plan: SHA-256 over `canonical`."""

    def __bool__(self) -> bool:
        return bool(self.tasks)

    # -- rows ------------------------------------------------------------------------------------

    def at(self, step: int) -> StepRows:
        """The injections of one step (counted from 0). Raises ConfigError if they do not fit."""
        counts = [schedule.count(step) for schedule in self.schedules]
        total = sum(counts)
        if total == 0:
            return StepRows(*np.zeros((4, 0), dtype=np.int64))
        check_batch(self.tasks, self.schedules, self.geometry, step=step)
        order = permutation(self.geometry.batch_size, seed=self.seed, purpose="slots", counter=step)
        tasks = np.repeat(np.arange(len(counts)), counts)
        examples = np.concatenate(
            [
                self.instance_examples(index, self.schedules[index].before(step), count)
                for index, count in enumerate(counts)
                if count
            ]
        )
        slots, offsets = np.resize(order, total), np.full(total, self.offset)
        if self._has_sequences:
            free = np.array([not self.tasks[index].has_label for index in tasks])
            slots[~free], rows = np.split(order, [total - int(free.sum())])
            which = zip(tasks[free], examples[free], strict=True)
            lengths = [len(self.tasks[index].tokens[example]) + 2 for index, example in which]
            slots[free], offsets[free] = lay_out(
                lengths, rows, seq_len=self.geometry.seq_len, seed=self.seed, step=step,
                per_row=self.per_row, close=self.at_documents,
            )  # fmt: skip
        return StepRows(slots, tasks, examples, offsets)

    def instance_examples(self, index: int, first: int, count: int) -> IntArray:
        """Examples of a task's instances number first .. first+count-1.

        Instance k is entry k mod n of the permutation of the n train examples that belongs to
        epoch k // n over the train split: every example comes once before any comes twice.
        Of sequences each counts as often as it has copies, in one epoch.
        """
        pool = self.tasks[index].pool
        epochs, entries = np.divmod(np.arange(first, first + count), len(pool))
        rows = [
            self._example_order(index, int(epoch))[entries[epochs == epoch]]
            for epoch in np.unique(epochs)
        ]
        return pool[np.concatenate(rows)]

    def _example_order(self, index: int, epoch: int) -> IntArray:
        """The permutation of a task's train examples in one epoch over them; the last is kept."""
        kept = self._orders.get(index)
        if kept is None or kept[0] != epoch:
            task = self.tasks[index]
            purpose = f"examples/{task.name}"
            order = permutation(len(task.pool), seed=self.seed, purpose=purpose, counter=epoch)
            self._orders[index] = kept = (epoch, order)
        return kept[1]

    def check(self, num_steps: int) -> None:
        """Raise ConfigError if any of the first `num_steps` steps has more instances than rows, or
        if a total is not reached in them."""
        check_totals(self.schedules, num_steps)
        peaks = [schedule.peak for schedule in self.schedules]
        if None not in peaks and sum(p for p in peaks if p) <= self.geometry.batch_size:
            return
        for step in range(num_steps):
            if self._has_sequences:
                self.at(step)
            check_batch(self.tasks, self.schedules, self.geometry, step=step)

    # -- accounts --------------------------------------------------------------------------------

    def task_index(self, name: str) -> int:
        """Index of the task of this name; ValueError names the tasks there are."""
        names = [task.name for task in self.tasks]
        if name not in names:
            raise ValueError(f"no task {name!r} in the plan; it has {names}")
        return names.index(name)

    def instances(self, index: int, num_steps: int) -> int:
        """Exact number of instances of a task in the first `num_steps` steps."""
        return self.schedules[index].before(num_steps)

    def exposures_per_example(self, index: int, num_steps: int) -> float:
        """Instances in the first `num_steps` steps divided by the number of train examples."""
        return self.instances(index, num_steps) / max(len(self.tasks[index].train), 1)

    def rates(self, index: int) -> dict[str, float]:
        """The task's mean frequency in all units; see `rate_in_all_units`."""
        tokens = self.tasks[index].tokens_per_instance
        return rate_in_all_units(
            self.schedules[index].rate, self.geometry, tokens_per_instance=tokens
        )

    # -- identity --------------------------------------------------------------------------------

    def _canonical(self) -> dict[str, Any]:
        return {
            "algorithm_version": ALGORITHM_VERSION,
            "seed": self.seed,
            "offset": self.offset,
            "eos_token_id": self.eos_token_id,
            "batch_size": self.geometry.batch_size,
            "seq_len": self.geometry.seq_len,
            "epoch_rows": self.epoch_rows,
            "tasks": {
                task.name: {
                    "index": index,
                    "family": task.family,
                    "params": task.params,
                    "digest": task.digest(),
                    "schedule": schedule.canonical(),
                }
                for index, (task, schedule) in enumerate(
                    zip(self.tasks, self.schedules, strict=True)
                )
            },
            "sample_digest": self.digest(SAMPLE_STEPS),
            **({} if self.num_steps is None else {"num_steps": self.num_steps}),
            **({} if self.per_row == 1 else {"sequences_per_row": self.per_row}),
            **({"sequences_at": DOCUMENTS} if self.at_documents else {}),
        }

    def digest(self, steps: Collection[int]) -> str:
        """SHA-256 of the expanded rows of the given steps; one that does not fit counts as such."""
        sha = hashlib.sha256()
        for step in steps:
            try:
                rows = self.at(step)
            except ConfigError:  # beyond the run's end this harms nobody; see `check`
                sha.update(f"step {step} does not fit".encode())
                continue
            columns = [np.full(len(rows), step), rows.slots, rows.tasks, rows.examples]
            table = np.stack([*columns, rows.offsets] if self._has_sequences else columns)
            sha.update(np.ascontiguousarray(table.T, dtype="<i8").tobytes())
        return sha.hexdigest()


def compile_plan(
    config: InjectionConfig, *, batch_size: int, seq_len: int, epoch_rows: int, vocab_size: int,
    eos_token_id: int, reserved_tokens: Collection[int] = (), num_steps: int | None = None,
    encode: Encode | None = None, tables: Mapping[str, SequenceTable] | None = None,
) -> InjectionPlan:  # fmt: skip
    """Compile and check a plan.

    Args:
        batch_size: rows per optimizer step over all ranks.
        seq_len: tokens per row.
        epoch_rows: rows of one epoch of the host corpus, a multiple of batch_size.
        vocab_size: token ids of symbols are below it.
        eos_token_id: follows every injected example.
        reserved_tokens: ids never drawn as symbols, besides EOS.
        num_steps: length of the training, for schedules that depend on it: a total without a stop,
            a window by shares. It is part of such a plan.
        encode: the tokenizer, for sequences that are given as texts.
        tables: sequences by task, in place of their files; a run's folder keeps them.

    Raises:
        ConfigError: anything that cannot be injected as asked, before any work starts.
    """
    geometry = Geometry(batch_size=batch_size, seq_len=seq_len)
    tasks = build_tasks(
        config, vocab_size=vocab_size, reserved_tokens={*reserved_tokens, eos_token_id},
        eos_token_id=eos_token_id, seq_len=seq_len, encode=encode, tables=tables,
    )  # fmt: skip
    schedules = build_schedules(config, tasks, geometry, num_steps=num_steps)
    needed = any(map(needs_length, (task.schedule for task in config.tasks), tasks))
    check_rows(tasks, schedules, geometry, offset=config.offset)
    check_layout(config, tasks)
    return InjectionPlan(
        config, tasks=tasks, schedules=schedules, geometry=geometry, epoch_rows=epoch_rows,
        eos_token_id=eos_token_id, num_steps=num_steps if needed else None,
    )  # fmt: skip
