"""The pages of the reference that are made from the code: commands, config keys, record fields.

python packaging/site/reference.py config      # print one
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import get_args, get_type_hints

import griffe
import typer.cli
from typer.main import get_command

ROOT = Path(__file__).parents[2]


def cli() -> str:
    """Every verb with its arguments, options, defaults and an example, as --help has them."""
    from launch.cli import app

    command = get_command(app)
    context = command.context_class(command, info_name="olmo-ext")
    text = typer.cli.get_docs_for_click(obj=command, ctx=context, name="olmo-ext", title="Commands")
    return str(text).replace("][", r"]\[")  # which Markdown takes for a link


def config() -> str:
    """Every key of an experiment: type, default, rule and, in its words, unit and meaning."""
    from olmo_ext.callbacks.build import CALLBACKS

    ours = [
        ("", "olmo_ext.config.ExperimentConfig"),
        ("injection.", "data_injection.config.InjectionConfig"),
        ("injection.tasks[].", "data_injection.config.TaskConfig"),
        ("injection.tasks[].schedule.", "data_injection.config.ScheduleConfig"),
        *((f"callbacks.{name}.", f"{c.__module__}.{c.__name__}") for name, c in CALLBACKS.items()),
    ]
    parts = [
        "# Config keys\n\nMade from the dataclasses that an experiment is read into. An override "
        "has dots, and numbers for list entries: `-o injection.tasks.0.schedule.rate=3`.\n"
    ]
    for prefix, path in ours:
        rows = (
            (f"`{prefix}{name}`", code(kind), code(default), meaning)
            for name, kind, default, meaning in fields(path)
        )
        title = prefix.rstrip(".") or "The experiment"
        parts.append(f"## {title}\n\n" + table(("key", "type", "default", "meaning"), rows))
    parts.append(
        "## train\n\nThe engine's own `TrainConfig` (ai2-olmo 0.6.0). The rules are ours: a value "
        "that breaks one is refused before any work starts.\n"
    )
    parts.append(table(("key", "type", "default", "rule"), engine_rows()))
    return "\n".join(parts)


def engine_rows() -> Iterator[tuple[str, ...]]:
    """The engine's keys: what it takes, and our rules for it (olmo_ext/checks.py)."""
    from olmo.config import TrainConfig

    from olmo_ext.checks import NUMBERS, RULES

    for key, kind, default in settings(TrainConfig, "train"):
        number = NUMBERS.get(".".join(key.split(".")[-2:]))
        rules = [str(number)] if number else []
        rules += [f"{rule.rule}" for rule in RULES if rule.key == key]
        text = "; ".join(dict.fromkeys(rules)).replace("{{}}", "{}")
        yield f"`{key}`", code(kind), code(default), re.sub(r"\{(train\.[\w.]+)\}", r"`\1`", text)


def settings(kind: type, prefix: str) -> Iterator[tuple[str, str, str]]:
    """(key, type, default) of a dataclass and of the sections in it."""
    hints = get_type_hints(kind)
    for one in dataclasses.fields(kind):
        hint, key = hints[one.name], f"{prefix}.{one.name}"
        section = next((h for h in (hint, *get_args(hint)) if dataclasses.is_dataclass(h)), None)
        if section is not None and isinstance(section, type) and "list" not in str(hint).lower():
            yield from settings(section, key)
            continue
        default = one.default if one.default is not dataclasses.MISSING else None
        if one.default_factory is not dataclasses.MISSING:
            default = one.default_factory()
        yield key, typed(hint), "" if default == "???" else str(getattr(default, "value", default))


def typed(hint: object) -> str:
    """A type by its short name; a choice by its values."""
    for one in (hint, *get_args(hint)):
        if isinstance(one, type) and issubclass(one, Enum):
            return " or ".join(str(member.value) for member in one)
    name = hint.__name__ if isinstance(hint, type) and "[" not in str(hint) else str(hint)
    return re.sub(r"\b(?:typing|olmo\.\w+|pathlib)\.", "", name)


def records() -> str:
    """The fields of records.jsonl, from the constants that readers and writers share."""
    from eval import records

    source = read("eval.records")
    lines = "\n".join(source["REQUIRED"].lines)
    said = dict(re.findall(r'"(\w+)",  # (.+)', lines))
    required = ((f"`{name}`", said.get(name, "")) for name in records.REQUIRED)
    metrics_of: dict[tuple[str, ...], list[str]] = {}
    for metric, names in sorted(records.OUTCOMES_OF.items()):
        metrics_of.setdefault(names, []).append(metric)
    outcomes = ((named(metrics), named(names)) for names, metrics in metrics_of.items())
    return "\n".join(
        (
            "# Record fields\n\nA run's `records.jsonl` has one JSON object a measurement; "
            "[measurement](../measurement.md) says what each metric means.\n",
            f"## In every record\n\n{doc(source['REQUIRED'])}\n",
            table(("field", "meaning"), required),
            f"## Outcomes\n\n{named(sorted(records.OUTCOMES))}. {doc(source['OUTCOMES'])}\n\n"
            f"{doc(source['OUTCOMES_OF'])}\n",
            table(("metric", "outcomes of its own"), outcomes),
            f"## What follows from the run\n\n{doc(source['FOLLOWING'])}\n",
            f"{named(sorted(records.FOLLOWING))}.\n",
            "Every other field is a coordinate: records that differ in one are two measurements.\n",
        )
    )


def fields(path: str) -> Iterator[tuple[str, str, str, str]]:
    """(name, type, default, docstring) of each field of a dataclass, in its order."""
    module, _, name = path.rpartition(".")
    for member in read(module)[name].members.values():
        if member.is_attribute and "property" not in member.labels:
            default = re.sub(
                r"field\(default_factory=(?:lambda: )?(.*)\)", r"\1", str(member.value)
            )
            default = {"list": "[]", "dict": "{}", "'???'": ""}.get(default, default)
            yield member.name, str(member.annotation), default, doc(member)


def read(module: str) -> griffe.Module:
    """A module as griffe reads it from its file, not imported."""
    file = ROOT / f"{module.replace('.', '/')}.py"
    return griffe.visit(module, filepath=file, code=file.read_text())


def doc(member: griffe.Object | griffe.Alias) -> str:
    assert member.docstring is not None, f"{member.path} has no docstring"
    return " ".join(member.docstring.value.split())


def named(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """As Markdown; a bar in a type would end its cell, within backticks too."""
    lines = ([c.replace(" | ", " or ") for c in row] for row in [head, ("---",) * len(head), *rows])
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


PAGES = {"cli": cli, "config": config, "records": records}

if __name__ == "__main__":
    print(PAGES[sys.argv[1]]())
