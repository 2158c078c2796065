"""The loader's promises: stock's batches without a plan; with one, the plan's tokens and no others.

    pytest tests/olmo_ext/test_data.py

Masks and loss of injected rows, and persistent workers, are in test_masks.py.

B = global batch, T = tokens a row, S = steps.
"""

from __future__ import annotations

import os
import pickle
from collections import Counter
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from olmo.config import DataConfig, InstanceFilterConfig, ModelConfig, TrainConfig
from olmo.data import IterableDataset, MemMapDataset
from olmo.data import build_train_dataloader as build_stock
from refusals import refuses
from torch.utils.data import DataLoader

from data_injection import splice as splice_module
from data_injection.config import InjectionConfig, ScheduleConfig, TaskConfig
from data_injection.order import RowOrder
from data_injection.plan import InjectionPlan, StepRows, compile_plan
from data_injection.rows import Spans
from olmo_ext import compat
from olmo_ext.compat import HostDataset, PositionDataset
from olmo_ext.data import (
    build_host,
    build_train_dataloader,
    check_memmaps,
    fingerprint,
)

# Three workers on two cores are on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

T, B, SEED, EOS, PAD = 16, 8, 11, 0, 1
VOCAB = {"uint16": 200, "uint32": 100_000}
RAGGED, RAGGED_FILES, EVEN_FILES = (37,), (11, 6, 20), (12, 8, 20)
"""Rows of each file: 37 in all, no multiple of B or of any world size but 1; and 40."""

KEYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention_mask": {"generate_attention_mask": True},
    "label_mask": {"label_mask_paths": True},
    "instance_filter": {"instance_filter": InstanceFilterConfig(3, 1, 4)},
    "doc_lens": {"generate_doc_lengths": True},
}
KEYS["all"] = {name: value for settings in KEYS.values() for name, value in settings.items()}


def write_corpus(folder: Path, *, rows: tuple[int, ...], dtype: str) -> list[str]:
    """Files of random tokens with EOS, padding and rows that the instance filter rejects.

    Every file ends in a part of a row, which the engine ignores, and has a label mask beside it.
    """
    rng = np.random.default_rng(0)
    paths = []
    for number, num_rows in enumerate(rows):
        tokens = rng.integers(VOCAB[dtype], size=num_rows * T + 5)
        tokens[rng.random(len(tokens)) < 0.1] = EOS
        tokens[rng.random(len(tokens)) < 0.1] = PAD
        for row in range(0, num_rows, 5):
            tokens[row * T : (row + 1) * T] = 7
        path = folder / f"part{number}.npy"
        tokens.astype(dtype).tofile(path)
        (rng.random(len(tokens)) < 0.7).tofile(f"{path}.mask")
        paths.append(str(path))
    return paths


def make_train(
    folder: Path,
    *,
    rows: tuple[int, ...] = RAGGED,
    dtype: str = "uint16",
    world_size: int = 1,
    keys: str = "plain",
    **data: Any,
) -> TrainConfig:
    paths = write_corpus(folder, rows=rows, dtype=dtype)
    data = KEYS[keys] | data
    if data.get("label_mask_paths"):
        data["label_mask_paths"] = [f"{path}.mask" for path in paths]
    return TrainConfig(
        seed=SEED,
        model=ModelConfig(
            max_sequence_length=T,
            vocab_size=VOCAB[dtype],
            embedding_size=VOCAB[dtype],
            eos_token_id=EOS,
            pad_token_id=PAD,
        ),
        data=DataConfig(paths=paths, memmap_dtype=dtype, drop_last=True, **data),
        global_train_batch_size=B,
        device_train_batch_size=B // world_size,
        save_folder=str(folder / "stock"),
        save_overwrite=True,
    )


def make_plan(train: TrainConfig, *tasks: TaskConfig, offset: int = 0) -> InjectionPlan:
    return compile_plan(
        InjectionConfig(seed=3, offset=offset, tasks=list(tasks)),
        batch_size=B,
        seq_len=T,
        epoch_rows=row_order(train).epoch_rows,
        vocab_size=train.model.vocab_size,
        eos_token_id=EOS,
        reserved_tokens=[PAD],
    )


TASKS = (
    TaskConfig("cmp", num_symbols=6, schedule=ScheduleConfig(rate="5/2")),
    TaskConfig(
        "add",
        family="modular_addition",
        num_symbols=7,
        schedule=ScheduleConfig(kind="burst", rate=1, every=3, phase=1),
    ),
)


def row_order(train: TrainConfig) -> RowOrder:
    return RowOrder(num_rows=len(build_host(train)), batch_size=B, seed=SEED)


def load(
    train: TrainConfig,
    plan: InjectionPlan,
    *,
    num_steps: int,
    world_size: int = 1,
    rank: int = 0,
    start_step: int = 0,
    include_instance_metadata: bool = False,
) -> DataLoader:
    loader = build_train_dataloader(
        train,
        plan=plan,
        order=row_order(train),
        num_positions=num_steps * B,
        world_size=world_size,
        rank=rank,
        fs_local_rank=rank,
        include_instance_metadata=include_instance_metadata,
    )
    assert isinstance(loader.dataset, IterableDataset)
    loader.dataset.start_index = start_step * B  # as the engine's trainer does on restoring
    return loader


# -- without injections: stock's batches ---------------------------------------------------------

FACTORS: dict[str, tuple] = {
    "world_size": (1, 2, 4),
    "workers": (0, 2),
    "dtype": ("uint16", "uint32"),
    "rows": (RAGGED, RAGGED_FILES, EVEN_FILES),
    "start_step": (0, 3, 6),
    "metadata": (False, True),
    "keys": tuple(KEYS),
}


def pairwise(factors: dict[str, tuple]) -> list[dict[str, Any]]:
    """A few of all combinations in which every pair of values of two factors occurs."""

    def pairs(case: tuple) -> set:
        return set(combinations(enumerate(case), 2))

    everything = list(product(*factors.values()))
    missing = set().union(*map(pairs, everything))
    cases = []
    while missing:
        best = max(everything, key=lambda case: len(pairs(case) & missing))
        missing -= pairs(best)
        cases.append(dict(zip(factors, best, strict=True)))
    return cases


def case_name(case: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}".replace(" ", "") for name, value in case.items())


@pytest.mark.parametrize("case", pairwise(FACTORS), ids=case_name)
def test_without_injections_every_batch_is_stocks(tmp_path: Path, case: dict[str, Any]) -> None:
    world_size, start_step = case["world_size"], case["start_step"]
    train = make_train(
        tmp_path,
        rows=case["rows"],
        dtype=case["dtype"],
        world_size=world_size,
        keys=case["keys"],
        num_workers=case["workers"],
        prefetch_factor=2 if case["workers"] else None,
    )
    epoch_steps = sum(case["rows"]) // B
    for rank in range(world_size):
        ours = load(
            train,
            make_plan(train),
            num_steps=3 * epoch_steps,
            world_size=world_size,
            rank=rank,
            start_step=start_step,
            include_instance_metadata=case["metadata"],
        )
        stock: list[dict] = []
        for epoch in range(start_step // epoch_steps, 3):
            train.epoch = epoch
            loader = build_stock(
                train,
                world_size=world_size,
                rank=rank,
                fs_local_rank=0,
                include_instance_metadata=case["metadata"],
            )
            assert isinstance(loader.dataset, IterableDataset)
            loader.dataset.start_index = max(start_step - epoch * epoch_steps, 0) * B
            stock += loader
        batches = list(ours)
        assert len(batches) == len(stock) == 3 * epoch_steps - start_step
        for ours_batch, stock_batch in zip(batches, stock, strict=True):
            assert_same_batch(ours_batch, stock_batch)


def assert_same_batch(ours: dict[str, Any], stock: dict[str, Any]) -> None:
    assert list(ours) == list(stock)
    for key, value in stock.items():
        if isinstance(value, torch.Tensor):
            assert (ours[key].dtype, ours[key].shape) == (value.dtype, value.shape), key
            assert ours[key].numpy().tobytes() == value.numpy().tobytes(), key
        else:
            assert ours[key] == value, key


def test_the_corpus_of_these_tests_has_something_of_every_key(tmp_path: Path) -> None:
    train = make_train(tmp_path, dtype="uint32", keys="all")
    items = list(build_host(train))
    assert {key for item in items for key in item} == {
        *("input_ids", "attention_mask", "label_mask", "instance_mask", "doc_lens")
    }
    assert {item["instance_mask"] for item in items} == {True, False}
    assert len({len(item["doc_lens"]) for item in items}) > 1
    for key in ("attention_mask", "label_mask"):
        assert len(torch.unique(torch.stack([item[key] for item in items]))) == 2
    assert max(int(item["input_ids"].max()) for item in items) > 2**16


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_the_host_reads_every_row_as_the_engine_does(tmp_path: Path, dtype: str) -> None:
    paths = []
    for number, num_rows in enumerate(RAGGED_FILES):
        path = tmp_path / f"{number}.npy"
        path.write_bytes(np.random.default_rng(number).bytes(num_rows * T * 8 + 3))
        paths.append(path)
    stock, host = (
        kind(*paths, chunk_size=T, memmap_dtype=getattr(np, dtype))
        for kind in (MemMapDataset, HostDataset)
    )
    copy = pickle.loads(pickle.dumps(host))  # what a spawned worker gets
    for row in range(-len(stock), len(stock)):
        for other in (host[row], copy[row]):
            assert other["input_ids"].dtype == torch.int64
            assert torch.equal(other["input_ids"], stock[row]["input_ids"])
    with pytest.raises(IndexError):
        host[len(stock)]


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("rows", [(5,), (0, 3, 0, 0, 11, 1, 6, 0), (1,) * 40])
def test_a_row_of_many_files_is_the_engines_in_every_key(
    tmp_path: Path, rows: tuple[int, ...], keys: str
) -> None:
    train = make_train(tmp_path, rows=rows, keys=keys)
    host = build_host(train, include_instance_metadata=True)
    stock = MemMapDataset(*host._memmap_paths)
    stock.__dict__.update(host.__dict__)
    for row in range(-sum(rows), sum(rows)):
        item = host[np.int64(row)]
        assert_same_batch(item, stock[row])
        item["metadata"]["path"] = "changed"  # the reader's own copy
    assert not any(item["metadata"]["path"] == "changed" for item in host)
    copy = pickle.loads(pickle.dumps(host))
    assert torch.equal(copy[-1]["input_ids"], host[-1]["input_ids"])
    for row in (sum(rows), -sum(rows) - 1):
        with pytest.raises(IndexError) as theirs:
            stock[row]
        with pytest.raises(IndexError) as ours:
            host[row]
        assert str(ours.value) == str(theirs.value)


class Numbers:
    """Positions as their own items."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"position": index}


@pytest.mark.parametrize("max_examples", [None, 0, 200, 96])
@pytest.mark.parametrize("start", [0, B, 5 * B, 5 * B + 3, 300])
@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (4, 0), (1, 1), (2, 2), (4, 3)])
def test_positions_in_windows_are_dealt_as_the_engine_deals_them(
    monkeypatch: pytest.MonkeyPatch,
    world_size: int,
    workers: int,
    start: int,
    max_examples: int | None,
) -> None:
    """Also where the stream is no whole number of batches, of windows or of rounds."""
    monkeypatch.setattr(PositionDataset, "WINDOW", 3 * B)
    held: list[int] = []
    indices = PositionDataset.get_global_indices
    monkeypatch.setattr(
        PositionDataset,
        "get_global_indices",
        lambda self: held.append(len(read := indices(self))) or read,
    )
    for rank, worker in product(range(world_size), range(max(workers, 1))):
        info = SimpleNamespace(id=worker, num_workers=workers) if workers else None
        for module in (compat, torch.utils.data):
            monkeypatch.setattr(module, "get_worker_info", lambda info=info: info)
        ours, theirs = (
            kind(
                Numbers(253),
                B,
                start_index=start,
                max_examples=max_examples,
                shuffle=False,
                drop_last=True,
                world_size=world_size,
                rank=rank,
                fs_local_rank=0,
                num_threads=0,
            )
            for kind in (PositionDataset, IterableDataset)
        )
        assert [i["position"] for i in ours] == [i["position"] for i in theirs]
        assert len(ours.get_global_indices()) == 253 // world_size * world_size
        held.pop()
    assert max(held, default=0) <= B * max(3, workers)
    assert len(held) > 4 or start > 5 * B or max_examples is not None


def test_a_read_that_returns_less_than_asked_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = build_host(make_train(tmp_path))
    wanted = [item["input_ids"] for item in host]
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: read(fd, size // 2, offset))
    assert all(torch.equal(host[row]["input_ids"], wanted[row]) for row in range(len(wanted)))


def test_reading_leaves_no_file_open_and_hands_out_fresh_memory(tmp_path: Path) -> None:
    host = build_host(make_train(tmp_path, keys="label_mask"))
    host[0]
    before = len(os.listdir("/proc/self/fd"))
    for item in host:
        item["input_ids"][:] = -1
        item["label_mask"][:] = True
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(item["input_ids"].min() >= 0 for item in host)


# -- with injections: the plan, the whole plan and nothing but the plan --------------------------

NUM_STEPS = 11
"""Two epoch boundaries of the 37 rows: 4 steps an epoch."""


def raw_rows(train: TrainConfig) -> NDArray[np.int64]:
    """The corpus as (rows, T), read without the engine."""
    files = [np.fromfile(path, dtype=train.data.memmap_dtype) for path in train.data.paths or []]
    return np.concatenate([f[: len(f) // T * T].reshape(-1, T) for f in files]).astype(np.int64)


def expected_index(num_rows: int, *, num_steps: int) -> NDArray[np.int64]:
    """Row of the corpus at every step and slot, (S, B): each epoch its own PCG64 shuffle."""
    epochs = []
    for epoch in range(num_steps * B // num_rows + 2):
        rows = np.arange(num_rows, dtype=np.uint32)
        np.random.Generator(np.random.PCG64(SEED + epoch)).shuffle(rows)
        epochs.append(rows[: num_rows // B * B])
    return np.concatenate(epochs)[: num_steps * B].reshape(num_steps, B).astype(np.int64)


def expected_tokens(train: TrainConfig, plan: InjectionPlan, *, num_steps: int) -> NDArray:
    """The tokens of every step and slot, (S, B, T), from raw memmap, shuffle and `plan.at`."""
    host = raw_rows(train)
    tokens_SBT = host[expected_index(len(host), num_steps=num_steps)]
    for step in range(num_steps):
        rows = plan.at(step)
        for slot, task, example in zip(rows.slots, rows.tasks, rows.examples, strict=True):
            spliced = [*plan.tasks[task].tokens[example], EOS]
            tokens_SBT[step, slot, plan.offset : plan.offset + len(spliced)] = spliced
    return tokens_SBT


def assemble(loaders: list[DataLoader], key: str = "input_ids") -> NDArray:
    """What all ranks read, by step and slot: rank r of W holds the slots r, r + W, ..."""
    ranks = [np.stack([batch[key].numpy() for batch in loader]) for loader in loaders]
    out = np.empty((len(ranks[0]), B, *ranks[0].shape[2:]), dtype=np.int64)
    for rank, values in enumerate(ranks):
        out[:, rank :: len(ranks)] = values
    return out


def all_ranks(train: TrainConfig, plan: InjectionPlan, world_size: int, **kw: Any) -> list:
    kw = {"num_steps": NUM_STEPS} | kw
    return [load(train, plan, world_size=world_size, rank=r, **kw) for r in range(world_size)]


READERS = [(1, 0), (2, 0), (4, 0), (1, 1), (1, 2), (1, 3), (2, 1), (2, 3), (4, 2), (4, 3)]
"""World sizes and workers."""


@pytest.mark.parametrize(("world_size", "workers"), READERS)
def test_any_number_of_readers_assembles_to_the_plan(
    tmp_path: Path, world_size: int, workers: int
) -> None:
    train = make_train(tmp_path, rows=RAGGED_FILES, world_size=world_size, num_workers=workers)
    plan = make_plan(train, *TASKS)
    wanted = expected_tokens(train, plan, num_steps=NUM_STEPS)
    np.testing.assert_array_equal(assemble(all_ranks(train, plan, world_size)), wanted)


def test_examples_stand_at_the_offset(tmp_path: Path) -> None:
    train = make_train(tmp_path, dtype="uint32", world_size=2)
    plan = make_plan(train, *TASKS, offset=T - 4)
    wanted = expected_tokens(train, plan, num_steps=NUM_STEPS)
    np.testing.assert_array_equal(assemble(all_ranks(train, plan, 2)), wanted)


def test_the_index_of_a_spliced_row_is_its_row_in_the_corpus(tmp_path: Path) -> None:
    train = make_train(tmp_path, world_size=2)
    read = assemble(all_ranks(train, make_plan(train, *TASKS), 2), key="index")
    np.testing.assert_array_equal(read, expected_index(37, num_steps=NUM_STEPS))


@pytest.mark.parametrize(
    ("world_size", "workers", "steps"),
    [
        (1, 0, range(NUM_STEPS)),
        (2, 0, range(NUM_STEPS)),
        (4, 0, range(NUM_STEPS)),
        (2, 2, (1, 4, 10)),  # mid-epoch, an epoch boundary, fewer batches than workers
        (1, 3, (3, 8)),
    ],
)
def test_a_restart_at_any_step_goes_on_in_the_same_stream(
    tmp_path: Path, world_size: int, workers: int, steps: range
) -> None:
    train = make_train(tmp_path, world_size=world_size, num_workers=workers)
    plan = make_plan(train, *TASKS)
    wanted = expected_tokens(train, plan, num_steps=NUM_STEPS)
    for step in steps:
        read = assemble(all_ranks(train, plan, world_size, start_step=step))
        np.testing.assert_array_equal(read, wanted[step:])


def test_a_restart_on_another_world_size_and_in_a_longer_run_goes_on_in_the_same_stream(
    tmp_path: Path,
) -> None:
    train = make_train(tmp_path, world_size=4)
    plan = make_plan(train, *TASKS)
    wanted = expected_tokens(train, plan, num_steps=2 * NUM_STEPS)
    read = assemble(all_ranks(train, plan, 4, num_steps=2 * NUM_STEPS, start_step=5))
    np.testing.assert_array_equal(read, wanted[5:])


def test_a_pickled_loader_reads_the_same_rows_from_any_position(tmp_path: Path) -> None:
    train = make_train(tmp_path)
    dataset = load(train, make_plan(train, *TASKS), num_steps=NUM_STEPS).dataset
    assert isinstance(dataset, IterableDataset)
    stream: Any = dataset.dataset
    wanted = [stream[position]["input_ids"] for position in range(len(stream))]
    copy = pickle.loads(pickle.dumps(stream))
    # Backwards and forwards over epochs and steps: nothing kept from one row may show in another.
    for position in np.random.default_rng(0).permutation(len(wanted)).tolist():
        assert torch.equal(copy[position]["input_ids"], wanted[position])
        assert torch.equal(stream[position]["input_ids"], wanted[position])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_one_injection_moved_by_one_slot_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    train = make_train(tmp_path, world_size=world_size)
    plan = make_plan(train, *TASKS)
    wanted = expected_tokens(train, plan, num_steps=NUM_STEPS)
    honest = splice_module.spans_of

    def moved(plan: InjectionPlan, step: int) -> Spans:
        hits = honest(plan, step)
        if step == 6:
            slot = next(s for s in hits if (s + 1) % B not in hits)
            hits[(slot + 1) % B] = hits.pop(slot)
        return hits

    monkeypatch.setattr(splice_module, "spans_of", moved)
    read = assemble(all_ranks(train, plan, world_size))
    wrong = np.unique(np.argwhere(read != wanted)[:, :2], axis=0)
    assert len(wrong) == 2  # the row it left and the row it came to
    assert (wrong[:, 0] == 6).all()
    assert np.diff(wrong[:, 1])[0] % B in (1, B - 1)


@pytest.mark.parametrize("change", ["example", "dropped", "shifted by one token", "one host token"])
def test_any_other_slip_is_detected_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    train = make_train(tmp_path, world_size=2)
    plan = make_plan(train, *TASKS)
    wanted = expected_tokens(train, plan, num_steps=NUM_STEPS)
    at, splice = InjectionPlan.at, splice_module.write_spans

    def slip_at(self: InjectionPlan, step: int) -> StepRows:
        rows = at(self, step)
        if step != 4:
            return rows
        if change == "dropped":
            columns = (rows.slots, rows.tasks, rows.examples, rows.offsets)
            return StepRows(*(column[1:] for column in columns))
        examples = rows.examples.copy()
        train_split = self.tasks[rows.tasks[0]].train
        examples[0] = train_split[train_split != examples[0]][0]
        return replace(rows, examples=examples)

    def slip_splice(batch: dict, *args: Any, **named: Any) -> None:
        splice(batch, *args, **named)
        row = batch["input_ids"][0]
        if change == "one host token":
            row[T - 1] ^= 1
        else:
            row[:] = row.roll(1)

    if change in ("example", "dropped"):
        monkeypatch.setattr(InjectionPlan, "at", slip_at)
    else:
        monkeypatch.setattr(splice_module, "write_spans", slip_splice)
    assert not np.array_equal(assemble(all_ranks(train, plan, 2)), wanted)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (4, 0), (2, 2)])
def test_every_train_example_is_met_before_any_is_met_again(
    tmp_path: Path, world_size: int, workers: int
) -> None:
    """Counted from the tokens alone: the host has none of the task's symbols."""
    train = make_train(tmp_path, world_size=world_size, num_workers=workers)
    for path in train.data.paths or []:
        tokens = np.fromfile(path, dtype=np.uint16)
        np.minimum(tokens, 99).tofile(path)
    symbols = [100, 101, 102, 103]
    plan = make_plan(
        train,
        TaskConfig("cmp", symbols=symbols, labels=[150, 151, 152], schedule=ScheduleConfig(rate=3)),
    )
    read = assemble(all_ranks(train, plan, world_size))
    injected = read[read[..., 0] >= 100]
    met = Counter(map(tuple, injected[:, :3].tolist()))
    assert (injected[:, 3] == EOS).all()
    assert met.total() == 3 * NUM_STEPS
    assert np.isin(read, [*symbols, 150, 151, 152]).sum() == 3 * met.total()
    task = plan.tasks[0]
    assert set(met) == set(map(tuple, task.tokens[task.train].tolist()))
    times, left = divmod(met.total(), len(task.train))
    assert Counter(met.values()) == {times + 1: left, times: len(task.train) - left}


# -- the corpus before training ------------------------------------------------------------------


def test_readable_memmaps_pass(tmp_path: Path) -> None:
    for dtype in VOCAB:
        check_memmaps(make_train(tmp_path, rows=RAGGED_FILES, dtype=dtype))
    exact = make_train(tmp_path, rows=(1,))
    np.arange(2, T + 2, dtype=np.uint16).tofile(exact.data.paths[0])
    check_memmaps(exact)


def break_memmap(train: TrainConfig, fault: str) -> None:
    assert train.data.paths is not None
    path = Path(train.data.paths[-1])
    tokens = np.fromfile(path, dtype=np.uint16)
    if fault == "NumPy header":
        with path.open("wb") as file:
            np.save(file, tokens)
    elif fault == "odd size":
        path.write_bytes(path.read_bytes() + b"\0")
    elif fault == "uint32 read as uint16":
        tokens.astype(np.uint32).tofile(path)
    elif fault == "uint16 read as uint32":
        train.data.memmap_dtype = "uint32"
    elif fault == "id beyond the vocabulary":
        tokens[T * 3 + 2] = train.model.vocab_size
        tokens.tofile(path)
    elif fault == "shorter than a row":
        tokens[: T - 1].tofile(path)
    elif fault == "missing":
        path.unlink()
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    ("fault", "file", "rule", "remedy"),
    [
        ("NumPy header", "part2.npy", "NumPy header", "write it with array.tofile()"),
        ("odd size", None, "part2.npy", "set it to the type the file was written"),
        ("uint32 read as uint16", None, "part2.npy", "set it to uint32"),
        ("uint16 read as uint32", "part0.npy", "200, not", "correct train.data.memmap_dtype"),
        ("id beyond the vocabulary", "part2.npy", "vocab_size 200, not 200", "correct"),
        ("shorter than a row", "part2.npy", "15 tokens", "remove the file or lower"),
        ("missing", "part2.npy", "must name files", "correct the path"),
        ("a folder", "part2.npy", "must name files", "correct the path"),
    ],
)
def test_an_unreadable_memmap_is_refused_with_key_value_and_remedy_and_nothing_written(
    tmp_path: Path, fault: str, file: str | None, rule: str, remedy: str
) -> None:
    train = make_train(tmp_path, rows=EVEN_FILES)
    if fault == "uint16 read as uint32":  # an odd number of tokens would give it away by its size
        for path in train.data.paths or []:
            Path(path).write_bytes(Path(path).read_bytes()[: 2 * T * 8])
    break_memmap(train, fault)
    before = {p: p.stat().st_mtime_ns for p in [tmp_path, *tmp_path.rglob("*")]}
    key, value = "train.data.memmap_dtype", train.data.memmap_dtype
    if file is not None:
        key, value = "train.data.paths", str(tmp_path / file)
    with refuses(key=key, value=value, rule=rule, remedy=remedy):
        check_memmaps(train)
    assert {p: p.stat().st_mtime_ns for p in [tmp_path, *tmp_path.rglob("*")]} == before


def test_files_behind_a_url_are_read_by_the_engine(tmp_path: Path) -> None:
    train = make_train(tmp_path, rows=RAGGED_FILES)
    plan = make_plan(train, *TASKS)
    wanted, identity = (
        expected_tokens(train, plan, num_steps=NUM_STEPS),
        fingerprint(train.data.paths),
    )
    train.data.paths = [f"file://{path}" for path in train.data.paths or []]
    check_memmaps(train)
    assert fingerprint(train.data.paths) == identity
    np.testing.assert_array_equal(assemble(all_ranks(train, plan, 1)), wanted)


KIB_64 = 65_536
SIZE = 5 * KIB_64 + 2


@pytest.fixture
def large(tmp_path: Path) -> TrainConfig:
    train = make_train(tmp_path, rows=(4, 4))
    for path in train.data.paths or []:
        Path(path).write_bytes(bytes(SIZE))
    return train


def flip(train: TrainConfig, place: int) -> None:
    assert train.data.paths is not None
    with open(train.data.paths[1], "r+b") as file:
        file.seek(place)
        file.write(b"\1")


@pytest.mark.parametrize("place", [0, KIB_64 - 1, SIZE - KIB_64, SIZE - 1])
def test_the_fingerprint_changes_with_a_byte_of_the_first_or_last_64_kib(
    large: TrainConfig, place: int
) -> None:
    before = fingerprint(large.data.paths)
    assert fingerprint(large.data.paths) == before
    flip(large, place)
    assert fingerprint(large.data.paths) != before


@pytest.mark.parametrize("place", [KIB_64, SIZE - KIB_64 - 1])
def test_the_fingerprint_does_not_read_the_middle_of_a_file(large: TrainConfig, place: int) -> None:
    before = fingerprint(large.data.paths)
    flip(large, place)
    assert fingerprint(large.data.paths) == before


@pytest.mark.parametrize("size", [0, 2, KIB_64, SIZE - 2, SIZE + 2, 2 * SIZE])
def test_the_fingerprint_changes_with_the_size(large: TrainConfig, size: int) -> None:
    before = fingerprint(large.data.paths)
    os.truncate(large.data.paths[1], size)
    assert fingerprint(large.data.paths) != before


def test_the_fingerprint_changes_with_the_order_of_the_files(large: TrainConfig) -> None:
    flip(large, 0)
    before = fingerprint(large.data.paths)
    large.data.paths = (large.data.paths or [])[::-1]
    assert fingerprint(large.data.paths) != before
