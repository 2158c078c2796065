"""Our own YAML files, read so that nothing in them is lost, and as what they should hold.

    read_yaml(Path("sweep.yaml"))                   # a key that stands twice is refused
    read_settings(Cluster, Path("site.yaml"), as_text=True)    # every value as it is written
    from_mapping(PhaseSettings, {"seeds": [0, 1, 2]})

YAML's own readers take the last of two equal keys, and with it a cell of a sweep is gone.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from data_injection.errors import ConfigError

T = TypeVar("T")

EMPTY = ("", "~", "null")
"""YAML's ways to leave a value out, as text."""

YAML_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")
}


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        _check_keys(self, node)
        return node


class _TextLoader(yaml.BaseLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        _check_keys(self, node)
        return node

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        node: yaml.Node | None = super().compose_node(parent, index)
        # As text every tag would be dropped without a word, and what it asks for not done.
        if node is not None and node.tag not in YAML_TAGS:
            what = f"line {node.start_mark.line + 1}: {node.tag}"
            raise ConfigError(key=what, rule="is no tag of YAML", remedy="remove it")
        return node


def _check_keys(loader: Any, mapping: yaml.MappingNode) -> None:
    """As written, before `<<` brings in others, which keys of the mapping's own may replace."""
    seen: dict[Any, yaml.ScalarNode] = {}
    for key, _ in mapping.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            continue
        value = loader.construct_object(key)
        if value in seen:
            first, line = seen[value], key.start_mark.line + 1
            same = "" if first.value == key.value else f", for YAML the same as {first.value!r}"
            rule = f"was there before, in line {first.start_mark.line + 1}{same}"
            remedy = "rename or remove one"
            raise ConfigError(key=f"line {line}: the key {key.value!r}", rule=rule, remedy=remedy)
        seen[value] = key


def read_yaml(path: Path, *, as_text: bool = False) -> Any:
    """What a file holds. Raises ConfigError if it is not YAML or has a key twice."""
    try:
        # Both are safe loaders.
        loader = _TextLoader if as_text else _Loader
        return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except ConfigError as error:
        raise error.told_of(path) from None
    except RecursionError:
        raise ConfigError(key=path, rule="is not YAML: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # a date that is none, bytes that are no text
        raise ConfigError(key=path, rule=f"is not YAML: {str(error).splitlines()[0]}") from None


def read_settings(kind: type[T], path: Path, *, as_text: bool = False) -> T:
    """A file as a settings dataclass. Raises ConfigError that names file, key, value and remedy."""
    try:
        return from_mapping(kind, read_yaml(path, as_text=as_text) or {}, as_text=as_text)
    except ConfigError as error:
        raise error.told_of(path) from None


def from_mapping(kind: type[T], mapping: Any, *, where: str = "", as_text: bool = False) -> T:
    """An instance of a settings dataclass; nested ones, lists and mappings of them too.

    What is left out keeps its default.

    Args:
        as_text: every value is text as it was written (YAML would take 24:00:00 for 86,400) and is
            read as what its field says; a block of lines is a list of them.

    Raises:
        ConfigError: a key that is no field, a value of another type, a field without default that
            is left out.
    """
    if not isinstance(mapping, Mapping):
        rule = "must be keys with values"
        raise ConfigError(key=where or "the settings", value=mapping, rule=rule)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for key, value in mapping.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            remedy = f"{meant}there are {', '.join(fields)}"
            raise ConfigError(key=place, rule="is no setting", remedy=remedy)
        if not (as_text and isinstance(value, str) and value in EMPTY):
            values[key] = _convert(value, hints[key], place, as_text)
    needed = [
        name
        for name, field in fields.items()
        if field.default is field.default_factory is dataclasses.MISSING and field.init
    ]
    if missing := [name for name in needed if name not in values]:
        rule = f"lacks {', '.join(missing)}"
        remedy = "there is no default for it"
        raise ConfigError(key=where or "the settings", rule=rule, remedy=remedy)
    return kind(**values)


def _convert(value: Any, hint: Any, where: str, as_text: bool) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        one = next(one for one in inner if one is not type(None))
        return _convert(value, one, where, as_text)
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, where=where, as_text=as_text)  # type: ignore[arg-type]
    if origin in (tuple, list):
        if as_text and isinstance(value, str):
            value = [line for line in value.splitlines() if line.strip()]
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(key=where, value=value, rule="must be a list")
        if not value and origin is tuple:
            raise ConfigError(key=where, value=value, rule="must be a list of at least one value")
        ones = enumerate(value)
        return origin(_convert(one, inner[0], f"{where}[{i}]", as_text) for i, one in ones)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(key=where, value=value, rule="must be keys with values")
        keys = [_convert(key, inner[0], where, as_text) for key in value]
        read = [_convert(one, inner[1], f"{where}.{key}", as_text) for key, one in value.items()]
        return dict(zip(keys, read, strict=True))
    return _plain(value, hint, where, as_text)


def _plain(value: Any, hint: type, where: str, as_text: bool) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if as_text and hint in (int, float) and isinstance(value, str):
        try:
            return hint(value)
        except ValueError:
            pass
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(key=where, value=value, rule=f"must be of type {hint.__name__}")
