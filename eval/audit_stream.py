"""Audit, fourth part: is the text what was trained on? The corpus against the run's digests.

    corpus, host = check_corpus(subject, folder=None, full=True)
    check_stream(subject, host, plan, full=True)

Rows are read again by `eval.host`, which shares no code with the training. Every checkpoint holds
the digest of all tokens trained on until then (data_injection/digest.py); since that is a sum, the
difference between two checkpoints judges the steps between them alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_injection.config import ConfigError
from data_injection.digest import fingerprint, rows_digest
from data_injection.manifest import MANIFEST, corpus_paths, load_manifest, verify_corpus
from data_injection.plan import InjectionPlan
from eval.host import HostRows, natural_examples, splice
from eval.ledger import SavedCheckpoint
from eval.verdict import (
    DIFFERS,
    NOT_CHECKED,
    Progress,
    Subject,
    Verdict,
    count,
    judge,
    listing,
    no_progress,
)


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
        return Verdict("corpus", DIFFERS, str(error).split("; ")[0]), None
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
    files = count(len(corpus.paths), "file")
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
    expected, found = subject.identity["corpus_hash"], load_manifest(corpus.folder).hash
    if found != expected:
        problems.append(
            f"{corpus.folder} is the corpus {found[:12]}, the run was trained on {expected[:12]}"
        )
    try:
        verify_corpus(corpus.folder, full=full)
    except (ConfigError, FileNotFoundError) as error:
        # Its remedy, to prepare again, is for a corpus that is to be trained on.
        problems.append(str(error).split("; ")[0])
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
    identity, plan = subject.identity, subject.identity["plan"]
    host = HostRows(
        corpus.paths,
        dtype=identity["memmap_dtype"],
        seq_len=plan["seq_len"],
        batch_size=plan["batch_size"],
        seed=identity["data_seed"],
    )
    if host.epoch_rows != plan["epoch_rows"]:
        raise ConfigError(
            f"an epoch has {host.epoch_rows:,} rows, the run's had {plan['epoch_rows']:,}"
        )
    return host


@dataclass
class _Seen:
    """What was seen while steps were read again."""

    digest: int = 0
    natural: dict[str, int] | None = None
    unplanned_rows: int = 0


def check_stream(
    subject: Subject,
    host: HostRows | None,
    plan: InjectionPlan | None,
    *,
    full: bool = False,
    sample: int = 64,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Verdict:
    """The tokens read now are those trained on: all by their digest with `full`, else what a random
    sample of steps can show."""
    if host is None or plan is None:
        why = "the corpus cannot be read (see corpus)" if host is None else "no plan (see plan)"
        return Verdict("stream", NOT_CHECKED, why)
    if not subject.step:
        return Verdict("stream", NOT_CHECKED, "no step is in any saved weights yet")
    if full:
        return _check_digests(subject, host, plan, progress)
    chosen = np.random.default_rng(seed).permutation(subject.step)[:sample]
    steps = sorted(chosen.tolist())
    seen, problems = _Seen(natural={}), []
    for done, step in enumerate(steps):
        progress("stream", done, len(steps))
        problems += _read_step(subject, host, plan, step, seen)
    notes = [
        "a sample finds token ids beyond the vocabulary and rows in another order; it cannot find "
        "a token that was changed to another: --full can"
    ]
    agreed = (
        f"{count(len(steps), 'step')} of {subject.step:,} read again: ids inside the vocabulary, "
        f"rows in the engine's order; {_natural(seen)}"
    )
    return judge("stream", problems, agreed, notes=notes, numbers=_numbers(seen, len(steps)))


def _check_digests(
    subject: Subject, host: HostRows, plan: InjectionPlan, progress: Progress
) -> Verdict:
    """Read all steps again and compare what was added between checkpoints."""
    known = [
        (checkpoint, int(checkpoint.place["stream_digest"], 16))
        for checkpoint in subject.checkpoints
        if checkpoint.step <= subject.step and "stream_digest" in checkpoint.place
    ]
    seen, problems = _Seen(natural={}), []
    before: tuple[int, int] = (0, 0)  # steps and digest of the checkpoint before
    for checkpoint, expected in known:
        seen.digest = 0
        for step in range(before[0], checkpoint.step):
            progress("stream", step, known[-1][0].step)
            problems += _read_step(subject, host, plan, step, seen)
        wanted = (expected - before[1]) % 2**64
        if seen.digest != wanted:
            problems.append(_bounds(before[0], checkpoint, seen.digest, wanted))
        before = checkpoint.step, expected
    if not problems and (not known or before[0] < subject.step):
        why = "the run began before it kept a ledger"
        return Verdict("stream", NOT_CHECKED, f"no digest of all {subject.step:,} steps: {why}")
    agreed = (
        f"all {subject.step:,} steps read again: the digests of "
        f"{count(len(known), 'checkpoint')} agree; {_natural(seen)}"
    )
    notes = ["host tokens beneath an example were not trained on: the digest cannot know them"]
    return judge("stream", problems, agreed, notes=notes, numbers=_numbers(seen, subject.step))


def _bounds(first: int, checkpoint: SavedCheckpoint, found: int, wanted: int) -> str:
    name = checkpoint.path.name
    if first == checkpoint.step:  # step 0: the sum over no rows
        return f"{name} holds a digest of {wanted:016x} before the first step"
    steps = (
        f"step {first}"
        if first + 1 == checkpoint.step
        else (f"somewhere in steps {first} to {checkpoint.step - 1}")
    )
    return (
        f"the tokens read now differ from those trained on {steps}: digest {found:016x}, "
        f"{name} says {wanted:016x}"
    )


def _read_step(
    subject: Subject, host: HostRows, plan: InjectionPlan, step: int, seen: _Seen
) -> list[str]:
    """Read a step again, add it to what was seen, return what is wrong with it."""
    problems = []
    rows = host.rows_of_step(step)
    if (kept := _kept_order(subject, host, step)) is not None and not np.array_equal(rows, kept):
        slot = int(np.flatnonzero(rows != kept)[0])
        problems.append(
            f"step {step}, slot {slot}: row {kept[slot]} of the corpus in train_data, the engine's "
            f"order has row {rows[slot]}"
        )
    ids_BT = host.tokens(rows)
    vocab_size = subject.identity["vocab_size"]
    if ids_BT.max() >= vocab_size:
        slot = int((ids_BT.max(axis=1) >= vocab_size).argmax())
        path, offset = host.place(int(rows[slot]))
        problems.append(
            f"step {step}, slot {slot}: token id {ids_BT[slot].max()} is beyond the vocabulary of "
            f"{vocab_size} ({path}, token {offset + int(ids_BT[slot].argmax())})"
        )
    planned = splice(ids_BT, plan, step)
    alone = np.ones(len(ids_BT), dtype=bool)
    alone[planned] = False
    seen.unplanned_rows += int(alone.sum())
    assert seen.natural is not None
    for name, num in natural_examples(ids_BT[alone], plan).items():
        seen.natural[name] = seen.natural.get(name, 0) + num
    positions = step * host.batch_size + np.arange(len(ids_BT))
    seen.digest = (seen.digest + rows_digest(ids_BT, positions)) % 2**64
    return problems


def _kept_order(subject: Subject, host: HostRows, step: int) -> np.ndarray | None:
    """A step's rows as the run's own files of the order have them, None if they are gone."""
    epoch, first = divmod(step * host.batch_size, host.epoch_rows)
    name = f"order-seed{host.seed}-rows{host.num_rows}-epoch{epoch}.u32"
    path = subject.folder / "train_data" / name
    if not path.is_file():
        return None
    return np.fromfile(path, dtype="<u4", count=host.batch_size, offset=4 * first).astype(np.int64)


def _natural(seen: _Seen) -> str:
    found = [f"{name} {num}" for name, num in (seen.natural or {}).items()]
    return f"natural examples in {seen.unplanned_rows:,} other rows: {listing(found) or 'none'}"


def _numbers(seen: _Seen, num_steps: int) -> dict[str, Any]:
    return {
        "steps_read": num_steps,
        "unplanned_rows": seen.unplanned_rows,
        "natural_examples": seen.natural,
    }
