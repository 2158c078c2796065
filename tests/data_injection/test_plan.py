"""The plan: every step's rows are a pure function of its config, and its hash says which.

What holds for every plan, whatever its tasks, is in test_properties.py.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from refusals import refuses

from data_injection import plan as plan_module
from data_injection.config import InjectionConfig, ScheduleConfig, TaskConfig
from data_injection.errors import ConfigError
from data_injection.plan import InjectionPlan, compile_plan
from data_injection.tasks import build as tasks_module
from data_injection.tasks.base import IntArray, Task
from eval.run import differences

GEOMETRY: dict[str, Any] = {
    "batch_size": 16,
    "seq_len": 32,
    "epoch_rows": 160,
    "vocab_size": 300,
    "eos_token_id": 0,
}
GOLDEN = InjectionConfig(
    seed=17,
    offset=2,
    tasks=[
        TaskConfig(name="even", num_symbols=5, schedule=ScheduleConfig(rate="2.3")),
        TaskConfig(
            name="burst",
            family="modular_addition",
            num_symbols=6,
            schedule=ScheduleConfig(kind="burst", rate="3/7", every=7, phase=2),
        ),
        TaskConfig(
            name="random",
            num_symbols=4,
            train_fraction=0.75,
            schedule=ScheduleConfig(kind="random", rate="1/2", start=10, stop=150),
        ),
        TaskConfig(
            name="bernoulli",
            share_symbols_with="burst",
            num_symbols=5,
            schedule=ScheduleConfig(kind="bernoulli", rate=0.01, unit="per_sequence"),
        ),
        TaskConfig(
            name="window",
            symbols=[7, 9, 11],
            schedule=ScheduleConfig(kind="window", rate="1/3", start=50, stop=90),
        ),
        TaskConfig(name="trace", schedule=ScheduleConfig(kind="trace", steps=[0, 3, 3, 199])),
    ],
)
# Literal on purpose. If a change makes either differ, existing runs cannot be resumed or compared:
# undo it, or raise ALGORITHM_VERSION and put the new values here.
GOLDEN_VERSION = 1
GOLDEN_ROWS = "fd1c0f2a6c8fab75d9b5645e7209f7a6f5ccf5f47ce5b240511e9abce95828ab"
GOLDEN_HASH = "7aa5e0a3bdac0dfa34135b0011958c9dc205ef9ab8b0f7db325a24e77d609220"


def compiled(config: InjectionConfig, **changes: Any) -> InjectionPlan:
    return compile_plan(config, **(GEOMETRY | changes))


def one_task(name: str = "a", *, num_symbols: int = 4, **schedule: Any) -> TaskConfig:
    fields = schedule or {"rate": 2}
    return TaskConfig(name=name, num_symbols=num_symbols, schedule=ScheduleConfig(**fields))


def rows_digest(plan: InjectionPlan, num_steps: int) -> str:
    """SHA-256 of the text "step slot task example" of every row: no code of the plan's own."""
    sha = hashlib.sha256()
    for step in range(num_steps):
        rows = plan.at(step)
        for row in zip(rows.slots, rows.tasks, rows.examples, strict=True):
            sha.update(" ".join(map(str, (step, *map(int, row)))).encode() + b"\n")
    return sha.hexdigest()


# -- rows --------------------------------------------------------------------------------------


def test_every_example_of_an_epoch_comes_exactly_once_before_any_twice():
    plan = compiled(InjectionConfig(tasks=[one_task(num_symbols=5, rate="3/2")]))
    train = plan.tasks[0].train
    examples = np.concatenate([plan.at(s).examples for s in range(8 * 4)])
    assert len(examples) == 4 * len(train)
    epochs = examples.reshape(4, len(train))
    for epoch in epochs:
        assert sorted(epoch) == train.tolist()
    assert epochs[0].tolist() != epochs[1].tolist(), "each epoch has an order of its own"


def test_several_epochs_can_pass_within_one_step():
    plan = compiled(InjectionConfig(tasks=[one_task(num_symbols=2, rate=15)]))
    assert np.bincount(plan.at(0).examples, minlength=4)[plan.tasks[0].train].tolist() == [
        8,
        7,
    ] or (np.bincount(plan.at(0).examples, minlength=4)[plan.tasks[0].train].tolist() == [7, 8])


def test_a_full_batch_uses_every_slot_once():
    plan = compiled(InjectionConfig(tasks=[one_task("a", rate=9), one_task("b", rate=7)]))
    for step in range(20):
        rows = plan.at(step)
        assert sorted(rows.slots) == list(range(16))
        assert np.bincount(rows.tasks).tolist() == [9, 7]


def test_slots_are_uniform_over_the_batch():
    plan = compiled(InjectionConfig(tasks=[one_task(rate=1)]))
    hits = np.bincount([int(plan.at(s).slots[0]) for s in range(4000)], minlength=16)
    # Chi-square with 15 degrees of freedom: mean 15, standard deviation 5.5.
    assert ((hits - 250) ** 2 / 250).sum() < 15 + 5 * 5.5


def test_an_empty_plan_has_no_rows_and_is_false():
    plan = compiled(InjectionConfig())
    assert not plan
    assert len(plan.at(0)) == len(plan.at(10**6)) == 0
    plan.check(100)
    assert compiled(GOLDEN)


# -- purity ------------------------------------------------------------------------------------


def test_another_process_with_another_hash_seed_compiles_the_same_plan():
    code = (
        "import pickle, sys\n"
        "from data_injection.plan import compile_plan\n"
        "config, geometry = pickle.load(sys.stdin.buffer)\n"
        "plan = compile_plan(config, **geometry)\n"
        "print(plan.hash, plan.digest(range(199, -1, -1)))\n"
    )
    plan = compiled(GOLDEN)
    expected = f"{plan.hash} {plan.digest(range(199, -1, -1))}"
    for hash_seed in ("1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=pickle.dumps((GOLDEN, GEOMETRY)),
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        )
        assert done.stdout.decode().strip() == expected


def test_the_hash_does_not_depend_on_what_was_asked_before():
    plan = compiled(GOLDEN)
    before = plan.hash
    plan.check(5000)
    for step in (4999, 0, 77):
        plan.at(step)
    assert plan.hash == before == compiled(GOLDEN).hash
    text = json.dumps(plan._canonical(), sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == before


def test_reserved_tokens_that_were_never_drawn_leave_the_plan_alone():
    plan = compiled(GOLDEN)
    drawn = {int(t) for task in plan.tasks for t in np.unique(task.tokens)}
    free = next(t for t in range(299, 0, -1) if t not in drawn)
    assert compiled(GOLDEN, reserved_tokens=[free]).at(5).slots.tolist() == (
        plan.at(5).slots.tolist()
    )


# -- identity ----------------------------------------------------------------------------------


class Weighted(Task):
    """A family with a parameter that may or may not change the table."""

    family = "weighted"

    @classmethod
    def param_names(cls) -> tuple[str, ...]:
        return ("weight",)

    def examples(self) -> IntArray:
        pairs = np.array(list(itertools.product(range(len(self.symbols)), repeat=2)))
        label = (pairs[:, 0] + self.params["weight"] * pairs[:, 1]) % len(self.symbols)
        return self.symbols[np.column_stack([pairs, label])]


def base() -> InjectionConfig:
    weighted = replace(one_task("w", rate=1), family="weighted", params={"weight": 2})
    return InjectionConfig(tasks=[one_task("a"), one_task("b", rate="1/2"), weighted])


def edited(edit: Callable[[InjectionConfig], object]) -> InjectionConfig:
    config = base()
    edit(config)
    return config


CHANGES: dict[str, tuple[InjectionConfig, dict[str, Any], tuple[Any, ...]]] = {
    "seed": (edited(lambda c: setattr(c, "seed", 1)), {}, ("seed", 1, 0)),
    "offset": (edited(lambda c: setattr(c, "offset", 4)), {}, ("offset", 4, 0)),
    "rate": (
        edited(lambda c: setattr(c.tasks[1].schedule, "rate", "1/3")),
        {},
        ("tasks.b.schedule.rate_per_step", "1/3", "1/2"),
    ),
    "kind": (
        edited(lambda c: setattr(c.tasks[1].schedule, "kind", "bernoulli")),
        {},
        ("tasks.b.schedule.kind", "bernoulli", "even"),
    ),
    "task order": (
        edited(lambda c: c.tasks.reverse()),
        {},
        ("tasks.w.index", 0, 2),
    ),
    "symbols": (
        edited(lambda c: setattr(c.tasks[0], "symbols", [5, 6, 7, 8])),
        {},
        ("tasks.a.digest",),
    ),
    "number of symbols": (
        edited(lambda c: setattr(c.tasks[0], "num_symbols", 5)),
        {},
        ("tasks.a.digest",),
    ),
    "split": (
        edited(lambda c: setattr(c.tasks[0], "train_fraction", 0.75)),
        {},
        ("tasks.a.digest",),
    ),
    "name": (
        edited(lambda c: setattr(c.tasks[0], "name", "z")),
        {},
        ("tasks.z",),
    ),
    "params": (
        edited(lambda c: setattr(c.tasks[2], "params", {"weight": 3})),
        {},
        ("tasks.w.params.weight", 3, 2),
    ),
    "params of no consequence": (
        edited(lambda c: setattr(c.tasks[2], "params", {"weight": 6})),
        {},
        ("tasks.w.params.weight", 6, 2),
    ),
    "one task more": (edited(lambda c: c.tasks.append(one_task("n", rate=0))), {}, ("tasks.n",)),
    "batch size": (base(), {"batch_size": 8}, ("batch_size", 8, 16)),
    "row length": (base(), {"seq_len": 16}, ("seq_len", 16, 32)),
    "epoch": (base(), {"epoch_rows": 176}, ("epoch_rows", 176, 160)),
    "end of text": (base(), {"eos_token_id": 1}, ("eos_token_id", 1, 0)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_hash_changes_with_everything_the_rows_stand_on(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(tasks_module.TASKS, "weighted", Weighted)
    config, geometry, change = CHANGES[name]
    now, before = compiled(config, **geometry), compiled(base())
    assert now.hash != before.hash
    found = differences(now.canonical, before.canonical)
    assert change in [one[: len(change)] for one in found]


def test_differences_of_equal_plans_are_none_even_after_json():
    plan = compiled(GOLDEN)
    assert differences(plan.canonical, compiled(GOLDEN).canonical) == []
    assert differences(plan.canonical, json.loads(json.dumps(plan.canonical))) == []


def test_differences_names_exactly_the_changed_keys():
    ours = {"same": 1, "changed": 2, "nested": {"gone": None, "list": [1, 2], "kept": 0}}
    theirs = {"same": 1, "changed": 3, "nested": {"list": [2, 1], "kept": 0, "new": "x"}}
    assert differences(ours, theirs) == [
        ("changed", 2, 3),
        ("nested.list", [1, 2], [2, 1]),
        ("nested.new", None, "x"),
    ]


# -- golden ------------------------------------------------------------------------------------


def test_the_golden_plan_has_not_moved():
    plan = compiled(GOLDEN)
    assert plan_module.ALGORITHM_VERSION == GOLDEN_VERSION
    assert rows_digest(plan, 200) == GOLDEN_ROWS
    assert plan.hash == GOLDEN_HASH


def test_numbers_of_numpy_make_the_plan_that_pythons_make():
    """A config built in Python: the plan's JSON raised a TypeError of its own on the first."""

    def plan(whole: Callable[[int], Any], array: Callable[[list[int]], Any]) -> InjectionPlan:
        timing = ScheduleConfig("burst", "1/4", every=whole(8), phase=whole(2), stop=whole(99))
        window = ScheduleConfig("window", total=whole(5), start=whole(1), stop=whole(9))
        trace = ScheduleConfig("trace", steps=array([0, 3, 3]))
        tasks = [TaskConfig("b", num_symbols=whole(6), schedule=timing)]
        tasks += [TaskConfig("w", symbols=array([7, 9, 11]), schedule=window)]
        tasks += [TaskConfig("w2", num_symbols=5, params={"operands": whole(2)}, schedule=trace)]
        tasks[2].family = "group_composition"
        config = InjectionConfig(whole(3), whole(1), exclude_tokens=array([5]), tasks=tasks)
        return compile_plan(config, **GEOMETRY)

    plain = plan(int, list)
    assert plan(np.int64, np.array).hash == plan(np.int32, lambda all: [*map(np.int64, all)]).hash
    assert plan(np.int64, np.array).canonical == plain.canonical


def test_one_injection_moved_by_one_slot_is_seen_in_the_golden_digest(
    monkeypatch: pytest.MonkeyPatch,
):
    plan = compiled(GOLDEN)
    at = plan.at

    def moved(step: int) -> plan_module.StepRows:
        rows = at(step)
        if step != 123:
            return rows
        taken = set(rows.slots.tolist())
        slots = rows.slots.copy()
        which = next(i for i, s in enumerate(slots) if s + 1 < 16 and s + 1 not in taken)
        slots[which] += 1
        return replace(rows, slots=slots)

    monkeypatch.setattr(plan, "at", moved)
    assert rows_digest(plan, 123) == rows_digest(compiled(GOLDEN), 123)
    assert rows_digest(plan, 200) != GOLDEN_ROWS


def test_an_algorithm_that_moves_every_slot_by_one_is_seen_in_rows_and_hash(
    monkeypatch: pytest.MonkeyPatch,
):
    permutation = plan_module.permutation

    def rolled(num: int, *, purpose: str, **arguments: Any) -> IntArray:
        entries = permutation(num, purpose=purpose, **arguments)
        return (entries + 1) % num if purpose == "slots" else entries

    monkeypatch.setattr(plan_module, "permutation", rolled)
    plan = compiled(GOLDEN)
    assert rows_digest(plan, 200) != GOLDEN_ROWS
    assert plan.hash != GOLDEN_HASH


# -- what is refused ---------------------------------------------------------------------------


def late_collision() -> InjectionConfig:
    """Bursts of 9 every 97 and of 10 every 89 steps: they meet once in 97 * 89 = 8633 steps."""
    return InjectionConfig(
        tasks=[
            one_task("a", kind="burst", rate="9/97", every=97, phase=96),
            one_task("b", kind="burst", rate="10/89", every=89, phase=88),
        ]
    )


def test_bursts_that_meet_once_late_are_found_before_training():
    plan = compiled(late_collision())
    plan.check(8632)
    with pytest.raises(ConfigError) as error:
        plan.check(8633)
    assert error.value.key == "injection.tasks"
    assert error.value.rule == "must fit a batch of 16 rows, but ask for 19 at step 8632"
    assert "'b' can have beside the others is 7 a step (it asks for 10)" in error.value.remedy
    with refuses(key="injection.tasks", rule="19 at step 8632"):
        plan.at(8632)
    assert len(plan.at(8631)) == len(plan.at(8633)) == 0


def test_the_largest_that_fits_does_fit_beside_the_others():
    config = late_collision()
    config.tasks[1].schedule.rate = "7/89"
    compiled(config).check(8633)


@pytest.mark.parametrize("num_steps", [100, 10_000])
def test_bernoulli_rows_are_checked_although_they_have_no_peak(num_steps: int):
    config = InjectionConfig(
        tasks=[one_task("a", rate=8), one_task("b", kind="bernoulli", rate=1, start=5000)]
    )
    plan = compiled(config)
    # Binomial(16, 1/16) exceeds 8 with probability 1e-6: not here.
    plan.check(num_steps)
    config.tasks[0].schedule.rate = 15
    if num_steps == 100:
        compiled(config).check(num_steps)
    else:
        with refuses(key="injection.tasks", remedy="'a' can have beside the others is 1"):
            compiled(config).check(num_steps)


@pytest.mark.parametrize(
    ("schedule", "asked"),
    [
        ({"rate": 17}, 17),
        ({"rate": "33/2"}, 17),
        ({"kind": "burst", "rate": 1, "every": 20}, 20),
        ({"kind": "window", "rate": 100, "start": 9}, 100),
        ({"kind": "trace", "steps": [5] * 18}, 18),
    ],
)
def test_a_peak_beyond_the_batch_is_refused_with_the_largest_that_fits(
    schedule: dict[str, Any], asked: int
):
    config = InjectionConfig(tasks=[one_task("a"), one_task("b", **schedule)])
    with pytest.raises(ConfigError) as error:
        compiled(config)
    assert (error.value.key, error.value.value) == ("injection.tasks[1].schedule", asked)
    assert "at most 16 instances in one step" in error.value.rule


@pytest.mark.parametrize("offset", [-1, 29, 32])
def test_an_offset_that_does_not_leave_room_for_the_example_is_refused(offset: int):
    config = InjectionConfig(offset=offset, tasks=[one_task()])
    with pytest.raises(ConfigError) as error:
        compiled(config)
    assert (error.value.key, error.value.value) == ("injection.offset", offset)
    assert "must be in [0, 28] for 'a'" in error.value.rule
    compiled(InjectionConfig(offset=28, tasks=[one_task()]))


# -- accounts ----------------------------------------------------------------------------------


def test_accounts_are_exact_and_in_all_units():
    plan = compiled(InjectionConfig(tasks=[one_task("a"), one_task("b", rate="1/4")]))
    index = plan.task_index("b")
    assert index == 1
    assert plan.instances(index, 100) == 25
    assert plan.exposures_per_example(index, 100) == 25 / 8
    rates = plan.rates(index)
    assert rates["per_step"] == 0.25
    assert rates["task_tokens_per_token"] == 0.25 * 4 / (16 * 32)
    with pytest.raises(ValueError, match=r"no task 'c' in the plan; it has \['a', 'b'\]"):
        plan.task_index("c")


def test_a_collision_beyond_the_runs_end_harms_nobody():
    """The hash looks at steps a short run never reaches; what does not fit there is no error."""
    burst = {"kind": "burst", "rate": "1/2", "every": 16}
    tasks = [
        TaskConfig(name="a", num_symbols=5, schedule=ScheduleConfig(**burst, phase=15)),
        TaskConfig(name="b", num_symbols=5, schedule=ScheduleConfig(kind="trace", steps=[63])),
    ]
    plan = compile_plan(
        InjectionConfig(tasks=tasks),
        batch_size=8,
        seq_len=16,
        epoch_rows=80,
        vocab_size=100,
        eos_token_id=0,
    )
    plan.check(63)
    with refuses(key="injection.tasks", rule="9 at step 63"):
        plan.check(64)
