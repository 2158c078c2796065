"""The file that `--json` asks for; `eval.text.check_target` says before whether it can be written.

write_json(path, {"low": float("nan")})
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from data_injection.files import replace_file


def write_json(path: Path, value: Any, *, infinity: bool = False) -> Path:
    """JSON has neither NaN nor infinity: they become null, or "inf" with `infinity`."""
    return replace_file(path, json.dumps(_plain(value, infinity), indent=1, allow_nan=False) + "\n")


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
