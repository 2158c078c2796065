"""The lines of a file, packed or not, in bounded memory whatever the file holds.

    with Path("part-00000.json.gz").open("rb") as raw:
        for where, line in numbered(raw, path):     # bytes, or None for a line beyond MAX_LINE
            value = json_of(line, where=where)

A few kilobytes of .gz or .zst can hold gigabytes, and a file without line ends is one line.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from data_injection.errors import ConfigError
from data_injection.files import parse_json

MAX_LINE = 2**26
"""Bytes of one line, unpacked: 64 MiB, beyond any document of Dolma. A line takes about 25 times
its length while it is read and encoded."""

PACKED = 2**10
"""Compressed bytes at a time: 4 of them can stand for 128 KiB, so a piece stays below 32 MiB."""


def numbered(raw: IO[bytes], path: Path) -> Iterator[tuple[str, bytes | None]]:
    """(place for messages, line with its end) of an open file, unpacked by its path's suffix.

    Raises ConfigError where it cannot be unpacked any further.
    """
    number, suffix = 0, path.suffix.lower()
    file: Any = gzip.GzipFile(fileobj=raw) if suffix == ".gz" else raw
    if suffix == ".zst":
        file = io.BufferedReader(_Zstd(raw), 2**17)
    try:
        while line := file.readline(MAX_LINE + 1):
            number, whole = number + 1, len(line) <= MAX_LINE
            yield f"{path}:{number}", line if whole else None
            while not whole and line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
    except (EOFError, OSError, zlib.error) as error:
        rule = f"cannot be unpacked after line {number} ({error})"
        raise ConfigError(key=str(path), rule=rule, remedy="fetch or write it again") from error


def json_of(line: bytes | None, *, where: str) -> Any:
    """The JSON value of a line; ConfigError names the place where it is none."""
    if line is None:
        rule = f"is longer than {MAX_LINE:,} bytes, the most that one line may have"
        raise ConfigError(key=where, rule=rule, remedy="split or remove it")
    try:
        return parse_json(line)
    except UnicodeDecodeError as error:
        rule, remedy = f"is not JSON: it must be UTF-8 ({error})", "write the file as UTF-8"
        raise ConfigError(key=where, rule=rule, remedy=remedy) from None
    except ValueError as error:
        remedy = "repair or remove the line"
        raise ConfigError(key=where, rule=f"is not JSON ({error})", remedy=remedy) from None


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
