"""The lines of a file, packed or not, in bounded memory whatever the file holds.

    with Path("part-00000.json.gz").open("rb") as raw:
        for line in lines(unpacked(raw, ".gz")):    # bytes, or None for a line beyond MAX_LINE

A few kilobytes of .gz or .zst can hold gigabytes, and a file without line ends is one line.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from typing import IO, Any

MAX_LINE = 2**26
"""Bytes of one line, unpacked: 64 MiB, beyond any document of Dolma. A line takes about 25 times
its length while it is read and encoded."""

PACKED = 2**10
"""Compressed bytes at a time: 4 of them can stand for 128 KiB, so a piece stays below 32 MiB."""


def lines(file: IO[bytes] | io.BufferedIOBase) -> Iterator[bytes | None]:
    """Each line with its end; None for one longer than MAX_LINE, which is read over."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) <= MAX_LINE:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)
        yield None


def unpacked(raw: IO[bytes], suffix: str) -> IO[bytes] | io.BufferedIOBase:
    """What a file holds, by its suffix. Raises OSError, EOFError or zlib.error if it is broken."""
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    return io.BufferedReader(_Zstd(raw), 2**17) if suffix == ".zst" else raw


class _Zstd(io.RawIOBase):
    """A zstd file. (The library's own reader takes a file cut short for a short file.)"""

    def __init__(self, raw: IO[bytes]) -> None:
        self.raw, self.packed, self.data = raw, b"", memoryview(b"")
        self.frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.data:
            self.packed = self.packed or self.raw.read(PACKED)
            if not self.packed:
                if self.frame is not None:
                    raise EOFError("the file ends inside a frame")
                return 0
            self.data = memoryview(self._unpack())
        num = min(len(buffer), len(self.data))
        buffer[:num], self.data = self.data[:num], self.data[num:]
        return num

    def _unpack(self) -> bytes:
        import zstandard

        frame = self.frame or zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
        try:
            data = frame.decompress(self.packed)
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
        self.frame, self.packed = (None, frame.unused_data) if frame.eof else (frame, b"")
        return data
