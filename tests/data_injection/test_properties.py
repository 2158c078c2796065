"""What holds for every plan: exact counts, distinct slots, pure rows, the same stream on any ranks.

    pytest tests/data_injection/test_properties.py

Over a thousand different plans that mix all six schedule kinds, the three units, awkward rates,
seeds and families; the last test counts them. What a plan must give is worked out here from the
config, with Fractions and NumPy: no code of the plan's own.

B = global batch, T = tokens a row, S = steps, W = world size.
"""

from __future__ import annotations

import json
import math
import pickle
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_injection.config import InjectionConfig, ScheduleConfig, TaskConfig
from data_injection.errors import ConfigError
from data_injection.order import RowOrder
from data_injection.plan import InjectionPlan, compile_plan
from data_injection.schedules.base import UNITS, Geometry
from data_injection.schedules.build import SCHEDULES, build_schedule
from data_injection.splice import SplicedStream
from data_injection.tasks import build as tasks_module
from olmo_ext import compat
from olmo_ext.compat import PositionDataset

KINDS = tuple(SCHEDULES)

T, EOS, VOCAB = 8, 0, 300
NUM_STEPS = 60
"""Steps whose rows are looked at one by one; the schedules' spans end around there."""

FAR = (255, 256, 257, 1000)
"""Later steps whose counts are looked at, about the border of a stored block (Bernoulli.BLOCK)."""

AWKWARD = (2.3, 0.1, "1/3", 0.07, "7/3", "0.57", 0.7, "29/10", 7, "1e-3", "2.4e-8", 0)
"""Rates with no exact binary fraction, or next to a whole number of instances."""

TRIED: dict[str, set[str]] = defaultdict(set)
"""Property -> the different plans it was found true of."""


@dataclass(frozen=True)
class Case:
    """A plan's config, its batch, and the corpus that it is read over."""

    config: InjectionConfig
    batch_size: int
    num_rows: int

    @property
    def epoch_rows(self) -> int:
        return self.num_rows // self.batch_size * self.batch_size

    def compiled(self) -> InjectionPlan:
        return compile_plan(
            self.config,
            batch_size=self.batch_size,
            seq_len=T,
            epoch_rows=self.epoch_rows,
            vocab_size=VOCAB,
            eos_token_id=EOS,
        )

    def fitting(self) -> InjectionPlan:
        """The plan; another case if chance puts more instances into a step than it has rows."""
        plan, refused = self.compiled(), ""
        try:
            plan.check(NUM_STEPS)
        except ConfigError as error:
            refused = str(error)
        totals = [sum(s.count(step) for s in plan.schedules) for step in range(NUM_STEPS)]
        assert bool(refused) == (max(totals) > self.batch_size)
        if refused:
            assert any(t.schedule.kind in ("random", "bernoulli") for t in self.config.tasks)
            assert f"a batch of {self.batch_size} rows" in refused
            reject()
        return plan


def many(num_cases: int) -> settings:
    """The same `num_cases` cases in every run of the suite."""
    return settings(max_examples=num_cases, deadline=None, derandomize=True, database=None)


def tried(claim: Callable, case: Case) -> None:
    """Note that the claim held for the case."""
    TRIED[claim.__name__].add(repr(case))


def exact(rate: Any) -> Fraction:
    """The number that a person reads in the rate as it is written."""
    return Fraction(str(rate))


def units(batch_size: int) -> dict[str, int]:
    return {"per_step": 1, "per_sequence": batch_size, "per_token": batch_size * T}


# -- cases -------------------------------------------------------------------------------------


@st.composite
def schedules(draw: st.DrawFn, kind: str, *, batch_size: int, share: int) -> ScheduleConfig:
    """A schedule of this kind with at most `share` instances in a step, or so many on average."""
    unit = draw(st.sampled_from(UNITS))
    scale = units(batch_size)[unit]
    start, length = draw(st.integers(0, 30)), draw(st.integers(1, 60))
    if kind == "trace":
        steps = draw(st.lists(st.integers(0, NUM_STEPS), max_size=20))
        return ScheduleConfig(
            kind="trace", steps=sorted(s for s in steps if steps.count(s) <= share)
        )
    if kind == "burst":
        size, every = draw(st.integers(0, share)), draw(st.integers(1, 30))
        return ScheduleConfig(
            kind="burst",
            rate=str(Fraction(size, every * scale)),
            unit=unit,
            every=every,
            phase=draw(st.integers(0, every - 1)),
            stop=draw(st.sampled_from([None, every + length])),
        )
    if kind == "random":
        total = draw(st.integers(0, share * length))
        rate: Any = str(Fraction(total, length * scale))
    else:
        fits = [rate for rate in AWKWARD if exact(rate) * scale <= share]
        thousandth = st.integers(1, 1000 * share).map(lambda n: str(Fraction(n, 1000 * scale)))
        rate = draw(st.sampled_from(fits) | thousandth)
    if kind == "even":
        return ScheduleConfig(kind="even", rate=rate, unit=unit)
    endless = kind != "random" and draw(st.booleans())
    stop = None if endless else start + length
    return ScheduleConfig(kind=kind, rate=rate, unit=unit, start=start, stop=stop)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """All six kinds at once, or one to five tasks of any; mostly fitting their batch."""
    kinds = draw(st.permutations(KINDS) | st.lists(st.sampled_from(KINDS), min_size=1, max_size=5))
    batch_sizes = [b for b in (1, 2, 3, 4, 6, 8, 12, 16, 24, 40) if b >= len(kinds)]
    batch_size = draw(st.sampled_from(batch_sizes))
    share = batch_size // len(kinds)
    tasks = [
        TaskConfig(
            name=f"t{index}",
            family=draw(st.sampled_from(sorted(tasks_module.TASKS))),
            num_symbols=draw(st.integers(2, 6)),
            train_fraction=draw(st.sampled_from([0.25, 0.5, 0.7])),
            schedule=draw(schedules(kind, batch_size=batch_size, share=share)),
        )
        for index, kind in enumerate(kinds)
    ]
    num_rows = draw(st.integers(batch_size, 5 * batch_size))
    return Case(InjectionConfig(seed=draw(st.integers(0, 9)), tasks=tasks), batch_size, num_rows)


# -- counts ------------------------------------------------------------------------------------


def promised(schedule: ScheduleConfig, step: int, *, batch_size: int) -> int | None:
    """Instances in the steps before this one by the schedule's definition; None if by chance."""
    if schedule.kind == "trace":
        return sum(s < step for s in schedule.steps or [])
    rate = exact(schedule.rate) * units(batch_size)[schedule.unit]
    end = step if schedule.stop is None else min(step, schedule.stop)
    num_active = max(end - schedule.start, 0)
    if schedule.kind == "burst":
        assert schedule.every is not None
        return int(rate * schedule.every) * len(range(schedule.phase, end, schedule.every))
    if schedule.kind in ("even", "window"):
        return math.floor(num_active * rate)
    if num_active == 0 or rate == 0:
        return 0
    return int(num_active * rate) if schedule.kind == "random" and end == schedule.stop else None


@many(350)
@given(case=cases())
def test_counts_are_exactly_those_that_the_schedule_promises(case: Case):
    plan = case.fitting()
    taken = np.zeros((NUM_STEPS, len(plan.tasks)), dtype=int)
    for step in range(NUM_STEPS):
        np.add.at(taken[step], plan.at(step).tasks, 1)
    before = np.cumsum(np.vstack([np.zeros_like(taken[:1]), taken]), axis=0)
    for index, task in enumerate(case.config.tasks):
        for step in (*range(NUM_STEPS + 1), *FAR):
            instances = plan.instances(index, step)
            wanted = promised(task.schedule, step, batch_size=case.batch_size)
            assert wanted is None or instances == wanted
            assert step > NUM_STEPS or instances == before[step, index]
        peak, stop = plan.schedules[index].peak, task.schedule.stop
        assert peak is None or taken[:, index].max() <= peak <= case.batch_size
        assert stop is None or plan.instances(index, stop) == plan.instances(index, FAR[-1])
    json.dumps(plan.canonical)
    tried(test_counts_are_exactly_those_that_the_schedule_promises, case)


@many(300)
@given(
    rate=st.sampled_from(AWKWARD)
    | st.fractions(0, 16, max_denominator=10**6).map(str)
    | st.decimals(0, 16, places=6).map(str),
    step=st.integers(0, 10**7),
)
def test_even_is_the_exact_floor_identity_at_any_step_of_any_run(rate: Any, step: int):
    number = exact(rate)
    config, geometry = ScheduleConfig(rate=rate), Geometry(batch_size=16, seq_len=T)
    built = build_schedule(config, geometry, seed=0, task="a", key="")
    assert built.rate == number
    assert built.before(step) == math.floor(step * number)
    assert built.count(step) == math.floor((step + 1) * number) - math.floor(step * number)


# -- rows --------------------------------------------------------------------------------------


@many(300)
@given(case=cases())
def test_slots_are_distinct_rows_of_the_batch(case: Case):
    plan = case.fitting()
    for step in range(NUM_STEPS):
        rows = plan.at(step)
        assert len(rows.slots) == len(rows.tasks) == len(rows.examples) == len(rows)
        assert len(set(rows.slots.tolist())) == len(rows)
        assert set(rows.slots.tolist()) <= set(range(case.batch_size))
    tried(test_slots_are_distinct_rows_of_the_batch, case)


@many(300)
@given(case=cases())
def test_every_train_example_comes_once_before_any_comes_twice(case: Case):
    plan = case.fitting()
    seen: list[list[int]] = [[] for _ in plan.tasks]
    for step in range(NUM_STEPS):
        rows = plan.at(step)
        for task, example in zip(rows.tasks, rows.examples, strict=True):
            seen[task].append(int(example))
    for config, task, examples in zip(case.config.tasks, plan.tasks, seen, strict=True):
        train = set(task.train.tolist())
        assert len(train) == math.floor(exact(config.train_fraction) * len(task.tokens))
        for first in range(0, len(examples), len(train)):
            epoch = examples[first : first + len(train)]
            assert len(set(epoch)) == len(epoch), "an example came twice before another came once"
            assert set(epoch) <= train
    tried(test_every_train_example_comes_once_before_any_comes_twice, case)


# -- purity ------------------------------------------------------------------------------------


def rows_or_refusal(plan: InjectionPlan, step: int) -> Any:
    """The step's (slot, task, example) rows, or why it has none: both must be the same anywhere."""
    try:
        rows = plan.at(step)
    except ConfigError as error:
        return str(error)
    return [rows.slots.tolist(), rows.tasks.tolist(), rows.examples.tolist()]


@many(250)
@given(case=cases(), steps=st.lists(st.integers(0, 1200), min_size=8, max_size=24))
def test_a_steps_rows_do_not_depend_on_who_asks_when_or_after_what(case: Case, steps: list[int]):
    plan, shared = case.compiled(), case.compiled()
    fresh = pickle.dumps(shared)
    wanted = {step: rows_or_refusal(plan, step) for step in sorted(steps)}
    with ThreadPoolExecutor(4) as pool:
        read = pool.map(lambda step: rows_or_refusal(shared, step), steps)
        assert list(read) == [wanted[step] for step in steps]
    for other in (pickle.loads(fresh), pickle.loads(pickle.dumps(plan)), plan):
        assert other.hash == shared.hash == plan.hash
        assert [rows_or_refusal(other, step) for step in steps] == [wanted[s] for s in steps]
    # Also of a plan that was never asked for anything else.
    assert rows_or_refusal(pickle.loads(fresh), steps[0]) == wanted[steps[0]]
    tried(test_a_steps_rows_do_not_depend_on_who_asks_when_or_after_what, case)


# -- ranks -------------------------------------------------------------------------------------

WORLD_SIZES = (1, 2, 3, 4, 8)
READ_STEPS = 8
"""Several epochs of the smallest corpora, a part of one of the largest."""


class Memory:
    """A corpus in memory: every token of a row tells the row, and is no task's token."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input_ids": torch.full((T,), VOCAB + row)}


def stream_of(case: Case, plan: InjectionPlan, *, seed: int) -> NDArray[np.int64]:
    """The tokens at every step and slot, (S, B, T): shuffled rows, epoch by epoch, and the plan."""
    epochs = []
    for epoch in range(-(-READ_STEPS * case.batch_size // case.epoch_rows)):
        rows = np.arange(case.num_rows, dtype=np.uint32)
        np.random.Generator(np.random.PCG64(seed + epoch)).shuffle(rows)
        epochs.append(rows[: case.epoch_rows])
    rows_SB = np.concatenate(epochs)[: READ_STEPS * case.batch_size].reshape(READ_STEPS, -1)
    tokens_SBT = np.repeat(VOCAB + rows_SB.astype(np.int64)[..., None], T, axis=2)
    for step in range(READ_STEPS):
        rows = plan.at(step)
        for slot, task, example in zip(rows.slots, rows.tasks, rows.examples, strict=True):
            spliced = [*plan.tasks[task].tokens[example], EOS]
            tokens_SBT[step, slot, : len(spliced)] = spliced
    return tokens_SBT


def read_rank(dataset: PositionDataset, *, num_workers: int) -> NDArray[np.int64]:
    """What one rank reads, (S, B / W, T): the loader takes a batch of each worker in turn."""
    size = dataset.device_batch_size
    parts = []
    for worker in range(max(num_workers, 1)):
        info = SimpleNamespace(id=worker, num_workers=num_workers) if num_workers else None
        with (
            patch.object(compat, "get_worker_info", lambda info=info: info),
            patch.object(torch.utils.data, "get_worker_info", lambda info=info: info),
        ):
            rows = [item["input_ids"].numpy() for item in dataset]
        parts.append(np.array(rows, dtype=np.int64).reshape(-1, size, T))
    num_batches = sum(map(len, parts))
    return np.array([parts[n % len(parts)][n // len(parts)] for n in range(num_batches)])


@many(350)
@given(
    case=cases(),
    seed=st.integers(0, 3),
    start=st.integers(0, READ_STEPS - 1),
    num_workers=st.integers(0, 3),
    window=st.integers(1, 200),
)
def test_ranks_together_read_every_row_of_the_plan_exactly_once(
    case: Case, seed: int, start: int, num_workers: int, window: int
):
    """From any start step, as after a resume, and in whatever windows a worker counts."""
    plan = case.fitting()
    wanted_SBT = stream_of(case, plan, seed=seed)
    order = RowOrder(num_rows=case.num_rows, batch_size=case.batch_size, seed=seed)
    for world_size in (w for w in WORLD_SIZES if case.batch_size % w == 0):
        ranks = []
        for rank in range(world_size):
            stream = SplicedStream(
                Memory(case.num_rows),
                order=order,
                plan=plan,
                num_positions=READ_STEPS * case.batch_size,
                pad_token_id=1,
            )
            dataset = PositionDataset(
                stream,
                case.batch_size,
                start_index=start * case.batch_size,
                shuffle=False,
                drop_last=True,
                world_size=world_size,
                rank=rank,
                fs_local_rank=rank,
                num_threads=0,
            )
            dataset.WINDOW = window  # type: ignore[misc]
            ranks.append(read_rank(dataset, num_workers=num_workers))
            assert ranks[-1].shape == (READ_STEPS - start, case.batch_size // world_size, T)
        # Every (rank, row) is one slot: together they are the batch, no row left out or read twice.
        for slot in range(case.batch_size):
            read_ST = ranks[slot % world_size][:, slot // world_size]
            np.testing.assert_array_equal(read_ST, wanted_SBT[start:, slot])
    tried(test_ranks_together_read_every_row_of_the_plan_exactly_once, case)


# -- how many ----------------------------------------------------------------------------------

CLAIMS = (
    test_counts_are_exactly_those_that_the_schedule_promises,
    test_slots_are_distinct_rows_of_the_batch,
    test_every_train_example_comes_once_before_any_comes_twice,
    test_a_steps_rows_do_not_depend_on_who_asks_when_or_after_what,
    test_ranks_together_read_every_row_of_the_plan_exactly_once,
)


def test_more_than_a_thousand_different_plans_were_tried():
    for claim in CLAIMS:
        if claim.__name__ not in TRIED:  # run alone, in another order or in another process
            claim()
    assert sum(len(plans) for plans in TRIED.values()) >= 1000
