"""The task families, and how a run's tasks get their tokens.

To add a family here: one file with a `Task` subclass, one line in TASKS, one test. Elsewhere it
needs no edit of ours: `family: mypkg.tasks:Canary`, see data_injection/extensions.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from data_injection.config import InjectionConfig, TaskConfig
from data_injection.errors import ConfigError
from data_injection.extensions import resolve
from data_injection.philox import permutation
from data_injection.tasks.base import IntArray, Task, is_whole
from data_injection.tasks.comparison import Comparison
from data_injection.tasks.group_composition import GroupComposition
from data_injection.tasks.modular_addition import ModularAddition
from data_injection.tasks.sequence_file import Encode, SequenceTable
from data_injection.tasks.sequences import Sequences, build_sequences

__all__ = ["TASKS", "Task", "build_tasks"]

TASKS: dict[str, type[Task]] = {
    "comparison": Comparison,
    "group_composition": GroupComposition,
    "modular_addition": ModularAddition,
}
"""Families with symbols and a label; `sequences` is made from a file, not from drawn tokens."""

GROUP = "olmo_ext.tasks"
"""Entry points of packages that bring families of their own."""


def find_family(name: str, *, key: str) -> type[Task]:
    """The family of this name, ours or a stranger's; ConfigError names `key` if there is none."""
    return resolve(name, {**TASKS, "sequences": Sequences}, group=GROUP, base=Task, key=key)


def build_tasks(
    config: InjectionConfig, *, vocab_size: int, reserved_tokens: Collection[int] = (),
    seq_len: int = 0, encode: Encode | None = None,
    tables: Mapping[str, SequenceTable] | None = None, eos_token_id: int | None = None,
) -> list[Task]:  # fmt: skip
    """The run's tasks with their tokens drawn: a pure function of the arguments.

    One seeded permutation of the vocabulary is handed out in the order of the tasks, so tasks never
    share a token unless they say so, and a task added at the end leaves the others unchanged (a
    task with explicit symbols that an earlier one drew is refused: list it first).

    Args:
        vocab_size: token ids are below it.
        reserved_tokens: ids that are never a symbol or label: EOS, padding, special, byte tokens.
        seq_len, encode, tables: for sequences; see `compile_plan`.
        eos_token_id: ends an example, so that none may hold it.

    Raises:
        ConfigError: unknown family, repeated name, too few tokens, shared or forbidden tokens,
            examples that cannot be trained, or a test example that is injected.
    """
    reserved = {int(t) for t in reserved_tokens} | {int(t) for t in config.exclude_tokens}
    pool = permutation(vocab_size, seed=config.seed, purpose="symbols")
    pool = pool[~np.isin(pool, sorted(reserved))]
    tasks: dict[str, Task] = {}
    owner: dict[int, str] = {}
    for index, task in enumerate(config.tasks):
        key = f"injection.tasks[{index}]"
        family = _check_task(task, key=key, names=tasks)
        free = issubclass(family, Sequences) or not family.has_label
        if free and family is not Sequences and tables is None:
            rule = "must be 'sequences' itself or have labels: layout, counts and scores know of "
            rule, remedy = rule + "no other that has none", "put what it is to write into the file"
            raise ConfigError(key=f"{key}.family", value=task.family, rule=rule, remedy=remedy)
        if issubclass(family, Sequences):
            tasks[task.name] = build_sequences(
                task, seq_len=seq_len, vocab_size=vocab_size, encode=encode, tables=tables or {},
                key=key,
            )  # fmt: skip
            continue
        if task.share_symbols_with is not None:
            source = tasks[task.share_symbols_with]
            if task.num_symbols > len(source.symbols):
                rule = f"must be at most {len(source.symbols)}, the symbols of {source.name!r}, "
                rule += "which it shares"
                raise ConfigError(key=f"{key}.num_symbols", value=task.num_symbols, rule=rule)
            symbols, labels = source.symbols[: task.num_symbols], source.labels
        else:
            symbols, labels = np.asarray(task.symbols or []), np.asarray(task.labels or [])
        family_labels = family.count_labels(task.params)
        lent = np.asarray([], dtype=np.int64)
        if task.share_labels_with is not None:
            labels = lent = tasks[task.share_labels_with].labels
            if len(lent) != family_labels:
                rule = f"must name a task of {family_labels} labels, as {task.name!r} needs, "
                rule += f"not of {len(lent)}"
                where, value = f"{key}.share_labels_with", task.share_labels_with
                raise ConfigError(key=where, value=value, rule=rule)
        num_symbols = 0 if len(symbols) else task.num_symbols
        num_labels = 0 if len(labels) == family_labels else family_labels
        pool = pool[~np.isin(pool, [*owner, *symbols, *labels])]
        if num_symbols + num_labels > len(pool):
            rule = f"({task.name}) needs {num_symbols + num_labels} fresh tokens but only "
            rule += f"{len(pool)} of the vocabulary's {vocab_size} are left ({len(reserved)} "
            rule += f"reserved, {len(owner)} held by earlier tasks)"
            remedy = "lower num_symbols, use fewer tasks or share_symbols_with"
            raise ConfigError(key=key, rule=rule, remedy=remedy)
        if num_symbols:
            symbols = pool[:num_symbols]
        if num_labels:
            labels = pool[num_symbols : num_symbols + num_labels]
        labels = labels[:family_labels]
        own, borrowed = np.concatenate([symbols, labels]).astype(np.int64), set(lent.tolist())
        _check_tokens(task, key, own, owner, reserved, lent=borrowed, vocab_size=vocab_size)
        tasks[task.name] = made = family(
            task.name, symbols=symbols, labels=labels, seed=config.seed,
            train_fraction=task.train_fraction, params=task.params,
        )  # fmt: skip
        # The name that finds a stranger's class again stands in plan, records and exports.
        made.family = task.family
        _check_table(made, key, vocab_size=vocab_size)
        if tables is None:  # a run that is there is measured as it was trained
            _check_unseen(made, key, eos_token_id=eos_token_id)
    _check_held_out([one for one in tasks.values() if isinstance(one, Sequences)], tables or {})
    return list(tasks.values())


def _check_table(task: Task, key: str, *, vocab_size: int) -> None:
    """A family's own table holds token ids of the vocabulary, and its splits are places in it."""
    num, ids = len(task.tokens), dict.fromkeys(("tokens", "label_tokens"), vocab_size)
    for name, bound in (ids | dict.fromkeys(("train", "test", "pool", "mirror"), num)).items():
        values, least = getattr(task, name), -1 if name == "mirror" else 0
        whole = is_whole(values, ndim=2 if name == "tokens" else 1) and len(values) > 0
        short = name == "mirror" and len(values) != num
        if not whole or short or values.min() < least or values.max() >= bound:
            value = [int(values.min()), "...", int(values.max())] if whole else values
            rule = f"must be an array of {num if least else 'some'} whole numbers in [{least}, "
            rule += f"{bound}), {'the vocabulary' if name in ids else 'its examples'}"
            raise ConfigError(key=f"{key}: {task.family}.{name}", value=value, rule=rule)


def _check_unseen(task: Task, key: str, *, eos_token_id: int | None) -> None:
    """No example holds the EOS that ends it, and no test example is also injected."""
    rows, key = task.tokens.astype(np.int64, copy=False), f"{key}: {task.family}.tokens"
    for one in rows[(rows == eos_token_id).any(axis=1)]:
        rule = f"must not hold EOS, {eos_token_id}, which ends an example"
        raise ConfigError(key=key, value=one.tolist(), rule=rule)
    # Rows of one hash are compared: sorting whole rows takes ten times as long.
    hashed = rows @ np.random.default_rng(0).integers(2**63, size=rows.shape[1])
    same = task.test[np.isin(hashed[task.test], hashed[task.pool])]
    for one in rows[same]:
        if (rows[task.pool] == one).all(axis=1).any():
            rule = f"must not be injected and test: {len(same)} of {len(task.test)} test ones are"
            raise ConfigError(key=key, value=one.tolist(), rule=rule, remedy="list each once")


def _check_held_out(tasks: Sequence[Sequences], kept: Collection[str]) -> None:
    """What one task of sequences holds out none injects; a run's `kept` tables are as trained."""
    injected = {
        task.table.tokens[example].tobytes(): f"{task.table.ids[example]!r} of task {task.name!r}"
        for task in tasks
        for example in task.train.tolist()
    }
    for task in tasks:
        for example in task.test.tolist():
            same = injected.get(task.table.tokens[example].tobytes())
            if same is not None and task.name not in kept:
                rule = f"must not be held out: {same} has the same tokens and is injected"
                key, value = f"injection.tasks: {task.name}", task.table.ids[example]
                raise ConfigError(key=key, value=value, rule=rule, remedy="remove one of them")


def _check_task(task: TaskConfig, *, key: str, names: Collection[str]) -> type[Task]:
    """The task's family, after the checks that need no tokens."""
    if task.name in ("", "???") or task.name in names:
        rule = "must be given and unique in the run"
        raise ConfigError(key=f"{key}.name", value=task.name, rule=rule)
    family = find_family(task.family, key=f"{key}.family")
    if not family.has_label:
        return family
    for name in ("share_symbols_with", "share_labels_with"):
        source = getattr(task, name)
        if source is not None and source not in names:
            rule, remedy = "must name an earlier task", f"earlier tasks: {sorted(names)}"
            raise ConfigError(key=f"{key}.{name}", value=source, rule=rule, remedy=remedy)
    shared, labels = task.share_symbols_with is not None, task.share_labels_with is not None
    if shared and (task.symbols or task.labels or labels):
        rule = "excludes symbols, labels and share_labels_with: give either, not both"
        remedy = "it shares the labels too"
        raise ConfigError(key=f"{key}.share_symbols_with", rule=rule, remedy=remedy)
    if labels and task.labels:
        rule = "excludes labels: give either, not both"
        raise ConfigError(key=f"{key}.share_labels_with", rule=rule)
    try:
        least, num_labels = family.least_symbols(task.params), family.count_labels(task.params)
    except ConfigError as error:
        raise error.under(key) from None
    if not task.symbols and task.num_symbols < least:
        chosen = f" with {task.params}" if task.params else ""
        rule = f"must be at least {least} for {task.family}{chosen}"
        raise ConfigError(key=f"{key}.num_symbols", value=task.num_symbols, rule=rule)
    if task.labels and (num := len(task.labels)) != num_labels:
        rule = f"must hold {num_labels} token ids for {task.family}"
        remedy = "remove it to have them drawn"
        raise ConfigError(key=f"{key}.labels", value=num, rule=rule, remedy=remedy)
    return family


def _check_tokens(
    task: TaskConfig, key: str, tokens: IntArray, owner: dict[int, str], reserved: set[int], *,
    lent: set[int], vocab_size: int,
) -> None:  # fmt: skip
    """Every token inside the vocabulary, not reserved, and not another task's unless shared or
    lent as a label."""
    if outside := [int(t) for t in tokens if not 0 <= t < vocab_size]:
        rule = f"must have token ids in [0, {vocab_size}), the vocabulary"
        raise ConfigError(key=key, value=outside[:5], rule=rule)
    if forbidden := [int(t) for t in tokens if int(t) in reserved]:
        rule = "must not have token ids that are EOS, padding, special, byte or excluded tokens"
        raise ConfigError(key=key, value=forbidden[:5], rule=rule, remedy="choose others")
    clash = [t for t in tokens.tolist() if owner.get(t, task.name) != task.name and t not in lent]
    if clash and task.share_symbols_with is None:
        first = owner[clash[0]]
        rule = f"must not have tokens that already belong to task {first!r}"
        remedy = f"set share_symbols_with: {first} if that is meant, choose other symbols, or "
        remedy += "list this task before those that draw theirs"
        raise ConfigError(key=key, value=clash[:5], rule=rule, remedy=remedy)
    for token in tokens.tolist():
        owner.setdefault(token, task.name)
