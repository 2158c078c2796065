"""The host text of a run read again, with nothing of the code that trained on it.

    host = HostRows(paths, dtype="uint16", seq_len=2048, batch_size=2048, seed=6198)
    ids_BT = host.tokens(host.rows_of_step(17))
    splice(ids_BT, plan, 17)

An audit that used the training's own reader would repeat its mistakes. What both rest on is the
engine's rule: a row is the next seq_len tokens of a file, the rest of each file is left out, and
epoch e takes the rows in the order of PCG64(seed + e), as many as fill whole batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_injection.errors import ConfigError
from data_injection.philox import raw_words
from data_injection.plan import InjectionPlan

OPEN_FILES = 128
"""Files kept mapped at a time: a corpus can have more than a process may open."""


class HostRows:
    """Rows of token files by number and by step.

    Args:
        paths: raw token files in the order of the run.
        dtype: of the tokens, as train.data.memmap_dtype.
        seed: the engine's data seed.

    Raises ConfigError if the files have less than a batch.
    """

    def __init__(
        self, paths: Sequence[Path], *, dtype: str, seq_len: int, batch_size: int, seed: int
    ) -> None:
        self.paths = list(paths)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.seq_len, self.batch_size, self.seed = seq_len, batch_size, seed
        row_bytes = self.dtype.itemsize * seq_len
        rows_per_file = [path.stat().st_size // row_bytes for path in self.paths]
        self._first = np.concatenate([[0], np.cumsum(rows_per_file)])
        self.num_rows = int(self._first[-1])
        self.epoch_rows = self.num_rows // batch_size * batch_size
        if not self.epoch_rows:
            rule = f"has {self.num_rows} rows, less than one batch of {batch_size}"
            raise ConfigError(key="the corpus", rule=rule)
        self._map = lru_cache(OPEN_FILES)(self._open)
        self._order: tuple[int, NDArray[np.uint32]] = (-1, np.zeros(0, np.uint32))

    def rows_of_step(self, step: int) -> NDArray[np.int64]:
        """Numbers of a step's rows in the corpus by slot, shape (batch_size,)."""
        epoch, first = divmod(step * self.batch_size, self.epoch_rows)
        if epoch != self._order[0]:
            order = np.arange(self.num_rows, dtype=np.uint32)
            np.random.Generator(np.random.PCG64(seed=self.seed + epoch)).shuffle(order)
            self._order = (epoch, order)
        return self._order[1][first : first + self.batch_size].astype(np.int64)

    def tokens(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token ids of rows of the corpus, shape (len(rows), seq_len); a fresh array."""
        ids_BT = np.empty((len(rows), self.seq_len), dtype=np.int64)
        files = self._files(rows)
        for file in np.unique(files).tolist():
            mine = files == file
            ids_BT[mine] = self._map(file)[rows[mine] - self._first[file]]
        return ids_BT

    def place(self, row: int) -> tuple[Path, int]:
        """The file that a row stands in and the number of its first token there."""
        file = int(self._files(np.array([row]))[0])
        return self.paths[file], (row - int(self._first[file])) * self.seq_len

    def row_at(self, file: int, token: int) -> int | None:
        """The row of the corpus that holds a token of a file, None behind the file's last row."""
        row = int(self._first[file]) + token // self.seq_len
        return row if row < self._first[file + 1] else None

    def _files(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._first, rows, side="right") - 1

    def _open(self, file: int) -> NDArray[np.unsignedinteger]:
        num = int(self._first[file + 1] - self._first[file])
        return np.memmap(self.paths[file], dtype=self.dtype, mode="r", shape=(num, self.seq_len))


def host_rows(identity: Mapping[str, Any], paths: Sequence[Path]) -> HostRows:
    """The rows that a run read of its token files; `identity` as in its plan.json."""
    return HostRows(
        paths,
        dtype=identity["memmap_dtype"],
        seq_len=identity["plan"]["seq_len"],
        batch_size=identity["plan"]["batch_size"],
        seed=identity["data_seed"],
    )


def splice(ids_BT: NDArray[np.int64], plan: InjectionPlan, step: int) -> NDArray[np.int64]:
    """Put a step's examples over its host rows, in place; returns the slots, in plan order."""
    rows, offsets = plan.at(step), places(ids_BT, plan, step)
    for index, task in enumerate(plan.tasks):
        mine = rows.tasks == index
        if not task.has_label:
            for slot, example, offset in zip(
                rows.slots[mine], rows.examples[mine], offsets[mine], strict=True
            ):
                end = offset + 1 + len(task.tokens[example])
                ids_BT[slot, offset] = ids_BT[slot, end] = plan.eos_token_id
                ids_BT[slot, offset + 1 : end] = task.tokens[example]
            continue
        end = plan.offset + task.length
        ids_BT[rows.slots[mine], plan.offset : end] = task.tokens[rows.examples[mine]]
        ids_BT[rows.slots[mine], end] = plan.eos_token_id
    return rows.slots


def places(ids_BT: NDArray[np.int64], plan: InjectionPlan, step: int) -> NDArray[np.int64]:
    """Token of its host row at which each of a step's instances begins, in plan order."""
    rows = plan.at(step)
    offsets = rows.offsets.copy()
    if not plan.at_documents:
        return offsets
    words = raw_words(len(ids_BT), seed=plan.seed, purpose="documents", counter=step).tolist()
    for slot in np.unique(rows.slots).tolist():
        mine = np.flatnonzero(rows.slots == slot)
        tasks = [plan.tasks[index] for index in rows.tasks[mine].tolist()]
        if tasks[0].has_label:  # it has its row to itself
            continue
        sizes = [len(task.tokens[i]) for task, i in zip(tasks, rows.examples[mine], strict=True)]
        length, is_eos = max(offsets[mine] + sizes) + 2, ids_BT[slot] == plan.eos_token_id
        begin = [0, *(np.flatnonzero(is_eos[1 : len(is_eos) - length + 1]) + 1).tolist()]
        within = [at for at in begin if not is_eos[at + 1 : at + length - 1].any()]
        offsets[mine] += (within or begin)[words[slot] % len(within or begin)]
    return offsets


def natural_examples(ids_BT: NDArray[np.int64], plan: InjectionPlan) -> dict[str, int]:
    """Host rows that read like an example of a task and EOS, where the plan would put one.

    Give rows that the plan leaves alone. Returns the number by task, zeros left out.
    """
    found = {}
    for task in plan.labelled:
        end = plan.offset + task.length
        # The label and EOS first: hardly a row has both.
        likely = ids_BT[:, end] == plan.eos_token_id
        likely &= np.isin(ids_BT[:, end - 1], task.label_tokens)
        texts = ids_BT[likely, plan.offset : end]
        num = sum(bool((task.tokens == text).all(axis=1).any()) for text in texts)
        if num:
            found[task.name] = num
    return found
