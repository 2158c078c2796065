"""Write token ids into numbered files of equal length.

with ShardWriter(folder, "uint16", 2**28) as writer:
    writer.write(tokens)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from data_injection.corpus.manifest import DTYPES, CorpusFile


class ShardWriter:
    """Appends token ids to numbered files of exactly max_shard_tokens, the last one shorter."""

    def __init__(
        self, folder: Path, dtype: str, max_shard_tokens: int, *, files: Iterable[CorpusFile] = ()
    ) -> None:
        self.folder, self.dtype, self.max_shard_tokens = folder, dtype, max_shard_tokens
        self.files = list(files)
        self.num_tokens = sum(file.num_tokens for file in self.files)
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
