"""What an error says of the input it refuses, asked for by attribute: its text may be worded anew.

with refuses(key="callbacks.loss_budget.every", value=0):
    load_experiment(path, ["callbacks.loss_budget.every=0"])
with refuses(key=tmp_path / "a.jsonl:2", rule="'a list'", remedy=("text_field", "remove")):
    read(tmp_path / "a.jsonl")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from data_injection.errors import ConfigError

Words = str | tuple[str, ...]
ANY: Any = object()


@contextmanager
def refuses(
    *,
    key: str | Path,
    value: Any = ANY,
    rule: Words = (),
    remedy: Words = (),
    of: str | Path = "",
    kind: type[ConfigError] = ConfigError,
) -> Iterator[pytest.ExceptionInfo[ConfigError]]:
    """Exactly this key and value, the words in rule and remedy, told of this file or run.

    False is no 0. The rule's words are those that tell one case from another, such as a number or
    the name of what would be right. Of `of` only the text knows: see ConfigError.told_of.
    """
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert error.key == str(key), f"key of: {error}"
    if value is not ANY:
        asked = str(value) if isinstance(value, Path) else value
        same = error.value == asked and isinstance(error.value, bool) == isinstance(asked, bool)
        assert same or repr(error.value) == repr(asked), f"value of: {error}"  # a nan is a nan
    for name, words in (("rule", rule), ("remedy", remedy)):
        for word in (words,) if isinstance(words, str) else words:
            assert word in getattr(error, name), f"{name} of: {error}"
    assert str(error).startswith(str(of)), f"not of {of}: {error}"
