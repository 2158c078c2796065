"""What is typed over an experiment's file, key by key, and what OmegaConf has against the whole.

override(raw, "injection.tasks.-1.schedule.rate=3")
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data_injection.config import TaskConfig
from data_injection.errors import ConfigError

ENVIRONMENT = {"HOME", "LOGNAME", "SCRATCH", "SLURM_JOB_ID", "TMPDIR", "USER", "WORK"}
"""Variables of the environment that an experiment may name: places and names, never a secret."""


def check_environment(text: str, *, where: str) -> None:
    """Refuse to copy a variable of the environment, which may be a secret, into the run's files."""
    for name in re.findall(r"\$\{\s*oc\.env\s*:\s*([^,}\s]*)", text):
        if name.strip("'\"") not in ENVIRONMENT:
            rule = f"would copy the environment's {name} into the run's files, where others read it"
            remedy = f"write the value out. Taken are: {', '.join(sorted(ENVIRONMENT))}"
            raise ConfigError(key=f"{where}: ${{oc.env:{name}}}", rule=rule, remedy=remedy)


def override(raw: Any, word: str) -> None:
    """Set one dotted key, list entries by number: injection.tasks.0.schedule.rate=3."""
    key, separator, text = word.partition("=")
    if not separator:
        rule, remedy = "must be key=value", "for example train.seed=1"
        raise ConfigError(key="override", value=word, rule=rule, remedy=remedy)
    check_environment(text, where=f"override {key}")
    try:
        # Unresolved: ${train.run_name} means the run's name, which a later override may give.
        given = OmegaConf.create(f"value: {text}" if text else "value: null")
        value = OmegaConf.to_container(given, resolve=False)["value"]  # type: ignore[index,call-overload]
    except YAMLError as error:
        rule = f"must be YAML ({str(error).splitlines()[-1].strip()})"
        remedy = f"put text in quotes, {key}='\"...\"'"
        raise ConfigError(key=f"override {key}", value=text, rule=rule, remedy=remedy) from None
    OmegaConf.update(raw, _counted(raw, key), value, merge=True, force_add=True)


def _counted(raw: Any, key: str) -> str:
    """The key with lists' entries counted from the front: OmegaConf takes -9 of 5 for the second,
    and a word for an error of Python's."""
    words, node = [a or b for a, b in re.findall(r"\[([^\]]*)\]|([^.\[\]]+)", key)], raw
    for place, word in enumerate(words):
        if isinstance(node, ListConfig):
            if word not in map(str, range(-len(node), len(node))):
                rule = f"must be the number of an entry: 0 to {len(node) - 1}, or -1 for the last"
                raise ConfigError(key=".".join(words[: place + 1]), rule=rule)
            words[place] = str(int(word) % len(node))
        holds = isinstance(node, DictConfig | ListConfig)
        node = OmegaConf.select(node, f"[{words[place]}]") if holds else None
    return "".join(f"[{word}]" for word in words)


def explained(error: OmegaConfBaseException, path: Path, raw: Any) -> ConfigError:
    """The error in one line: file, key, what is wrong and, for an unknown key, the known ones."""
    key = str(getattr(error, "full_key", None) or getattr(error, "key", None) or "experiment")
    # OmegaConf names the keys of a list's entry from the entry on: find which one it refuses.
    tasks = OmegaConf.select(raw, "injection.tasks") if key != "experiment" else None
    for number, task in enumerate(tasks if isinstance(tasks, ListConfig) else ()):
        try:
            OmegaConf.merge(OmegaConf.structured(TaskConfig), task)
        except OmegaConfBaseException as same:
            if same.full_key == error.full_key:
                key = f"injection.tasks[{number}].{key}"
                break
    message = (error.msg or str(error)).splitlines()[0]
    known = list(getattr(getattr(error, "object_type", None), "__dataclass_fields__", {}))
    unhelped = " not in " in message and "Did you mean" not in message
    hint = f"known keys there: {', '.join(known)}" if known and unhelped else ""
    if joined := re.match(r"Key '([^':]+):([^']+)' not in", message):
        hint = f"put a blank after the colon: {joined[1]}: {joined[2]}"
    text = f"{path}: {key}: {message}{hint and f'; {hint}'}"
    return ConfigError(text, key=key, rule=message, remedy=hint)
