"""The folder of a corpus while it is made: nothing in it counts until its manifest is written.

    manifest = prepared(folder, recipe, build)      # build writes into the folder it is given

A killed or refused preparation leaves the shards that were finished, and the next goes on after
them; of one process at a time, and files of others are never removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_injection.beat import Beat, to_stderr
from data_injection.corpus.encoder import TOKENIZER
from data_injection.corpus.manifest import (
    MANIFEST,
    PARTIAL,
    CorpusFile,
    Manifest,
    load_manifest,
    verify_corpus,
)
from data_injection.errors import ConfigError
from data_injection.files import check_folder, read_json, replace_file, sync_path

log = logging.getLogger(__name__)

PLACE = "place.json"


@dataclass(frozen=True)
class Reached:
    """How far the finished shards of a preparation reach: where another one may go on."""

    recipe: str
    files: tuple[CorpusFile, ...] = ()
    sources: tuple[dict[str, Any], ...] = ()
    """The sources read to their ends, as the manifest has them."""
    documents: int = 0
    """Of the source after them that lie in the shards whole, the empty ones not counted."""
    cut: int = 0
    """Tokens of the document after those that lie in the last shard."""

    def write(self, folder: Path) -> None:
        replace_file(folder / PLACE, json.dumps(dataclasses.asdict(self)), sync=True)


def read_place(folder: Path, recipe: str, *, moved: Path | None = None) -> Reached | None:
    """The place of an unfinished preparation whose shards are there; None without one.

    moved: where its last step may have put some already, which are brought back.
    """
    try:
        value = read_json(folder / PLACE)
        files = tuple(CorpusFile(**file) for file in value["files"])
        place = Reached(**value | {"files": files, "sources": tuple(value["sources"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if place.recipe != recipe:
        log.warning("%s is of other sources or settings: starting over", folder)
        return None
    for file in files:
        if moved is not None and (moved / file.path).is_file():
            (moved / file.path).replace(folder / file.path)
    return place if all((folder / file.path).is_file() for file in files) else None


def num_bad(sources: Iterable[Mapping[str, Any]]) -> int:
    """Lines left out of a corpus as no documents."""
    return sum(source.get("bad", 0) for source in sources)


def prepared(
    folder: Path, recipe: str, build: Callable[[Path, Beat], Manifest], *, skip_bad: int = 0
) -> Manifest:
    """Build in a partial folder, move the files out, write the manifest last.

    Where shards were finished before, `build` finds how far they reach in its folder. A finished
    corpus with more than skip_bad lines left out is refused.
    """
    check_folder(folder, "--out")
    with Beat(to_stderr) as beat:
        beat.then(f"checking the files of {folder}")
        if finished := _finished(folder, recipe, skip_bad):
            return finished
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if finished := _finished(folder, recipe, skip_bad):  # by whoever held the lock
                return finished
            return _build(folder, recipe, build, beat)


def _build(
    folder: Path, recipe: str, build: Callable[[Path, Beat], Manifest], beat: Beat
) -> Manifest:
    partial = folder / PARTIAL
    if (place := read_place(partial, recipe, moved=folder)) is not None:
        log.warning("going on after %d finished shards in %s", len(place.files), partial)
    else:
        _clear_unfinished(folder)
        partial.mkdir()
    try:
        manifest = build(partial, beat)
        for path in sorted(partial.iterdir()):
            if path.name != PLACE:
                path.replace(folder / path.name)
        _write_manifest(folder, manifest)
    except Exception:
        if (place := read_place(partial, recipe, moved=folder)) is None:
            _clear_unfinished(folder)
        else:
            kept = f"{len(place.files)} finished shards stay in {partial}"
            log.warning("%s: the same command goes on after them", kept)
        raise
    shutil.rmtree(partial)
    log.info("prepared %s: %d tokens in %s", manifest.name, manifest.num_tokens, folder)
    return manifest


def _finished(folder: Path, recipe: str, skip_bad: int) -> Manifest | None:
    """The folder's corpus if it is this one, None if there is none; ConfigError if another."""
    if not (folder / MANIFEST).exists():
        return None
    manifest = load_manifest(folder)
    if manifest.recipe != recipe:
        rule = f"holds the corpus {manifest.name!r} of other sources or settings"
        remedy = "choose another folder or delete this one"
        raise ConfigError(key=folder, rule=rule, remedy=remedy)
    if (bad := num_bad(manifest.sources)) > skip_bad:
        rule = f"holds this corpus without {bad} bad lines, which its manifest lists"
        remedy = f"pass --skip-bad {bad} to take it as it is"
        raise ConfigError(key=folder, rule=rule, remedy=remedy)
    return verify_corpus(folder)


def _clear_unfinished(folder: Path) -> None:
    """Remove what a killed preparation left, and only that."""
    partial = folder / PARTIAL
    left = [p for p in (*folder.glob("tokens-*.npy"), folder / TOKENIZER) if p.exists()]
    if left and not partial.exists():
        rule = f"holds {left[0].name} but no manifest"
        raise ConfigError(key=folder, rule=rule, remedy="choose another folder")
    for path in left:
        path.unlink()
    shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One preparation of a folder at a time; the others wait, and then find it finished."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot lock
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    text = json.dumps(dataclasses.asdict(manifest), indent=1)
    replace_file(folder / PARTIAL / MANIFEST, text, sync=True).replace(folder / MANIFEST)
    sync_path(folder)
