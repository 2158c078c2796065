"""The order of the host rows: position in the endless stream -> row of the corpus.

    order = RowOrder(num_rows=98_000, batch_size=32, seed=6198)
    order.row(position)

Epoch e is the first batch_size * floor(num_rows / batch_size) entries of the engine's own order,
PCG64(seed + e) (olmo/data/iterable_dataset.py:91-97); the tail is dropped. Another batch size
drops another tail, so it is another stream. All epochs form one position-addressed
stream, and the engine sees a single epoch: its multi-epoch restarts have been wrong before
(allenai/OLMo#650, #584, #554).
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_injection.errors import ConfigError
from data_injection.files import replaced


class RowOrder:
    """Row of the corpus at every stream position.

    Args:
        num_rows: rows of the corpus.
        batch_size: global batch size.
        seed: the engine's data seed (data.seed, or else the run's seed).
        folder: where epochs are kept as memory maps shared by all processes of a node (4 bytes a
            row, and their CRC-32 at the end); None keeps them in each process's memory.
    """

    def __init__(
        self, *, num_rows: int, batch_size: int, seed: int, folder: Path | None = None
    ) -> None:
        if num_rows < batch_size:
            rule = f"has {num_rows} rows, less than one batch of {batch_size}"
            remedy = "use a larger corpus, a shorter max_sequence_length or a smaller "
            remedy += "global_train_batch_size"
            raise ConfigError(key="the corpus", rule=rule, remedy=remedy)
        self.num_rows, self.batch_size, self.seed, self.folder = num_rows, batch_size, seed, folder
        self.epoch_rows = batch_size * (num_rows // batch_size)
        self._epochs: dict[int, NDArray[np.uint32]] = {}

    def row(self, position: int) -> int:
        """Row of the corpus at a stream position."""
        epoch, entry = divmod(position, self.epoch_rows)
        return int(self._epoch(epoch)[entry])

    def rows_of_step(self, step: int) -> NDArray[np.int64]:
        """Rows of the corpus in one global batch, by slot; shape (batch_size,)."""
        epoch, entry = divmod(step * self.batch_size, self.epoch_rows)
        # An epoch is a whole number of batches, so that no step crosses its end.
        return self._epoch(epoch)[entry : entry + self.batch_size].astype(np.int64)

    def _epoch(self, epoch: int) -> NDArray[np.uint32]:
        order = self._epochs.get(epoch)
        if order is None:
            order = self._load(epoch)
            # A position's neighbour is at most one epoch away: keep two, not all of them. In a new
            # dict, as another thread may be going through this one.
            last = {e: o for e, o in self._epochs.items() if e == epoch - 1}
            self._epochs = last | {epoch: order}
        return order

    def write(self, num_positions: int) -> None:
        """Put all epochs of the first `num_positions` positions into the folder (one process)."""
        assert self.folder is not None
        for epoch in range(-(-num_positions // self.epoch_rows)):
            path = self._path(epoch)
            if self._is_whole(path):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = self._build(epoch).astype("<u4").data
            with replaced(path, sync=True) as temporary, temporary.open("wb") as file:
                file.write(rows)
                file.write(zlib.crc32(rows).to_bytes(4, "little"))

    def _is_whole(self, path: Path) -> bool:
        """Whether a file of an earlier start is what was written: all ranks believe it."""
        if not path.exists() or path.stat().st_size != 4 * self.num_rows + 4:
            return False
        words = np.memmap(path, dtype="<u4", mode="r")
        return zlib.crc32(words[:-1].data) == int(words[-1])

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_epochs": {}}

    def _path(self, epoch: int) -> Path:
        assert self.folder is not None
        return self.folder / f"order-seed{self.seed}-rows{self.num_rows}-epoch{epoch}.u32"

    def _load(self, epoch: int) -> NDArray[np.uint32]:
        if self.folder is not None and self._path(epoch).exists():
            return np.memmap(self._path(epoch), dtype="<u4", mode="r", shape=(self.num_rows,))
        return self._build(epoch)

    def _build(self, epoch: int) -> NDArray[np.uint32]:
        rows = np.arange(self.num_rows, dtype=np.uint32)
        np.random.Generator(np.random.PCG64(seed=self.seed + epoch)).shuffle(rows)
        return rows
