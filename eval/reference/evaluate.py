"""Evaluate a run's checkpoints on the reference tasks of its own corpus; appends to its records.

    for checkpoint, num in evaluate_reference(Path("runs/w64")): print(checkpoint.step, num)

Idempotent: a checkpoint that stands in the records with the same list, number and seed is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_injection.corpus.manifest import load_manifest
from data_injection.errors import ConfigError
from data_injection.lock import lock_folder
from data_injection.philox import permutation
from data_injection.reference.grammar import TASKS, fresh_statements
from data_injection.reference.scan import Place, ReferenceScan, scan_reference, seen_operands
from data_injection.reference.vocabulary import TokenText
from data_injection.schedules.base import Geometry
from eval.audit.corpus import Corpus, find_corpus, tokenizer_file
from eval.audit.host_rows import HostRows, host_rows
from eval.audit.subject import Subject, open_run
from eval.checkpoints.checkpoint import Checkpoint, find_checkpoints, load_model
from eval.records import FILE_NAME, RecordWriter, records_of
from eval.reference.scan_file import FOLDER, list_name, load_scan, save_scan
from eval.reference.tasks import (
    Item,
    Logits,
    fresh_item,
    natural_item,
    natural_rates,
    score_statements,
)
from eval.run import read_run

FAMILY = "reference"
"""Of the records: no family that can be injected."""

MOST = 500
"""Distinct statements of a task that are measured."""

NUM_FRESH = 200

Progress = Callable[[int, int], object]
"""progress(tokens done, tokens in all)."""


@dataclass(frozen=True)
class ReferenceRun:
    """A run with the statements of its corpus."""

    subject: Subject
    corpus: Corpus
    text: TokenText
    scan: ReferenceScan
    name: str
    """Of the list of statements; see `list_name`."""

    geometry: Geometry

    def true_places(self, task: str) -> list[Place]:
        """Where the corpus makes a true statement of the task."""
        return [p for p in self.scan.places if p.statement.task == task and p.statement.correct]

    def rates(self, task: str) -> dict[str, Any]:
        """`natural_rates` of the task."""
        scanned = self.scan.num_scanned
        return natural_rates(self.true_places(task), num_scanned=scanned, geometry=self.geometry)


def find_reference(
    folder: Path,
    *,
    corpus: Path | None = None,
    sample_tokens: int | None = None,
    progress: Progress = lambda done, total: None,
) -> ReferenceRun:
    """The statements of a run's corpus, scanned or read from beside it.

    The list is kept in `reference/` beside a prepared corpus; beside the run, if the corpus has no
    folder of its own or may not be written.

    Args:
        corpus: folder of the token files, where they are no longer where the run read them.
        sample_tokens: scan an evenly spread sample of so many tokens.

    Raises:
        FileNotFoundError: no run, corpus or tokenizer there.
        ConfigError: another corpus than the run's, or a tokenizer that is no byte-level BPE.
    """
    subject = open_run(folder)
    where = find_corpus(subject, corpus)
    if isinstance(where, str):
        raise FileNotFoundError(f"{folder}: {where}")
    identity = subject.identity
    if where.folder is not None and load_manifest(where.folder).hash != identity["corpus_hash"]:
        rule = f"is not the corpus of {folder}"
        raise ConfigError(key=where.folder, rule=rule, remedy="name it with --corpus")
    path = tokenizer_file(subject, corpus)
    if path is None:
        raise FileNotFoundError(
            f"{folder}: its tokenizer {subject.setting('train.tokenizer.identifier')} is not here; "
            "name the folder that has it with --corpus"
        )
    text = TokenText.from_file(path)
    name = list_name(identity["corpus_hash"], sample_tokens=sample_tokens)
    homes = [home / FOLDER / f"{name}.parquet" for home in (where.folder, folder) if home]
    scan = next((found for home in homes if (found := load_scan(home)) is not None), None)
    if scan is None:
        done = 0

        def advance(num: int) -> None:
            nonlocal done
            done += num
            progress(done, total)

        dtype = np.dtype(identity["memmap_dtype"])
        total = sum(path.stat().st_size for path in where.paths) // dtype.itemsize
        total = min(total, sample_tokens or total)
        scan = scan_reference(
            where.paths, text, dtype=dtype, eos_token_id=identity["plan"]["eos_token_id"],
            max_tokens=sample_tokens, progress=advance,
        )  # fmt: skip
        _keep(scan, homes)
    plan = identity["plan"]
    return ReferenceRun(
        subject, where, text, scan, name, Geometry(plan["batch_size"], plan["seq_len"])
    )


def _keep(scan: ReferenceScan, homes: Sequence[Path]) -> None:
    for home in homes:
        try:
            save_scan(scan, home)
        except OSError:  # a corpus that may only be read
            if home == homes[-1]:
                raise
        else:
            return


def evaluate_reference(
    found: ReferenceRun, *, most: int = MOST, seed: int = 0, device: str = "cpu"
) -> Iterator[tuple[Checkpoint, int]]:
    """Measure every checkpoint; yields each with the number of records written.

    Split "train" is natural statements in their rows: the run trains on these, "seen" and "unseen"
    are those whose row it had read by then. Split "test" is fresh statements over operands that no
    statement of the (scanned) corpus has, without context.

    Args:
        most: distinct statements of a task, chosen by the seed.
        seed: of that choice, the foils, the nulls and the fresh statements.
    """
    folder = found.subject.folder
    run_fields = read_run(folder)["record_fields"]
    host = host_rows(found.subject.identity, found.corpus.paths)
    mark, eos = f"{found.name}/{most}/{seed}", found.subject.identity["plan"]["eos_token_id"]
    done = _done(folder, mark)
    with lock_folder(folder), RecordWriter(folder / FILE_NAME) as writer:
        for checkpoint in find_checkpoints(folder):
            if checkpoint.step in done:
                yield checkpoint, 0
                continue
            logits = _logits(load_model(checkpoint.path, device=device), device)
            seen = _rows_read(host, checkpoint.step)
            rows: list[dict[str, Any]] = []
            for task in TASKS:
                common = run_fields | _fields(found, task, checkpoint.step) | {"reference": mark}
                rows += [common | row for row in _counts(found, task)]
                for split, items in _items(found, task, host, seen, most=most, seed=seed).items():
                    scores = score_statements(logits, items, pad=eos, seed=seed)
                    rows += [common | {"split": split} | score for score in scores]
            writer.write(rows)
            yield checkpoint, len(rows)


def _logits(model: torch.nn.Module, device: str) -> Logits:
    return lambda ids_BT: model(ids_BT.to(device)).logits


def _done(folder: Path, mark: str) -> set[int]:
    frame = records_of(folder, "reference")
    return set(frame[(frame.metric == "natural_count") & (frame.reference == mark)].step)


def _rows_read(host: HostRows, step: int) -> np.ndarray:
    """Which rows of the corpus were in a batch of the first steps: a mask, shape (num_rows,)."""
    read = np.zeros(host.num_rows, dtype=bool)
    for before in range(min(step, host.epoch_rows // host.batch_size)):
        read[host.rows_of_step(before)] = True
    return read


def _fields(found: ReferenceRun, task: str, step: int) -> dict[str, Any]:
    """What a record says of a reference task; exposures are expected ones, not counted."""
    rates, geometry = found.rates(task), found.geometry
    return {
        "step": step,
        "tokens": step * geometry.batch_size * geometry.seq_len,
        "task": task,
        "family": FAMILY,
        "schedule": "natural",
        "exposures_per_example": rates["rate_per_step"] * step / max(rates["distinct"], 1),
    } | {k: v for k, v in rates.items() if k.startswith(("rate", "task_tokens"))}


def _counts(found: ReferenceRun, task: str) -> Iterator[dict[str, Any]]:
    rates = found.rates(task)
    false = sum(p.statement.task == task and not p.statement.correct for p in found.scan.places)
    said = {k: rates[k] for k in ("num_scanned", "distinct", "documents")}
    yield {
        **{"split": "train", "subset": "all", "metric": "natural_count", "value": rates["num"]},
        **{"false_statements": false, **said},
    }


def _items(
    found: ReferenceRun, task: str, host: HostRows, seen: np.ndarray, *, most: int, seed: int
) -> dict[str, list[Item]]:
    eos = found.subject.identity["plan"]["eos_token_id"]
    shared: dict[str, Any] = {"text": found.text, "eos_token_id": eos, "seed": seed}
    places = _distinct(found.true_places(task), most=most, seed=seed)
    natural = [item for place in places if (item := _in_row(place, host, seen, **shared))]
    fresh = fresh_statements(
        task, min(most, NUM_FRESH), seed=seed, avoid=seen_operands(found.scan.places, task)
    )
    splits = {"train": natural, "test": [fresh_item(one, **shared) for one in fresh]}
    return {split: items for split, items in splits.items() if items}


def _distinct(places: Sequence[Place], *, most: int, seed: int) -> list[Place]:
    """One place of each statement, `most` of them: copies are no further evidence."""
    order = permutation(len(places), seed=seed, purpose="reference/places").tolist()
    chosen: dict[str, Place] = {}
    for index in order:
        chosen.setdefault(places[index].statement.text, places[index])
    return list(chosen.values())[:most]


def _in_row(place: Place, host: HostRows, seen: np.ndarray, **shared: Any) -> Item | None:
    """The statement behind what precedes it in its row, as it was or will be trained on.

    None where it reaches over the end of its row or stands behind the last whole one of its file:
    no step trains on it as a whole.
    """
    number = host.row_at(place.file, place.start)
    if number is None:
        return None
    first = place.start // host.seq_len * host.seq_len
    if place.stop > first + host.seq_len or place.choice == first:
        return None
    row = host.tokens(np.array([number]))[0]
    return replace(natural_item(place, row, first=first, **shared), seen=bool(seen[number]))
