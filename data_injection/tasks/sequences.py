"""Sequences of any text: canaries, poisons, facts; each example as often as its own `copies` say.

    tasks:
      - name: canaries
        family: sequences
        params: {file: canaries.jsonl, copies: 16}
        schedule: {kind: random}

The file: data_injection/tasks/sequence_file.py. An instance is EOS, the sequence, EOS, at a place
that is drawn; several share a row where a step has more instances than rows. There is no label, so
what measures answers (scores, interference, features) leaves these tasks out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

import numpy as np

from data_injection.config import TaskConfig
from data_injection.errors import ConfigError
from data_injection.files import replace_file
from data_injection.tasks.base import IntArray, Task
from data_injection.tasks.sequence_file import Encode, SequenceTable, kept_table, read_table

PARAMS = ("copies", "file")

TABLES = "sequences"
"""Folder of a run in which their tables are kept."""

UNUSED = (
    *("num_symbols", "symbols", "labels", "share_symbols_with", "share_labels_with"),
    "train_fraction",
)
"""Settings of the symbolic families that mean nothing here."""


class Sequences(Task):
    """The examples of a file; "train" are those with copies, "test" those held out."""

    family = "sequences"
    has_label = False
    min_symbols = 0

    def __init__(self, name: str, table: SequenceTable) -> None:
        self.name, self.table = name, table
        self.symbols = self.labels = np.zeros(0, dtype=np.int64)
        self.params = {"file_sha256": table.sha256}
        self.tokens = table.tokens  # type: ignore[assignment]  # of unequal lengths
        self.mirror = np.full(len(table.tokens), -1, dtype=np.int64)
        self.train = np.flatnonzero(table.copies)
        self.test = np.flatnonzero(table.copies == 0)
        self._pool = np.repeat(np.arange(len(table.copies)), table.copies)

    def examples(self) -> IntArray:
        raise NotImplementedError("they come from a file")

    @property
    def pool(self) -> IntArray:
        """Every example as often as its copies say: the task has this one epoch."""
        return self._pool

    @property
    def length(self) -> int:
        """Tokens of the longest."""
        return max(map(len, self.table.tokens))

    @cached_property
    def tokens_per_instance(self) -> Fraction:
        """The mean over all copies, with both EOS."""
        lengths = np.array([len(tokens) + 2 for tokens in self.table.tokens])
        return Fraction(int(lengths @ self.table.copies), max(len(self.pool), 1))

    def written(self, examples: IntArray, *, eos_token_id: int) -> Sequence[IntArray]:
        """EOS, the sequence, EOS."""
        ends = np.array([eos_token_id], dtype=np.int64)
        chosen = [self.table.tokens[example] for example in examples.tolist()]
        return [np.concatenate([ends, tokens, ends]) for tokens in chosen]

    def digest(self) -> str:
        """SHA-256 of the file's digest, the tokens and the copies."""
        sha = hashlib.sha256(self.table.sha256.encode())
        for tokens in (*self.table.tokens, self.table.copies):
            sha.update(np.ascontiguousarray(tokens, dtype="<i8").tobytes())
            sha.update(b"|")
        return sha.hexdigest()


def build_sequences(
    config: TaskConfig, *, seq_len: int, vocab_size: int, encode: Encode | None,
    tables: Mapping[str, SequenceTable], key: str,
) -> Sequences:  # fmt: skip
    """The task that a config describes, from its file or from the table kept of it."""
    default = TaskConfig()
    for name in UNUSED:
        if (value := getattr(config, name)) != getattr(default, name):
            rule = "has no effect on a sequences task"
            raise ConfigError(key=f"{key}.{name}", value=value, rule=rule, remedy="remove it")
    params = dict(config.params)
    if unknown := sorted(set(params) - set(PARAMS)):
        rule = f"must be of those that sequences has, {list(PARAMS)}"
        raise ConfigError(key=f"{key}.params", value=unknown, rule=rule)
    copies, file = params.get("copies", 1), params.get("file")
    if type(copies) is not int or copies < 0:
        rule = "must be a whole number, at least 0"
        raise ConfigError(key=f"{key}.params.copies", value=copies, rule=rule)
    if not isinstance(file, str):
        rule, remedy = "must name a file of sequences", "JSONL or Parquet, docs/memorization.md"
        raise ConfigError(key=f"{key}.params.file", value=file, rule=rule, remedy=remedy)
    table = tables.get(config.name) or read_table(
        file, copies=copies, encode=encode, vocab_size=vocab_size, key=f"{key}.params.file"
    )
    for name, tokens in zip(table.ids, table.tokens, strict=True):
        if len(tokens) + 2 > seq_len:
            rule = f"must have at most {seq_len - 2} tokens, a row of {seq_len} less an EOS on "
            rule += "either side"
            remedy = "cut it, or raise train.model.max_sequence_length"
            where = f"{key}.params.file: {name!r}"
            raise ConfigError(key=where, value=len(tokens), rule=rule, remedy=remedy)
    return Sequences(config.name, table)


def keep_tables(folder: str | Path, tasks: Sequence[Task]) -> None:
    """Write the tables of a run's sequences into its folder: what evaluates the run later needs
    neither their files nor a tokenizer."""
    for task in tasks:
        if isinstance(task, Sequences):
            path = _kept(folder, task.name)
            path.parent.mkdir(exist_ok=True)
            replace_file(path, json.dumps(task.table.as_json()))


def kept_tables(folder: str | Path, names: Sequence[str]) -> dict[str, SequenceTable]:
    """The tables that a run's folder keeps of tasks of these names."""
    paths = {name: _kept(folder, name) for name in names}
    return {name: kept_table(path) for name, path in paths.items() if path.is_file()}


def _kept(folder: str | Path, task: str) -> Path:
    return Path(folder) / TABLES / f"{quote(task, safe='')}.json"
