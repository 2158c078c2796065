"""Write token ids into numbered files of equal length, and show how far it has come.

with ShardWriter(folder, "uint16", 2**28) as writer:
    writer.write(tokens)
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_injection.beat import Beat
from data_injection.corpus.manifest import DTYPES, CorpusFile

log = logging.getLogger(__name__)


class ShardWriter:
    """Appends token ids to numbered files of exactly max_shard_tokens, the last one shorter."""

    def __init__(self, folder: Path, dtype: str, max_shard_tokens: int) -> None:
        self.folder, self.dtype, self.max_shard_tokens = folder, dtype, max_shard_tokens
        self.files: list[CorpusFile] = []
        self.num_tokens = 0
        self._file: IO[bytes] | None = None

    def write(self, tokens: np.ndarray) -> None:
        while len(tokens):
            if self._file is None:
                self._path = self.folder / f"tokens-{len(self.files):05d}.npy"
                self._file, self._sha, self._count = self._path.open("wb"), hashlib.sha256(), 0
            part, tokens = np.split(tokens, [self.max_shard_tokens - self._count])
            data = part.astype(DTYPES[self.dtype]).tobytes()
            self._file.write(data)
            self._sha.update(data)
            self._count += len(part)
            self.num_tokens += len(part)
            if self._count == self.max_shard_tokens:
                self._finish_shard()

    def _finish_shard(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self.files.append(CorpusFile(self._path.name, self._count, self._sha.hexdigest()))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._finish_shard()


class Meter:
    """Progress: a bar if stderr is a terminal, else lines of the log before two silent seconds."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._beat = Beat(log.info)

    def start(self, description: str, *, total: int | None) -> None:
        self.description, self.total, self.done = description, total, 0
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._task = self._bar.add_task(description, total=total, num_tokens=0)
        self._beat.then(f"{description}, bytes" if total else description)

    def add_bytes(self, num_bytes: int) -> None:
        self.done += num_bytes

    def show(self, *, num_tokens: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, num_tokens=num_tokens)
        else:
            what = f"{self.description}, bytes" if self.total else self.description
            self._beat.at(what, self.done, self.total or 0)

    def __enter__(self) -> Meter:
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.DownloadColumn(),
                progress.TextColumn("{task.fields[num_tokens]:,} tokens"),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        else:
            self._beat.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._beat.stop()
        if self._bar is not None:
            self._bar.stop()
