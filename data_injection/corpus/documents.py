"""Read documents, lazily, from Dolma-format files and `datasets` sources.

from data_injection.corpus.documents import iter_documents
next(iter_documents("dolma/part-00000.json.gz"))
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_injection.corpus.lines import json_of, numbered
from data_injection.errors import ConfigError
from data_injection.files import linked_folders

SUFFIXES = (".jsonl", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")

NAMED = 8
"""Fields of a record that a message lists: a line of 64 MiB may have a million."""


def refuse(error: ConfigError) -> None:
    """What is done with a bad document unless a reader is told to go on."""
    raise error


def iter_documents(
    source: str | Path,
    *,
    text_field: str = "text",
    on_bytes: Callable[[int], None] = lambda num_bytes: None,
    on_bad: Callable[[ConfigError], None] = refuse,
) -> Iterator[str]:
    """The texts of one file or `hf:` source, lazily and in order, empty ones included.

    on_bytes is told how many more bytes of the (compressed) file have been read; on_bad of a line
    that is no document (the error names file and line), and may return to go on with the next.
    Raises ConfigError where a file cannot be unpacked any further.
    """
    if str(source).startswith("hf:"):
        yield from _rows(_open_hf(str(source)), text_field, where=str(source), on_bad=on_bad)
        return
    path = Path(source)
    with path.open("rb") as raw:
        done = 0
        for where, line in numbered(raw, path):
            try:
                if line is None or line.strip():
                    yield _field(json_of(line, where=where), text_field, where=where)
            except ConfigError as error:
                on_bad(error)
            if raw.tell() != done:
                on_bytes(raw.tell() - done)
                done = raw.tell()


def _field(record: Any, field: str, *, where: str) -> str:
    text = record.get(field) if isinstance(record, Mapping) else None
    if isinstance(record, Mapping) and field in record and not isinstance(text, str):
        kind = "null" if text is None else f"a {type(text).__name__}"
        rule = f"has no text in field {field!r} but {kind}"
        raise ConfigError(key=where, rule=rule, remedy="set text_field or remove the line")
    if not isinstance(text, str):
        names = sorted(record)[:NAMED] if isinstance(record, Mapping) else type(record).__name__
        rule = f"has no text in field {field!r}, it has {names}"
        raise ConfigError(key=where, rule=rule, remedy="set text_field or remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate escape is valid JSON
        rule = f"is not valid Unicode ({error})"
        raise ConfigError(key=where, rule=rule, remedy="repair or remove it") from error
    return text


def _rows(
    dataset: Any, text_field: str, *, where: str, on_bad: Callable[[ConfigError], None]
) -> Iterator[str]:
    if text_field in (dataset.column_names or ()):
        dataset = dataset.select_columns([text_field])  # decode nothing else
    for number, row in enumerate(dataset):
        try:
            yield _field(row, text_field, where=f"{where} row {number}")
        except ConfigError as error:
            on_bad(error)


def _open_hf(source: str) -> Any:
    """The data set of an `hf:` source: from disk if the folder was saved there, else streamed."""
    import datasets

    location, _, split = source.removeprefix("hf:").partition(":")
    path, _, config = location.partition(",")
    if not path.strip("/ "):
        raise ConfigError(key="source", value=source, rule="must be hf:PATH[,CONFIG][:SPLIT]")
    if not any((Path(path) / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
        return datasets.load_dataset(path, config or None, split=split or "train", streaming=True)
    dataset = datasets.load_from_disk(path)
    if isinstance(dataset, dict):  # a DatasetDict
        if (split or "train") not in dataset:
            rule = f"has splits {sorted(dataset)}"
            raise ConfigError(key=source, rule=rule, remedy=f"write hf:{path}:SPLIT")
        return dataset[split or "train"]
    if config or (split and split != str(dataset.split)):
        rule = f"holds the one split {dataset.split}"
        raise ConfigError(key=f"{source}: {path}", rule=rule, remedy=f"write hf:{path}")
    return dataset


Reader = Callable[[Callable[[int], None], Callable[[ConfigError], None]], Iterator[str]]


@dataclass(frozen=True)
class TextSource:
    record: dict[str, Any]
    """What the manifest says of it, and the recipe's view of it."""
    num_bytes: int | None
    """None if unknown (a stream)."""
    read: Reader
    """Documents, given a function to tell of the bytes read and one of bad documents."""


def resolve_sources(sources: Sequence[str | Path], *, text_field: str) -> list[TextSource]:
    """Expand folders and globs, sorted; raises if a source names nothing or is named twice."""
    if isinstance(sources, str | Path) or not sources:
        raise ConfigError(
            key="sources", value=sources, rule="must be a list with at least one source"
        )
    resolved: list[TextSource] = []
    for source in map(str, sources):
        if source.startswith("hf:"):
            resolved.append(_resolve_hf(source, text_field=text_field))
        else:
            resolved += [_resolve_file(path, text_field) for path in _matching_files(source)]
    # Two links to one file are one file twice.
    names = [
        name if name.startswith("hf:") else os.path.realpath(name)
        for name in (str(source.record["source"]) for source in resolved)
    ]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        rule = f"name {twice[0]} more than once"
        raise ConfigError(key="sources", rule=rule, remedy="name each file once")
    return resolved


def _resolve_file(path: Path, text_field: str) -> TextSource:
    stat = path.stat()
    if not stat.st_size and path.suffix.lower() in (".gz", ".zst"):
        # Among good shards it would be lost without a word: an empty archive has a header.
        rule = "has 0 bytes, which no whole .gz or .zst has"
        raise ConfigError(key=path, rule=rule, remedy="fetch it again")
    return TextSource(
        record={"source": str(path), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns},
        num_bytes=stat.st_size,
        read=lambda on_bytes, on_bad: iter_documents(
            path, text_field=text_field, on_bytes=on_bytes, on_bad=on_bad
        ),
    )


def _resolve_hf(source: str, *, text_field: str) -> TextSource:
    dataset = _open_hf(source)
    return TextSource(
        record={"source": source, "fingerprint": getattr(dataset, "_fingerprint", None)},
        num_bytes=None,
        read=lambda _, on_bad: _rows(dataset, text_field, where=source, on_bad=on_bad),
    )


def _matching_files(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        found = [p for folder in linked_folders(path) for p in folder.iterdir() if _is_source(p)]
    else:
        # A file's own name may hold the signs of a glob.
        names = [source] if path.is_file() else glob.glob(source, recursive=True)
        found = [p for p in map(Path, names) if p.is_file()]
    if not found:
        raise FileNotFoundError(
            f"source {source!r} matches no file; give a file, glob or folder of "
            f"{', '.join(SUFFIXES)}, or hf:PATH[,CONFIG][:SPLIT]"
        )
    for p in found:
        if not _is_source(p):
            rule = f"must end in one of {', '.join(SUFFIXES)}"
            raise ConfigError(key="source", value=str(p), rule=rule)
    # By their own names, not a link target's: caches (Hugging Face, DVC, git-annex) keep contents
    # under a hash, which has no suffix and orders files otherwise on another storage.
    return sorted(Path(os.path.abspath(p)) for p in found)


def _is_source(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def reader_of_texts(texts: Sequence[str]) -> Reader:
    def read(on_bytes: Callable[[int], None], _: object) -> Iterator[str]:
        for text in texts:
            on_bytes(len(text))
            yield text

    return read
