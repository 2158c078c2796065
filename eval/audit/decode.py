"""Token ids as text, with the tokenizer that a run was trained with, if it is here.

decode = load_decoder(subject)
decode([17, 4, 99])
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.audit.subject import Subject


def load_decoder(subject: Subject, corpus: Path | None = None) -> Callable[[list[int]], str | None]:
    """A function from ids to text; its text is None where no tokenizer file is found.

    Looks for train.tokenizer.identifier as a file, and by its name in the folder `corpus`. It is
    loaded when the first ids are decoded.
    """
    loaded: list[Any] = []

    def decode(ids: list[int]) -> str | None:
        if not loaded:
            loaded.append(_load(subject, corpus))
        return loaded[0].decode(ids, skip_special_tokens=False) if loaded[0] is not None else None

    return decode


def tokenizer_file(subject: Subject, corpus: Path | None = None) -> Path | None:
    """The run's tokenizer file: in the folder `corpus` by its name, or where the run read it."""
    identifier = Path(str(subject.setting("train.tokenizer.identifier") or ""))
    places = [identifier] if corpus is None else [corpus / identifier.name, identifier]
    return next((path for path in places if path.is_file()), None)


def _load(subject: Subject, corpus: Path | None) -> Any:
    path = tokenizer_file(subject, corpus)
    if path is None:
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))
