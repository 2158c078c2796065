"""Lines of a record file as a kill, an editor or an older version left them.

for row in whole_rows(path, ("run", "step", "value")):
    ...
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from data_injection.errors import ConfigError
from data_injection.files import parse_json

log = logging.getLogger(__name__)


def end_whole(file: FileIO, path: Path) -> None:
    """End a file that is appended to in a whole line."""
    *_, end = path.read_bytes().rpartition(b"\n")
    if not end:
        return
    try:
        parse_json(end)
    except ValueError:
        log.warning("%s ended in a torn line (a killed writer), cut off", path)
        file.truncate(file.seek(0, os.SEEK_END) - len(end))
    else:  # whole but for its newline, which somebody's editor may have taken
        file.write(b"\n")


def whole_rows(path: Path, required: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file; ConfigError at one that has not what is required. What a kill cut off is
    skipped with a warning."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            if number < len(lines) and not _is_cut_off(line, error):
                rule = f"is not JSON ({error})"
                remedy = "mend or drop the line"
                raise ConfigError(key=f"{path}:{number}", rule=rule, remedy=remedy) from None
            # By a kill; in the middle of a file where an older version went on behind it.
            log.warning("%s:%d is cut off, skipped", path, number)
            continue
        if (problem := _problem(row, required)) is not None:
            rule = f"is not a record: {problem}"
            raise ConfigError(key=f"{path}:{number}", rule=rule, remedy="mend or drop the line")
        yield row


def _is_cut_off(line: str, error: ValueError) -> bool:
    """Whether a line is the beginning of a record, as a kill in the middle of a write leaves it."""
    if not (line.startswith("{") and isinstance(error, json.JSONDecodeError)):
        return False
    left = line[error.pos :].rstrip()
    # Nothing, a word or a number in the making (tru, 1.5e-): more text would have mended it.
    unfinished = any(word.startswith(left) for word in ("true", "false", "null"))
    unfinished |= re.fullmatch(r"[-+.eE]*", left) is not None
    unfinished |= "escape" in error.msg and len(line) - error.pos < len(r"\u00e9")
    return unfinished or error.msg.startswith("Unterminated string")


def _problem(row: Any, required: Sequence[str]) -> str | None:
    """Why what a line says is no record; None if it is one."""
    if not isinstance(row, dict):
        return f"must be a JSON object, got {json.dumps(row)[:40]}"
    if missing := [name for name in required if name not in row]:
        return f"lacks {', '.join(missing)}"
    if not isinstance(row["value"], int | float | None):
        return f"value must be a number, got {row['value']!r}"
    return None
