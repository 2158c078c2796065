"""The file of a `sequences` task: texts or token lists, each with the number of its copies.

    {"id": "canary-7", "text": "My number is 281-265-0017.", "copies": 16, "group": "canary"}
    {"id": "canary-8", "text": "My number is 912-400-3351.", "twin": true, "group": "canary"}

JSONL (also .gz, .zst) or Parquet, an example a line or row: `text` or `tokens`, and of these any:
`id` (default: its number), `copies` (default: the task's), `group`, `twin` (held out: never
injected, and evaluated beside its group's).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_injection.corpus.lines import json_of, numbered
from data_injection.errors import ConfigError
from data_injection.files import read_json
from data_injection.tasks.base import IntArray

Encode = Callable[[list[str]], list[list[int]]]
"""Texts to token ids, without EOS or other special tokens."""

FIELDS = ("id", "text", "tokens", "copies", "group", "twin")

MOST_COPIES = 10**8
"""Of an example: a plan holds 8 bytes for each copy."""

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


@dataclass(frozen=True)
class SequenceTable:
    """The examples of a file, one entry each, in its order."""

    sha256: str
    """Of the file's bytes."""

    ids: tuple[str, ...]
    tokens: tuple[IntArray, ...]
    copies: IntArray
    groups: tuple[str, ...]
    """Empty where an example names none."""

    twins: tuple[bool, ...]
    """Held out: never injected."""

    texts: tuple[str | None, ...] = ()
    """As the file has them, for the scan of a corpus; a run's folder does not keep them."""

    def as_json(self) -> dict[str, Any]:
        """What a run's folder keeps: its evaluation needs neither the file nor a tokenizer."""
        return {
            "sha256": self.sha256,
            "ids": self.ids,
            "tokens": [tokens.tolist() for tokens in self.tokens],
            "copies": self.copies.tolist(),
            "groups": self.groups,
            "twins": self.twins,
        }


def kept_table(path: Path) -> SequenceTable:
    """A table that a run's folder keeps (`as_json`); ConfigError names the file if it is none."""
    fields = read_json(path)
    try:
        return SequenceTable(
            sha256=str(fields["sha256"]),
            ids=tuple(fields["ids"]),
            tokens=tuple(np.array(tokens, dtype=np.int64) for tokens in fields["tokens"]),
            copies=np.array(fields["copies"], dtype=np.int64),
            groups=tuple(fields["groups"]),
            twins=tuple(fields["twins"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        rule = f"must be a table of sequences as a run keeps it ({type(error).__name__}: {error})"
        remedy = "restore it from a copy of the run"
        raise ConfigError(key=str(path), rule=rule, remedy=remedy) from error


def read_table(
    path: str | Path, *, copies: int, encode: Encode | None, vocab_size: int, key: str
) -> SequenceTable:
    """Read and check a file of sequences.

    Args:
        copies: of an example that names none.
        encode: the corpus's tokenizer; None where there is none.
        vocab_size: token ids are below it.
        key: the setting that names the file, for errors.

    Raises:
        ConfigError: names file and line, what it must be and what to do.
    """
    path = Path(path)
    if not path.is_file() or not path.name.lower().endswith(SUFFIXES):
        rule = f"must be a file that is there, of {', '.join(SUFFIXES)}"
        remedy = "a relative path starts at the folder one works in"
        raise ConfigError(key=key, value=str(path), rule=rule, remedy=remedy)
    numbered = list(_rows(path))
    if not numbered:
        raise ConfigError(key=str(path), rule="must hold at least one example")
    for where, row in numbered:
        _check_fields(row, where=where)
    tokens = _tokens([(where, row) for where, row in numbered], encode, path=path)
    for (where, row), ids in zip(numbered, tokens, strict=True):
        if not len(ids):
            rule = "must have at least one token"
            raise ConfigError(key=where, value=row.get("text", []), rule=rule, remedy="remove it")
        if outside := [token for token in ids if not 0 <= token < vocab_size]:
            rule = f"must have tokens in [0, {vocab_size}), the vocabulary"
            remedy = "encode it with the corpus's tokenizer, or give its text"
            raise ConfigError(key=where, value=outside[0], rule=rule, remedy=remedy)
    twins = tuple(bool(row.get("twin")) for _, row in numbered)
    table = SequenceTable(
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        ids=tuple(str(_or(row, "id", number)) for number, (_, row) in enumerate(numbered)),
        tokens=tuple(np.array(ids, dtype=np.int64) for ids in tokens),
        copies=np.array(
            [
                _copies(row, 0 if twin else copies, where=where)
                for (where, row), twin in zip(numbered, twins, strict=True)
            ],
            dtype=np.int64,
        ),
        groups=tuple(str(_or(row, "group", "")) for _, row in numbered),
        twins=twins,
        texts=tuple(row.get("text") for _, row in numbered),
    )
    _check_table(table, [where for where, _ in numbered])
    return table


def _check_table(table: SequenceTable, where: list[str]) -> None:
    """Ids are distinct, and nothing that is held out is injected."""
    first: dict[str, str] = {}
    injected: dict[bytes, str] = {}
    for number, name in enumerate(table.ids):
        if name in first:
            rule, remedy = f"must have an id of its own, {first[name]} has it", "rename one"
            raise ConfigError(key=f"{where[number]}: id", value=name, rule=rule, remedy=remedy)
        first[name] = where[number]
        if table.twins[number] and table.copies[number]:
            rule = "must be 0 or left out for a twin, which is never injected"
            value, remedy = int(table.copies[number]), "remove copies, or twin"
            raise ConfigError(key=f"{where[number]}: copies", value=value, rule=rule, remedy=remedy)
        if table.copies[number]:
            same = injected.setdefault(table.tokens[number].tobytes(), name)
            if same != name:
                rule = f"must have tokens of its own: {same!r} has the same and is injected too"
                remedy = "remove one of them, and give the other the copies of both"
                raise ConfigError(key=where[number], value=name, rule=rule, remedy=remedy)
    for number in np.flatnonzero(table.copies == 0).tolist():
        other = injected.get(table.tokens[number].tobytes())
        if other is not None:
            rule = f"must not be held out: {other!r} has the same tokens and is injected"
            remedy = "give the twin other tokens, or remove one of them"
            raise ConfigError(key=where[number], value=table.ids[number], rule=rule, remedy=remedy)


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place for messages, fields) of every example."""
    if path.suffix.lower() == ".parquet":
        yield from _parquet(path)
        return
    with path.open("rb") as raw:
        for where, line in numbered(raw, path):
            if line is not None and not line.strip():
                continue
            row = json_of(line, where=where)
            if not isinstance(row, Mapping):
                rule, remedy = "must be a JSON object", f"with fields of {', '.join(FIELDS)}"
                raise ConfigError(key=where, value=type(row).__name__, rule=rule, remedy=remedy)
            yield where, row


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        rule = f"must be a Parquet file of texts in UTF-8 or token lists ({error})"
        raise ConfigError(key=str(path), rule=rule, remedy="write it again") from error
    for number, row in enumerate(rows):
        # A column that a row leaves empty is a field that it lacks.
        yield f"{path} row {number}", {name: v for name, v in row.items() if v is not None}


def _check_fields(row: Mapping[str, Any], *, where: str) -> None:
    if unknown := sorted(set(row) - set(FIELDS)):
        rule, remedy = f"must be of {', '.join(FIELDS)}", "rename or remove it"
        raise ConfigError(key=f"{where}: field", value=unknown[0], rule=rule, remedy=remedy)
    if ("text" in row) == ("tokens" in row):
        rule, remedy = "must have text or tokens, and not both", "give one of them"
        raise ConfigError(key=where, value=sorted(row), rule=rule, remedy=remedy)
    text, tokens = row.get("text", ""), row.get("tokens", [])
    whole = isinstance(tokens, list) and all(type(token) is int for token in tokens)
    for name in ("id", "group"):
        if row.get(name) is not None and type(row[name]) not in (str, int):
            rule, value = "must be a string or a whole number", str(row[name])[:200]
            raise ConfigError(key=f"{where}: {name}", value=value, rule=rule, remedy="change it")
    if not isinstance(text, str) or not whole or not isinstance(row.get("twin", False), bool):
        rule = "must have a string as text, a list of whole numbers as tokens, true or false as "
        raise ConfigError(key=where, value=str(dict(row))[:200], rule=f"{rule}twin")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate escape is valid JSON
        rule = f"must be UTF-8 ({error})"
        raise ConfigError(key=f"{where}: text", rule=rule, remedy="repair the text") from None


def _copies(row: Mapping[str, Any], default: int, *, where: str) -> int:
    copies = _or(row, "copies", default)
    if type(copies) is not int or not 0 <= copies <= MOST_COPIES:
        rule = f"must be a whole number, at least 0 and at most {MOST_COPIES:,}"
        remedy = "give 0 for a level never injected"
        raise ConfigError(key=f"{where}: copies", value=copies, rule=rule, remedy=remedy)
    return copies


def _or(row: Mapping[str, Any], name: str, default: Any) -> Any:
    return default if row.get(name) is None else row[name]


def _tokens(
    numbered: list[tuple[str, Mapping[str, Any]]], encode: Encode | None, *, path: Path
) -> list[list[int]]:
    texts = [row["text"] for _, row in numbered if "text" in row]
    if texts and encode is None:
        where = next(where for where, row in numbered if "text" in row)
        rule = "is a text, and there is no tokenizer to encode it"
        remedy = "name a corpus of `olmo-ext prepare`, set train.tokenizer.identifier, give encode "
        remedy += "to compile_plan, or write token lists"
        raise ConfigError(key=where, rule=rule, remedy=remedy)
    encoded = iter(encode(texts) if encode is not None and texts else [])
    return [next(encoded) if "text" in row else row["tokens"] for _, row in numbered]
