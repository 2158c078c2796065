"""Audit, fourth part: are the token files those of the run? Here too: ids as text.

corpus, host = check_corpus(subject, folder=None, full=True)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_injection.corpus.manifest import MANIFEST, corpus_paths, load_manifest, verify_corpus
from data_injection.digest import fingerprint
from data_injection.errors import ConfigError
from eval.audit.host_rows import HostRows, host_rows
from eval.audit.subject import (
    DIFFERS,
    NOT_CHECKED,
    Progress,
    Subject,
    Verdict,
    judge,
    listing,
    no_progress,
)
from eval.text import plural


@dataclass(frozen=True)
class Corpus:
    """Where the run's token files are now."""

    paths: list[Path]
    folder: Path | None
    """Of the manifest; None for bare memmaps."""


def find_corpus(subject: Subject, folder: Path | None = None) -> Corpus | str:
    """The run's token files where it read them or, if they were moved, in `folder`.

    Returns why not where they are not there. Raises FileNotFoundError if `folder` is not there.
    """
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"--corpus {folder} is no folder; name the one with the tokens")
    prepared = subject.setting("corpus")
    if prepared is not None:
        place = folder if folder is not None else Path(prepared)
        if not place.is_dir():
            return f"the corpus {place} is not here; say where it is with --corpus FOLDER"
        if not (place / MANIFEST).is_file():
            return f"{place} has no {MANIFEST}; say where the corpus is with --corpus FOLDER"
        return Corpus(corpus_paths(place, load_manifest(place)), place)
    names = [str(path) for path in subject.setting("train.data.paths") or []]
    if not names:
        return "experiment.yaml names no token files"
    if folder is not None:
        return Corpus(_moved(names, folder), None)
    if any("://" in name for name in names):
        return "the token files are behind a URL; fetch them and name their folder with --corpus"
    paths = [Path(name) for name in names]
    if not any(path.is_file() for path in paths):
        return f"{listing(names, most=2)} are not here; say where with --corpus FOLDER"
    return Corpus(paths, None)


def _moved(names: list[str], folder: Path) -> list[Path]:
    """The same files below another folder, with their folders below the common one or flat."""
    common = os.path.commonpath([os.path.dirname(name) for name in names])
    paths = []
    for name in names:
        path = folder / os.path.relpath(name, common)
        paths.append(path if path.is_file() else folder / Path(name).name)
    return paths


def check_corpus(
    subject: Subject,
    *,
    folder: Path | None = None,
    full: bool = False,
    progress: Progress = no_progress,
) -> tuple[Verdict, HostRows | None]:
    """The token files are those of the run's corpus hash; with `full` byte for byte.

    Returns the rows too, None if the files cannot be read as the run's. With `full` a corpus that
    is not here raises FileNotFoundError.
    """
    try:
        corpus = find_corpus(subject, folder)
    except ConfigError as error:  # a manifest that is none
        return Verdict("corpus", DIFFERS, error.problem), None
    if isinstance(corpus, str):
        if full and subject.experiment:
            raise FileNotFoundError(f"{subject.folder}: {corpus}; --full reads all of it")
        return Verdict("corpus", NOT_CHECKED, corpus), None
    progress("corpus", 0, 1)
    problems = _missing(corpus.paths)
    if not problems:
        problems = _manifest(subject, corpus, full) if corpus.folder else _bare(subject, corpus)
    host = None
    if not _missing(corpus.paths):
        try:
            host = _host(subject, corpus)
        except ConfigError as error:
            problems.append(str(error))
    files = plural(len(corpus.paths), "file")
    if corpus.folder is None:
        agreed = f"{files}: names, sizes and 64 KiB at either end are those of the corpus hash"
    elif full:
        agreed = f"{files}: every byte is that of the manifest, which has the run's corpus hash"
    else:
        agreed = f"{files}: sizes are those of the manifest, which has the run's corpus hash"
    return judge("corpus", problems, agreed), host


def _missing(paths: list[Path]) -> list[str]:
    return [f"{path} is missing" for path in paths if not path.is_file()]


def _manifest(subject: Subject, corpus: Corpus, full: bool) -> list[str]:
    assert corpus.folder is not None
    problems = []
    manifest = load_manifest(corpus.folder)
    expected, found = subject.identity["corpus_hash"], manifest.hash
    if found != expected:
        problems.append(
            f"{corpus.folder} is the corpus {found[:12]}, the run was trained on {expected[:12]}"
        )
    if missing := _missing([corpus.folder / manifest.tokenizer]):
        return [*problems, *missing]
    try:
        verify_corpus(corpus.folder, full=full)
    except ConfigError as error:
        # Its remedy, to prepare again, is for a corpus that is to be trained on.
        problems.append(error.problem)
    return problems


def _bare(subject: Subject, corpus: Corpus) -> list[str]:
    problems = []
    found, expected = fingerprint([str(p) for p in corpus.paths]), subject.identity["corpus_hash"]
    if found != expected:
        problems.append(
            f"names, sizes or ends of {listing([str(p) for p in corpus.paths], most=2)} have the "
            f"fingerprint {found[:12]}, the run was trained on {expected[:12]}"
        )
    masks = subject.setting("train.data.label_mask_paths") or []
    expected = subject.identity.get("label_masks")
    if masks and all(Path(mask).is_file() for mask in masks) and expected:
        found = fingerprint([str(mask) for mask in masks])
        if found != expected:
            problems.append(
                f"the label masks have the fingerprint {found[:12]}, the run's {expected[:12]}"
            )
    return problems


def _host(subject: Subject, corpus: Corpus) -> HostRows:
    """The run's rows. Raises ConfigError if there are more or fewer than it was trained on."""
    host, rows = host_rows(subject.identity, corpus.paths), subject.identity["plan"]["epoch_rows"]
    if host.epoch_rows != rows:
        rule = f"has {host.epoch_rows:,} rows, the run's had {rows:,}"
        raise ConfigError(key="an epoch", rule=rule)
    return host


# -- the corpus's tokenizer ----------------------------------------------------------------------


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
