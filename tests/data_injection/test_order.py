"""Row order: the engine's own, epoch after epoch, shared between processes by whole files."""

from __future__ import annotations

import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
from olmo.data.iterable_dataset import IterableDataset

from data_injection.errors import ConfigError
from data_injection.order import RowOrder


def engine_order(num_rows: int, batch_size: int, *, seed: int, epoch: int, world_size: int):
    dataset = IterableDataset(
        [[0]] * num_rows,
        batch_size,
        seed=seed,
        epoch=epoch,
        shuffle=True,
        drop_last=True,
        world_size=world_size,
        rank=0,
        fs_local_rank=0,
    )
    return dataset._build_global_indices()


@pytest.mark.parametrize("world_size", [1, 4])
@pytest.mark.parametrize("num_rows", [103, 96, 8])
def test_every_epoch_is_the_engines_own_order_without_its_tail(num_rows: int, world_size: int):
    order = RowOrder(num_rows=num_rows, batch_size=8, seed=6198)
    assert order.epoch_rows == 8 * (num_rows // 8)
    for epoch in range(4):
        expected = engine_order(num_rows, 8, seed=6198, epoch=epoch, world_size=world_size)
        start = epoch * order.epoch_rows
        rows = [order.row(start + i) for i in range(order.epoch_rows)]
        assert rows == expected[: order.epoch_rows].tolist()


def test_an_epoch_visits_no_row_twice_and_epochs_differ():
    order = RowOrder(num_rows=50, batch_size=8, seed=0)
    epochs = [[order.row(48 * e + i) for i in range(48)] for e in range(3)]
    assert all(len(set(rows)) == 48 and max(rows) < 50 for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_row_does_not_depend_on_the_order_of_asking():
    positions = np.random.Generator(np.random.PCG64(0)).integers(0, 48 * 7, size=300).tolist()
    order = RowOrder(num_rows=50, batch_size=8, seed=3)
    answers = {p: order.row(p) for p in positions}
    for position in sorted(answers):
        assert RowOrder(num_rows=50, batch_size=8, seed=3).row(position) == answers[position]


def test_the_kept_epochs_that_a_second_thread_may_be_going_through_are_never_changed(
    monkeypatch: pytest.MonkeyPatch,
):
    kept: list[tuple[dict, dict]] = []

    def keep(self: RowOrder, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
        if isinstance(value, dict):
            kept.append((value, value.copy()))

    monkeypatch.setattr(RowOrder, "__setattr__", keep)
    order = RowOrder(num_rows=50, batch_size=8, seed=3)
    for position in (0, 48, 47, 96, 144):
        order.row(position)
    assert all(list(now) == list(before) for now, before in kept)
    assert [list(before) for _, before in kept] == [[], [0], [0, 1], [1, 2], [2, 3]]


def test_written_epochs_are_read_by_a_pickled_copy_and_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = RowOrder(num_rows=103, batch_size=8, seed=5)
    order = RowOrder(num_rows=103, batch_size=8, seed=5, folder=tmp_path / "order")
    order.write(2 * 96 + 1)
    files = sorted((tmp_path / "order").iterdir())
    assert [f.name for f in files] == [f"order-seed5-rows103-epoch{e}.u32" for e in range(3)]
    assert all(f.stat().st_size == 4 * 103 + 4 for f in files)  # the rows and their CRC-32
    order.row(0)
    copy: RowOrder = pickle.loads(pickle.dumps(order))
    assert not copy._epochs, "a worker must map the file, not receive the array"
    expected = [plain.row(p) for p in range(3 * 96)]
    monkeypatch.setattr(RowOrder, "_build", lambda *_: pytest.fail("built a written epoch"))
    assert [copy.row(p) for p in range(3 * 96)] == expected
    assert isinstance(copy._epochs[2], np.memmap)


def test_a_second_write_leaves_the_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    order = RowOrder(num_rows=50, batch_size=8, seed=0, folder=tmp_path)
    order.write(96)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(RowOrder, "_build", lambda *_: pytest.fail("wrote again"))
    order.write(96)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_epoch_beyond_the_written_ones_is_still_right(tmp_path: Path):
    order = RowOrder(num_rows=50, batch_size=8, seed=0, folder=tmp_path)
    order.write(48)
    assert order.row(48 * 5 + 3) == RowOrder(num_rows=50, batch_size=8, seed=0).row(48 * 5 + 3)


def test_an_interrupted_write_leaves_nothing_under_the_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    order = RowOrder(num_rows=50, batch_size=8, seed=0, folder=tmp_path)
    final = tmp_path / "order-seed0-rows50-epoch0.u32"

    def interrupted(rows: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zlib, "crc32", interrupted)  # the rows are written, their checksum is not
        with pytest.raises(KeyboardInterrupt):
            order.write(48)
    assert not final.exists()
    order.write(48)
    assert np.fromfile(final, dtype=np.uint32)[:-1].tolist() == order._build(0).tolist()


def test_a_file_with_one_row_changed_is_written_again(tmp_path: Path):
    """All ranks and the witness believe it."""
    order = RowOrder(num_rows=50, batch_size=8, seed=0, folder=tmp_path)
    order.write(48)
    (path,) = tmp_path.iterdir()
    for byte in range(path.stat().st_size):
        data = bytearray(path.read_bytes())
        data[byte] ^= 4
        path.write_bytes(data)
        RowOrder(num_rows=50, batch_size=8, seed=0, folder=tmp_path).write(48)
        assert path.read_bytes() != bytes(data)


def test_a_damaged_file_is_written_again(tmp_path: Path):
    order = RowOrder(num_rows=50, batch_size=8, seed=0, folder=tmp_path)
    final = tmp_path / "order-seed0-rows50-epoch0.u32"
    final.write_bytes(b"half")
    order.write(48)
    assert np.fromfile(final, dtype=np.uint32)[:-1].tolist() == order._build(0).tolist()


def test_a_corpus_smaller_than_a_batch_is_refused():
    with pytest.raises(ConfigError) as error:
        RowOrder(num_rows=31, batch_size=32, seed=0)
    message = str(error.value)
    assert "31 rows, less than one batch of 32" in message
    assert "smaller global_train_batch_size" in message
