"""Digests of tokens: of rows at their places in the stream, and of files without a manifest.

rows_digest(ids_BT, positions)          # every rank adds its own; `olmo-ext audit` adds again
fingerprint(["a.npy", "b.npy"])
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

ENDS = 65536
"""Bytes of either end of a file that go into its fingerprint."""


def rows_digest(ids_BT: NDArray[np.int64], positions: NDArray[np.int64]) -> int:
    """The sum of the rows' XXH3-64 hashes, each seeded with its stream position, modulo 2^64.

    Args:
        ids_BT: token ids, shape (rows, seq_len), int64.
        positions: stream position of each row, shape (rows,).
    """
    rows = np.ascontiguousarray(ids_BT, dtype="<i8")
    hashes = (
        xxhash.xxh3_64_intdigest(row, seed=position)
        for row, position in zip(rows, positions.tolist(), strict=True)
    )
    return sum(hashes) % 2**64


def local_size(path: str) -> int:
    """Size of a file on this machine, bytes."""
    return Path(path).stat().st_size


def local_range(path: str, start: int, num_bytes: int) -> bytes:
    """Some bytes of a file on this machine."""
    with Path(path).open("rb") as file:
        file.seek(start)
        return file.read(num_bytes)


def fingerprint(
    paths: Sequence[str],
    *,
    size: Callable[[str], int] = local_size,
    read: Callable[[str, int, int], bytes] = local_range,
) -> str:
    """Identity of files that have no manifest: SHA-256 of names, sizes, first and last 64 KiB.

    Folders do not count, so that a copy of the files has the same. `size` and `read` may be those
    of a reader that knows other places than this machine's disks.
    """
    sha = hashlib.sha256()
    for path in paths:
        num_bytes = size(path)
        ends = min(num_bytes, ENDS)
        sha.update(f"{Path(path).name}|{num_bytes}|".encode())
        sha.update(read(path, 0, ends))
        sha.update(read(path, num_bytes - ends, ends))
    return sha.hexdigest()
