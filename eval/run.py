"""A run's folder: the names of what lies in it, and how each is read.

    for folder in run_folders("runs"):
        print(read_run(folder)["num_steps"], read_if_whole(folder / MARKER))

Besides these it holds records.jsonl (`eval.records`), ledger/ (`data_injection.ledger`), logs/ and
checkpoints (`eval.checkpoints`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_injection.errors import ConfigError
from data_injection.files import linked_folders, read_json

PLAN = "plan.json"
"""The identity of the run's stream: plan, corpus, seeds. A folder with it is a run."""

RUN = "run.json"
"""Each start: command, commit, versions; and the fields that all records of the run share."""

EXPERIMENT = "experiment.yaml"
"""What was asked for, so that it can be asked again."""

MARKER = "requeue.marker"
"""Written when a signal or the time limit has ended a run before its last step: what a batch script
decides by."""

MOST_NESTED = 100
"""Levels of a YAML file; an experiment has six."""

DIVERGED = "diverged.json"
"""Written when a run has ended because its numbers were not finite any more: step, why, and the
last checkpoint (null if none)."""

FAILED = "failed.json"
"""Written when an error has ended a start: rank, SLURM's job and restart, the error's class, its
text and, of bad input, key, value, rule and remedy. The next start removes it."""

KINDS = {
    **dict.fromkeys(("plan", "train", "record_fields", "tasks"), dict),
    **dict.fromkeys(("plan_hash", "corpus_hash", "memmap_dtype"), str),
    **dict.fromkeys(("starts", "extensions", "reserved_tokens"), list),
    **dict.fromkeys(("data_seed", "vocab_size", "step"), int),
}
"""What stands under these names, in whichever file: one of another shape is refused as a whole."""

RECORDS = "records.jsonl"
"""What was measured; see `eval.records`."""

PROGRESS = "progress.json"
"""The last step taken, and when."""

SPEED = "speed.jsonl"
"""Steps a second of each hundredth of the run, a line each; a later start goes on below."""

AUDIT = "audit.json"
"""What `olmo-ext audit --json` found, if it was asked to write it here; a report shows it."""


LATER = ("data.generate_attention_mask", "data.generate_doc_lengths", "fsdp.precision")
"""Settings that identities tell where they are set; those of older runs tell none of them."""


def read_run(folder: str | Path) -> dict[str, Any]:
    """run.json. Raises FileNotFoundError if it is not there, ConfigError if it is not whole."""
    return read_object(Path(folder) / RUN)


def extensions_of(folder: str | Path) -> list[dict[str, Any]]:
    """The families and callbacks of others that a run used, as run.json keeps them; [] if none."""
    return read_if_whole(Path(folder) / RUN).get("extensions", [])


def load_identity(folder: str | Path) -> dict[str, Any]:
    """The identity of a run's stream as it was saved, plan.json; raises as `read_run`."""
    return read_object(Path(folder) / PLAN)


def told_settings(train: Mapping[str, Any], keys: Iterable[str] = LATER) -> dict[str, Any]:
    """Those of some of the engine's settings that are set, by key; FSDP's only under FSDP."""
    told = {}
    for key in keys:
        section, _, name = key.rpartition(".")
        value = ((train.get(section) if section else train) or {}).get(name)
        if value and (section != "fsdp" or train.get("distributed_strategy") == "fsdp"):
            told[key] = value
    return told


def with_config(
    identity: dict[str, Any], folder: Path, keys: Iterable[str] = LATER
) -> dict[str, Any]:
    """An identity with those of the settings that only the config.yaml in its folder tells."""
    try:
        told = told_settings(load_config(folder / "config.yaml"), keys)
    except (OSError, ConfigError):
        return identity
    return identity | {"train": told | identity.get("train", {})} if told else identity


def differences(
    ours: dict[str, Any], theirs: dict[str, Any], *, prefix: str = "", later: bool = True
) -> list[tuple[str, Any, Any]]:
    """(dotted key, ours, theirs) for all that differs between two identities or canonical plans;
    without the settings of `LATER` between files of a run, which may have begun before them."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted({*ours, *theirs}.difference(() if later else LATER)):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, prefix=f"{prefix}{key}.", later=later)
        elif a != b:
            found.append((f"{prefix}{key}", a, b))
    return found


def told_differences(found: Iterable[tuple[str, Any, Any]], *, then: str = "before") -> list[str]:
    """A line for each of `differences`, in the words of every refusal."""
    return [f"{key}: {ours!r} now, {theirs!r} {then}" for key, ours, theirs in found]


def read_if_whole(path: Path) -> dict[str, Any]:
    """Any JSON object of a run's folder; empty where it is not there or not whole.

    For those who tell of runs as they are found (status, report) and must not fail on one.
    """
    try:
        return read_object(path)
    except (OSError, ConfigError):
        return {}


def whole(found: dict[str, Any], key: str) -> int | None:
    """A count of such a file; None where it holds none: lost, torn, or of another type."""
    value = found.get(key)
    return value if type(value) is int and value >= 0 else None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a run or a checkpoint; raises as `read_run`."""
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no {path.name} in {path.parent}; is it the folder of a run?"
        ) from None
    if not isinstance(value, dict):
        raise ConfigError(key=path, rule="is not a JSON object", remedy="restore or remove it")
    for key, kind in KINDS.items():
        found = value.get(key, kind())
        # An export says null of what its weights do not: stock's have neither plan nor corpus.
        if not isinstance(found, kind) and not (found is None and "stream" in value):
            name = type(found).__name__
            rule = f"is {name}, not {kind.__name__}"
            raise ConfigError(key=f"{path}: {key!r}", rule=rule, remedy="restore it")
    return _Object(value, path)


class _Object(dict[str, Any]):
    """A file's object: whoever needs a key that it lacks is told of the file."""

    def __init__(self, value: dict[str, Any], path: Path) -> None:
        super().__init__(value)
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return _Object, (dict(self), self.path)

    def __missing__(self, key: str) -> Any:
        raise ConfigError(key=self.path, rule=f"lacks {key!r}", remedy="restore or remove it")


def load_config(
    path: Path, *, rule: str = "must hold keys with values", remedy: str = "restore it"
) -> Any:
    """A YAML file of a run or a checkpoint, as OmegaConf has it; raises as `read_run`.

    rule, remedy: said of a file that holds anything but keys with values. A tag that YAML itself
    does not know (!secret, !!python/...) is refused.
    """
    import yaml
    from omegaconf import OmegaConf

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        # The C parser that OmegaConf takes builds by recursion, and deep nesting kills the process.
        for event in yaml.parse(path.read_text(encoding="utf-8"), Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_NESTED:
                raise ConfigError(key=path, rule="is not YAML: it is nested too deeply")
        config = OmegaConf.load(path)
    except ConfigError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        config = None  # OmegaConf's way to say that it is a number
    except (yaml.YAMLError, ValueError) as error:
        # YAML's own words in one line: what is wrong and where.
        mark, said = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        what = f"is not YAML: {said or (str(error).splitlines() or [''])[0]}{line}"
        raise ConfigError(key=path, rule=what) from None
    if not OmegaConf.is_dict(config):
        raise ConfigError(key=path, rule=rule, remedy=remedy)
    return config


def run_folders(path: str | Path) -> list[Path]:
    """Folders of runs (with a plan.json) at or below a path, sorted; FileNotFoundError if none."""
    if not (found := [file.parent for file in find_below(path, PLAN)]):
        raise FileNotFoundError(f"no run (a folder with {PLAN}) in or below {path}")
    return found


def find_below(path: str | Path, name: str) -> list[Path]:
    """The files of a name in or below a folder, sorted; `name` may have folders ("logs/x").

    Follows links, for a run is often moved to scratch and linked back; each folder counts once,
    however many links lead there, so that a loop of links ends.
    """
    return sorted(
        file for folder in linked_folders(Path(path)) if (file := folder / name).is_file()
    )


def left_out(path: str | Path) -> list[str]:
    """What `find_below` cannot look into, each with its reason: links to nothing, shut folders."""
    found: list[str] = []
    if Path(path).is_file():
        return found

    def shut(error: OSError) -> None:
        found.append(f"{error.filename}: {error.strerror}")

    for folder in linked_folders(Path(path), shut):
        for child in sorted(folder.iterdir()):
            if child.is_symlink() and not child.exists():
                found.append(f"{child}: a link to {os.readlink(child)}, which is not there")
    return found
