"""How the verbs of `olmo-ext scaling` print a line as it is, and write what they found as JSON.

say(console, "N_l = 4B: ...")
json_text({"low": float("nan")})
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from rich.console import Console


def say(console: Console, text: str) -> None:
    """A line whole, whatever the terminal's width: it is read by programs too."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def json_text(value: Any, *, infinity: bool = False) -> str:
    """As JSON, which has neither NaN nor infinity: null, or "inf" with `infinity`."""
    return json.dumps(_plain(value, infinity), indent=1, allow_nan=False) + "\n"


def _plain(value: Any, infinity: bool) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one, infinity) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, infinity) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return str(value) if infinity and not np.isnan(value) else None
    return value
