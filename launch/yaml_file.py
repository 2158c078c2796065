"""Our own YAML files, read so that nothing in them is lost: a key that stands twice is refused.

    read_yaml(Path("sweep.yaml"))
    read_yaml(Path("site.yaml"), as_text=True)      # every value as it is written

YAML's own readers take the last of two equal keys, and with it a cell of a sweep is gone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from data_injection.config import ConfigError


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
            raise ConfigError(
                f"line {line}: the key {key.value!r} was there before, in line "
                f"{first.start_mark.line + 1}{same}; rename or remove one"
            )
        seen[value] = key


def read_yaml(path: Path, *, as_text: bool = False) -> Any:
    """What a file holds. Raises ConfigError if it is not YAML or has a key twice."""
    try:
        # Both are safe loaders.
        loader = _TextLoader if as_text else _Loader
        return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # a date that is none, bytes that are no text
        raise ConfigError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None


def short(value: object, *, length: int = 80) -> str:
    """A value in a message: a whole file in one helps nobody."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 4]} ..."
