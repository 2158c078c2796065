"""The witness stops a run whose batches are not the plan's; its digest is one for any ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_injection.config import InjectionConfig, ScheduleConfig, TaskConfig
from data_injection.order import RowOrder
from data_injection.plan import compile_plan
from data_injection.splice import SplicedStream
from olmo_ext.batch_check import StreamError, Witness, rows_digest

BATCH, SEQ_LEN, ROWS, EOS = 12, 16, 40, 0


class Corpus:
    """Random rows; row 5 holds an example of the task by nature."""

    def __init__(self, natural: list[int]) -> None:
        self.tokens = np.random.default_rng(0).integers(100, 200, size=(ROWS, SEQ_LEN))
        self.tokens[5, : len(natural)] = natural

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict:
        return {"input_ids": torch.from_numpy(self.tokens[index].copy())}


def make(offset: int = 0):
    config = InjectionConfig(
        seed=3,
        offset=offset,
        tasks=[
            TaskConfig(name="cmp", num_symbols=10, schedule=ScheduleConfig(rate=4)),
            TaskConfig(
                name="add",
                family="modular_addition",
                num_symbols=10,
                schedule=ScheduleConfig(rate="1/2"),
            ),
        ],
    )
    plan = compile_plan(
        config,
        batch_size=BATCH,
        seq_len=SEQ_LEN,
        epoch_rows=36,
        vocab_size=200,
        eos_token_id=EOS,
    )
    order = RowOrder(num_rows=ROWS, batch_size=BATCH, seed=1)
    host = Corpus([*plan.tasks[0].tokens[7].tolist(), EOS] if offset == 0 else [])
    stream = SplicedStream(host, order=order, plan=plan, num_positions=10**6, pad_token_id=1)
    return plan, order, host, stream


def batch_of(stream: SplicedStream, step: int, *, rank: int = 0, world_size: int = 1) -> dict:
    items = [stream[step * BATCH + slot] for slot in range(rank, BATCH, world_size)]
    return {
        "input_ids": torch.stack([item["input_ids"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
    }


@pytest.mark.parametrize("offset", [0, 5])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_a_stream_as_planned_passes_on_every_rank_for_several_epochs(
    world_size: int, offset: int
) -> None:
    plan, order, host, stream = make(offset)
    for rank in range(world_size):
        witness = Witness(plan, order, host, rank=rank, world_size=world_size)
        for step in range(20):
            rows = witness.see(step, batch_of(stream, step, rank=rank, world_size=world_size))
            assert rows.slots.tolist() == plan.at(step).slots.tolist()


def test_the_digest_is_one_number_for_any_number_of_ranks() -> None:
    plan, order, host, stream = make()
    totals = set()
    for world_size in (1, 2, 3, 4, 6, 12):
        total = 0
        for rank in range(world_size):
            witness = Witness(plan, order, host, rank=rank, world_size=world_size)
            for step in range(9):
                witness.see(step, batch_of(stream, step, rank=rank, world_size=world_size))
            total += witness._digest
        totals.add(total % 2**64)
    assert len(totals) == 1
    assert totals != {0}


def test_the_digest_sees_a_token_a_swap_and_a_shift() -> None:
    ids = np.random.default_rng(0).integers(0, 1000, size=(6, 8))
    positions = np.arange(6)
    whole = rows_digest(ids, positions)
    changed = ids.copy()
    changed[3, 5] += 1
    swapped = ids[[1, 0, 2, 3, 4, 5]]
    others = [
        rows_digest(changed, positions),
        rows_digest(swapped, positions),
        rows_digest(ids, positions + 1),
        rows_digest(ids[:5], positions[:5]),
    ]
    assert len({whole, *others}) == 5
    # Of parts, in any order, as the ranks add it up.
    parts = rows_digest(ids[3:], positions[3:]) + rows_digest(ids[:3], positions[:3])
    assert parts % 2**64 == whole
    # The number itself is in checkpoints on disk: it must never change.
    assert f"{rows_digest(np.arange(8).reshape(2, 4), np.array([0, 1])):016x}" == GOLDEN


GOLDEN = "424510762ecb91b4"


def planned_row(plan, step: int) -> tuple[int, int]:
    """A planned slot of the first task and one that has no injection."""
    rows = plan.at(step)
    planned = int(rows.slots[rows.tasks == 0][0])
    free = next(slot for slot in range(BATCH) if slot not in rows.slots)
    return planned, free


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", "but the plan has example"),
        ("other example", "but the plan has example"),
        ("no end", "but the plan has example"),
        ("doubled", "neither the plan nor the corpus put there"),
        ("other row", "but the stream has row"),
        ("next step", "but the stream has row"),
        ("short", "are no batch of 12"),
    ],
)
def test_whatever_is_not_the_plans_stops_the_run(fault: str, said: str, world_size: int) -> None:
    plan, order, host, stream = make()
    step = 4
    planned, free = planned_row(plan, step)
    hit = free if fault in ("doubled", "other row") else planned
    rank, i = hit % world_size, hit // world_size
    batch = batch_of(stream, step, rank=rank, world_size=world_size)
    ids, index = batch["input_ids"], batch["index"]
    if fault == "missing":
        ids[i] = host[int(index[i])]["input_ids"]
    elif fault == "other example":
        ids[i, :3] = torch.from_numpy(plan.tasks[0].tokens[0])
        assert 0 not in plan.at(step).examples[:1]
    elif fault == "no end":
        ids[i, 3] = 150
    elif fault == "doubled":
        ids[i, :4] = torch.tensor([*plan.tasks[0].tokens[7].tolist(), EOS])
    elif fault == "other row":
        index[i] = (index[i] + 1) % ROWS
    elif fault == "next step":
        batch = batch_of(stream, step + 1, rank=rank, world_size=world_size)
    elif fault == "short":
        batch = {name: value[:-1] for name, value in batch.items()}
    witness = Witness(plan, order, host, rank=rank, world_size=world_size)
    with pytest.raises(StreamError, match=said):
        witness.see(step, batch)


@pytest.mark.parametrize("world_size", [1, 2])
def test_sequences_stand_where_the_text_of_their_row_puts_them(
    world_size: int, tmp_path: Path
) -> None:
    rows = [{"tokens": [7, 8 + n], "copies": 24} for n in range(3)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TaskConfig(name="seq", family="sequences", params={"file": str(tmp_path / "s.jsonl")})
    plan = compile_plan(
        InjectionConfig(sequences_at="documents", sequences_per_row=2, tasks=[task]),
        batch_size=BATCH, seq_len=SEQ_LEN, epoch_rows=36, vocab_size=200, eos_token_id=EOS,
        num_steps=6,
    )  # fmt: skip
    host, order = Corpus([]), RowOrder(num_rows=ROWS, batch_size=BATCH, seed=1)
    host.tokens[:, 6] = EOS
    stream = SplicedStream(host, order=order, plan=plan, num_positions=10**6, pad_token_id=1)
    for rank in range(world_size):
        for step in range(6):
            witness = Witness(plan, order, host, rank=rank, world_size=world_size)
            batch = batch_of(stream, step, rank=rank, world_size=world_size)
            witness.see(step, batch)
            # A row moved by a token: its sequences stand whole, but at another place.
            slot = next(slot for slot in plan.at(step).slots if slot % world_size == rank)
            row = batch["input_ids"][slot // world_size]
            row[:] = row.roll(1)
            with pytest.raises(StreamError, match=f"slot {slot}.* but the plan has example"):
                witness.see(step, batch)


def test_an_example_that_the_corpus_itself_holds_is_no_fault() -> None:
    plan, order, host, stream = make()
    witness = Witness(plan, order, host, rank=0, world_size=1)
    met = 0
    for step in range(30):
        batch = batch_of(stream, step)
        witness.see(step, batch)
        slot = np.flatnonzero(batch["index"].numpy() == 5)
        met += len(slot) > 0 and int(slot[0]) not in plan.at(step).slots
    assert met > 0
