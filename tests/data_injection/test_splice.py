"""The spliced stream: the injected tokens are in place and nothing else in a row has moved."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from olmo.config import PaddingDirection
from olmo.data.collator import DataCollator
from olmo.data.util import get_document_lengths
from olmo.train import Trainer

from data_injection.config import InjectionConfig, ScheduleConfig, TaskConfig
from data_injection.order import RowOrder
from data_injection.plan import InjectionPlan, compile_plan
from data_injection.rows import document_lengths
from data_injection.splice import SplicedStream, spans_of, splice_batch

SEQ_LEN, BATCH, NUM_ROWS, NUM_STEPS = 12, 8, 37, 20
VOCAB, EOS, PAD = 60, 0, 1
ALL_KEYS = ("instance_mask", "label_mask", "attention_mask", "doc_lens", "metadata")


class FakeHost:
    """Rows in memory by the engine's rules; every row a pure function of its number."""

    def __init__(
        self, *keys: str, pad: int = PAD, is_filtered: Callable[[int], bool] | None = None
    ) -> None:
        self.keys, self.pad, self.is_filtered = keys, pad, is_filtered

    def __len__(self) -> int:
        return NUM_ROWS

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.Generator(np.random.PCG64(index))
        # Many EOS and padding tokens, also where examples will stand.
        ids = torch.from_numpy(rng.choice([EOS, PAD, *range(2, 10)], size=SEQ_LEN))
        mask = torch.from_numpy(rng.random(SEQ_LEN) < 0.5)
        values = {
            "instance_mask": self.is_filtered is None or not self.is_filtered(index),
            "label_mask": mask,
            "attention_mask": torch.ones_like(ids).masked_fill_(ids == self.pad, 0),
            "doc_lens": get_document_lengths(ids, EOS),
            "metadata": {"path": "corpus", "row": index},
        }
        return {"input_ids": ids} | {key: values[key] for key in self.keys}


def plan_at(offset: int = 0, *, tasks: list[TaskConfig] | None = None) -> InjectionPlan:
    if tasks is None:
        even = ScheduleConfig(rate="5/2")
        burst = ScheduleConfig(kind="burst", rate="3/4", every=4, phase=1)
        tasks = [
            TaskConfig(name="cmp", num_symbols=4, schedule=even),
            TaskConfig(name="add", family="modular_addition", num_symbols=5, schedule=burst),
        ]
    return compile_plan(
        InjectionConfig(offset=offset, tasks=tasks, exclude_tokens=list(range(10))),
        batch_size=BATCH,
        seq_len=SEQ_LEN,
        epoch_rows=32,
        vocab_size=VOCAB,
        eos_token_id=EOS,
        reserved_tokens=[PAD],
    )


def stream_over(host: FakeHost, plan: InjectionPlan, *, pad: int = PAD) -> SplicedStream:
    return SplicedStream(
        host,
        order=RowOrder(num_rows=NUM_ROWS, batch_size=BATCH, seed=1),
        plan=plan,
        num_positions=BATCH * NUM_STEPS,
        pad_token_id=pad,
    )


def injected(plan: InjectionPlan) -> dict[int, list[int]]:
    """Position -> the tokens that must stand there, EOS included."""
    where = {}
    for step in range(NUM_STEPS):
        rows = plan.at(step)
        for slot, task, example in zip(rows.slots, rows.tasks, rows.examples, strict=True):
            tokens = plan.tasks[task].tokens[example].tolist()
            where[step * BATCH + int(slot)] = [*tokens, EOS]
    return where


def assert_identical(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.numpy().tobytes() == theirs.numpy().tobytes()
    else:
        assert type(ours) is type(theirs)
        assert ours == theirs


# -- nothing else moves ------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 5, SEQ_LEN - 4])
def test_nothing_but_the_injected_tokens_changes(offset: int):
    host, plan = FakeHost("metadata"), plan_at(offset)
    stream, where = stream_over(host, plan), injected(plan)
    assert len(where) == plan.instances(0, NUM_STEPS) + plan.instances(1, NUM_STEPS) == 65
    for position in range(len(stream)):
        item = stream[position]
        row = stream.order.row(position)
        expected = host[row]
        if position in where:
            expected["input_ids"][offset : offset + 4] = torch.tensor(where[position])
        assert list(item) == ["input_ids", "metadata", "index"]
        assert item["index"] == row
        for key, value in expected.items():
            assert_identical(item[key], value)


def test_a_row_without_an_injection_is_the_hosts_own_in_every_key():
    host, plan = FakeHost(*ALL_KEYS), plan_at()
    stream, where = stream_over(host, plan), injected(plan)
    for position in set(range(len(stream))) - set(where):
        item, expected = stream[position], host[stream.order.row(position)]
        assert item.pop("index") == stream.order.row(position)
        assert item.keys() == expected.keys()
        for key, value in expected.items():
            assert_identical(item[key], value)


def test_a_plan_without_tasks_leaves_every_item_alone():
    host = FakeHost("instance_mask", "attention_mask", "doc_lens", is_filtered=lambda r: r % 3 == 0)
    stream = stream_over(host, plan_at(tasks=[]))
    for position in range(len(stream)):
        item, expected = stream[position], host[stream.order.row(position)]
        expected["index"] = stream.order.row(position)
        assert list(item) == list(expected)
        for key, value in expected.items():
            assert_identical(item[key], value)


def test_a_task_at_rate_zero_leaves_every_item_of_a_plain_host_alone():
    task = TaskConfig(name="never", num_symbols=3, schedule=ScheduleConfig(rate=0))
    host = FakeHost(*ALL_KEYS)
    stream = stream_over(host, plan_at(tasks=[task]))
    for position in range(len(stream)):
        item, expected = stream[position], host[stream.order.row(position)]
        for key, value in expected.items():
            assert_identical(item[key], value)


def test_the_tokens_of_a_step_are_those_of_its_instances_one_by_one():
    """Tasks of several lengths, some without an instance in some steps."""
    kinds = [ScheduleConfig(rate=r) for r in ("1/3", 2, "5/2", 0)]
    plan = plan_at(
        tasks=[
            TaskConfig(name="a", num_symbols=4, schedule=kinds[0]),
            TaskConfig(name="b", family="modular_addition", num_symbols=5, schedule=kinds[1]),
            TaskConfig(name="c", share_symbols_with="a", num_symbols=4, schedule=kinds[2]),
            TaskConfig(name="d", num_symbols=3, schedule=kinds[3]),
        ]
    )
    longer = plan.tasks[1]
    longer.tokens = np.repeat(longer.tokens, 2, axis=1)
    for step in range(NUM_STEPS):
        rows = plan.at(step)
        wanted = {
            int(slot): [(0, [*plan.tasks[task].tokens[example].tolist(), EOS])]
            for slot, task, example in zip(rows.slots, rows.tasks, rows.examples, strict=True)
        }
        read = spans_of(plan, step)
        told = {slot: [(at, ids.tolist()) for at, ids in spans] for slot, spans in read.items()}
        assert told == wanted
        assert all(ids.dtype == np.int64 for spans in read.values() for _, ids in spans)
        assert len(wanted) == sum(schedule.count(step) for schedule in plan.schedules)


# -- what follows from the tokens --------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 3, SEQ_LEN - 4])
def test_document_lengths_are_the_engines_own_of_the_spliced_row(offset: int):
    plan = plan_at(offset)
    stream = stream_over(FakeHost("doc_lens"), plan)
    for position in injected(plan):
        item = stream[position]
        assert_identical(item["doc_lens"], get_document_lengths(item["input_ids"], EOS))
        assert item["doc_lens"].sum() == SEQ_LEN


@pytest.mark.parametrize(
    "ids", [[5], [EOS], [EOS, EOS], [5, EOS], [EOS, 5], [5, 6, 7], [EOS, 5, EOS, EOS, 6]]
)
def test_document_lengths_agree_with_the_engine_on_edge_cases(ids: list[int]):
    row = torch.tensor(ids)
    engines = get_document_lengths(row, EOS).tolist()
    assert document_lengths(row, EOS).tolist() == engines
    assert document_lengths(row.numpy(), EOS).tolist() == engines


@pytest.mark.parametrize("pad", [PAD, EOS], ids=["pad", "pad-is-eos"])
@pytest.mark.parametrize("offset", [0, 5])
def test_the_attention_mask_is_the_engines_rule_on_the_spliced_row(pad: int, offset: int):
    plan = plan_at(offset)
    stream = stream_over(FakeHost("attention_mask", pad=pad), plan, pad=pad)
    masked_ends = 0
    for position in injected(plan):
        item = stream[position]
        ids = item["input_ids"]
        rule = torch.ones_like(ids).masked_fill_(ids == pad, 0)  # olmo/data/memmap_dataset.py:213
        assert_identical(item["attention_mask"], rule)
        masked_ends += int(item["attention_mask"][offset + 3] == 0)
    assert masked_ends == (65 if pad == EOS else 0)


@pytest.mark.parametrize("offset", [0, 5])
def test_the_label_mask_is_true_on_spliced_tokens_and_the_hosts_elsewhere(offset: int):
    host, plan = FakeHost("label_mask"), plan_at(offset)
    stream = stream_over(host, plan)
    for position in injected(plan):
        expected = host[stream.order.row(position)]["label_mask"]
        expected[offset : offset + 4] = True
        assert_identical(stream[position]["label_mask"], expected)


# -- a host with an instance filter ------------------------------------------------------------


def is_filtered(row: int) -> bool:
    return row % 3 != 0


def labels_of(items: list[dict[str, Any]]) -> torch.Tensor:
    """The labels the engine trains on: its collator, then its own Trainer.get_labels."""
    collate = DataCollator(pad_direction=PaddingDirection.right, pad_token_id=PAD)
    batch = collate(items)
    assert len(batch["label_mask"]) == len(items), "the collator drops keys that some rows lack"
    return Trainer.get_labels(None, batch)  # type: ignore[arg-type]


def expected_labels(
    host: FakeHost, row: int, *, offset: int, tokens: list[int] | None
) -> torch.Tensor:
    """By hand: the row's own labels if it is not filtered, and the example's wherever it is."""
    item = host[row]
    labels = item["input_ids"].clone()
    if "label_mask" in item:
        labels[~item["label_mask"]] = -100
    if is_filtered(row):
        labels[:] = -100
    if tokens is not None:
        labels[offset : offset + len(tokens)] = torch.tensor(tokens)
    return labels[1:]


@pytest.mark.parametrize("keys", [("instance_mask",), ("instance_mask", "label_mask")])
@pytest.mark.parametrize("offset", [0, 5])
def test_of_a_filtered_row_only_the_examples_labels_remain(keys: tuple[str, ...], offset: int):
    host, plan = FakeHost(*keys, is_filtered=is_filtered), plan_at(offset)
    stream, where = stream_over(host, plan), injected(plan)
    kinds = set()
    for step in range(NUM_STEPS):
        positions = range(step * BATCH, (step + 1) * BATCH)
        items = [stream[position] for position in positions]
        assert all("label_mask" in item for item in items)
        for position, labels in zip(positions, labels_of(items), strict=True):
            row, tokens = stream.order.row(position), where.get(position)
            kinds.add((is_filtered(row), tokens is not None))
            wanted = expected_labels(host, row, offset=offset, tokens=tokens)
            assert labels.tolist() == wanted.tolist()
    assert len(kinds) == 4, "filtered or not, injected or not: all four occurred"


def test_a_filtered_row_without_an_injection_keeps_its_instance_mask():
    host, plan = FakeHost("instance_mask", is_filtered=is_filtered), plan_at()
    stream, where = stream_over(host, plan), injected(plan)
    for position in range(len(stream)):
        item, row = stream[position], stream.order.row(position)
        assert item["instance_mask"] is (position in where or not is_filtered(row))
        if position not in where:
            assert item["label_mask"].all()
            assert_identical(item["input_ids"], host[row]["input_ids"])


def test_a_host_without_a_filter_gets_no_label_mask():
    stream = stream_over(FakeHost(), plan_at())
    assert not any("label_mask" in stream[position] for position in range(len(stream)))


# -- the stream --------------------------------------------------------------------------------


def test_the_last_position_is_spliced_and_the_one_after_it_does_not_exist():
    task = TaskConfig(name="all", num_symbols=4, schedule=ScheduleConfig(rate=BATCH))
    plan = plan_at(tasks=[task])
    stream = stream_over(FakeHost(), plan)
    last = BATCH * NUM_STEPS - 1
    assert len(stream) == last + 1
    assert stream[last]["input_ids"][:4].tolist() == injected(plan)[last]
    for position in (last + 1, -1):
        with pytest.raises(IndexError, match=f"position {position} is not in"):
            stream[position]
    assert sum(1 for _ in stream) == last + 1, "iterating ends"


def test_a_row_does_not_depend_on_the_order_of_asking_or_on_pickling():
    plan = plan_at()
    forward = [stream_over(FakeHost(*ALL_KEYS), plan)[p] for p in range(BATCH * NUM_STEPS)]
    stream = stream_over(FakeHost(*ALL_KEYS), plan)
    stream = pickle.loads(pickle.dumps(stream))
    for position in np.random.Generator(np.random.PCG64(0)).permutation(len(stream)).tolist():
        item = stream[position]
        for key, value in forward[position].items():
            assert_identical(item[key], value)


def test_threads_that_share_a_stream_get_the_same_rows():
    plan, keys = plan_at(), ("instance_mask", "attention_mask", "doc_lens")
    calm = stream_over(FakeHost(*keys, is_filtered=is_filtered), plan)
    busy = stream_over(FakeHost(*keys, is_filtered=is_filtered), plan)
    expected = [calm[position] for position in range(len(calm))]
    with ThreadPoolExecutor(4) as pool:
        items = list(pool.map(busy.__getitem__, range(len(busy))))
    for item, wanted in zip(items, expected, strict=True):
        for key, value in wanted.items():
            assert_identical(item[key], value)


class Interrupted(SplicedStream):
    """A second thread reads a row of another step whenever this one looks at what is kept."""

    others: list[int]

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "_step" and self.others:
            self[self.others.pop()]
        return value


def test_a_row_stays_right_when_a_second_thread_reads_another_step_meanwhile():
    plan = plan_at()
    calm, where = stream_over(FakeHost(), plan), injected(plan)
    busy = stream_over(FakeHost(), plan)
    busy.__class__ = Interrupted
    for position in range(len(busy)):
        busy.others = [len(busy) - 1 - position] * 3
        item = busy[position]
        assert_identical(item["input_ids"], calm[position]["input_ids"])
        assert position not in where or item["input_ids"][:4].tolist() == where[position]


# -- a batch -----------------------------------------------------------------------------------

KEYS = ("instance_mask", "label_mask", "attention_mask", "doc_lens")


def collated(items: list[dict[str, Any]]) -> dict[str, Any]:
    collate = DataCollator(pad_direction=PaddingDirection.right, pad_token_id=PAD)
    return collate([{key: item[key] for key in item if key != "metadata"} for item in items])


@pytest.mark.parametrize("kind", ["tensors", "arrays"])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "keys", [(), ("instance_mask",), ("label_mask", "doc_lens"), ("attention_mask",), KEYS]
)
def test_a_spliced_batch_is_the_streams_own(keys: tuple[str, ...], ranks: int, kind: str):
    """The host's batch, spliced whole, against the stream's rows in the engine's own collator."""
    host, plan = FakeHost(*keys, is_filtered=is_filtered), plan_at(3)
    stream = stream_over(host, plan)
    for step in range(NUM_STEPS):
        for rank in range(ranks):
            slots = range(rank, BATCH, ranks)
            positions = [step * BATCH + slot for slot in slots]
            wanted = collated([stream[position] for position in positions])
            batch = collated([host[stream.order.row(position)] for position in positions])
            if kind == "arrays":
                batch = {k: v.numpy() if torch.is_tensor(v) else v for k, v in batch.items()}
            ids = batch["input_ids"]
            given = None if ranks == 1 else slots
            splice_batch(batch, plan, step=step, slots=given, pad_token_id=PAD)
            assert batch["input_ids"] is ids, "in place"
            wanted.pop("index")
            assert batch.keys() == wanted.keys()
            for key, value in wanted.items():
                ours = batch[key] if kind == "tensors" else torch.as_tensor(batch[key])
                if torch.is_tensor(value):
                    assert_identical(ours, value)
                else:
                    assert batch[key] == value


def test_labels_of_spliced_tokens_are_their_ids_and_the_hosts_elsewhere():
    plan = plan_at(2)
    for step in range(NUM_STEPS):
        batch = {"input_ids": np.full((BATCH, SEQ_LEN), 5), "labels": np.full((BATCH, SEQ_LEN), 9)}
        splice_batch(batch, plan, step=step)
        spliced = batch["labels"] != 9
        assert spliced.sum() == 4 * len(plan.at(step))
        assert (batch["labels"][spliced] == batch["input_ids"][spliced]).all()


def test_without_a_padding_token_every_spliced_token_is_attended_to():
    batch = {
        "input_ids": np.zeros((BATCH, SEQ_LEN), dtype=np.int32),
        "attention_mask": np.zeros((BATCH, SEQ_LEN), dtype=np.int8),
    }
    plan = plan_at()
    splice_batch(batch, plan, step=1)
    assert batch["attention_mask"].sum() == 4 * len(plan.at(1)) > 0


@pytest.mark.parametrize(
    ("shape", "slots", "said"),
    [
        ((BATCH, SEQ_LEN + 1), None, "rows of 13 tokens, but the plan is of 12"),
        ((4, SEQ_LEN), None, "4 rows are not the plan's batch of 8"),
        ((4, SEQ_LEN), [0, 1, 2], "3 for 4 rows"),
        ((4, SEQ_LEN), [0, 1, 2, 2], "4 for 4 rows; give one of its own"),
        ((2, SEQ_LEN), [0, 8], r"8 is not in \[0, 8\)"),
        ((2, SEQ_LEN), [-1, 3], r"-1 is not in \[0, 8\)"),
    ],
)
def test_rows_that_are_not_the_plans_are_refused(shape: tuple, slots: Any, said: str):
    with pytest.raises(ValueError, match=said):
        splice_batch({"input_ids": np.zeros(shape, int)}, plan_at(), step=0, slots=slots)


def test_a_range_of_slots_that_starts_at_zero_is_a_rank_of_a_larger_batch():
    batch = {"input_ids": np.full((4, SEQ_LEN), 5)}
    splice_batch(batch, plan_at(), step=1, slots=range(4))
    where = [slot for slot in spans_of(plan_at(), 1) if slot < 4]
    assert np.flatnonzero((batch["input_ids"] != 5).any(axis=1)).tolist() == sorted(where)
