"""What `--json` asks for; `eval.text.check_target` says before whether the file can be written.

write_json(path, {"low": float("nan")})
write_rows(path, table)                 # the rows of a verb's table; nothing where path is None
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_injection.files import replace_file


def write_json(path: Path, value: Any, *, infinity: bool = False) -> Path:
    """JSON has neither NaN nor infinity: they become null, or "inf" with `infinity`.

    The path "-" is standard output, where `launch.terminal.tables` then shows nothing.
    """
    text = json.dumps(_plain(value, infinity), indent=1, allow_nan=False) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return path
    return replace_file(path, text)


def write_rows(path: Path | None, rows: Any) -> None:
    """A list of objects, one a row of the verb's table: numbers as numbers, by the field's name.

    rows: a pandas table, or mappings or dataclasses.
    """
    if path is None:
        return
    found: Iterable[Any] = rows.to_dict("records") if hasattr(rows, "to_dict") else rows
    write_json(path, [one if isinstance(one, dict) else vars(one) for one in found])


def _plain(value: Any, infinity: bool) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one, infinity) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, infinity) for one in value]
    if hasattr(value, "item"):  # a number of NumPy's
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value) if infinity and not math.isnan(value) else None
    return value
