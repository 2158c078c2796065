"""What `olmo-ext eval` was given: runs, folders of runs, single checkpoints, Hugging Face folders.

for source in find_sources("runs/w32"):
    print(source.path, source.kind, source.step, source.run)
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from data_injection.errors import ConfigError
from eval.checkpoints.checkpoint import (
    IDENTITY_FILE,
    by_step,
    find_checkpoints,
    load_model_config,
    read_identity,
)
from eval.checkpoints.core import core_config
from eval.checkpoints.sharded import checkpoint_kind
from eval.run import PLAN, differences, find_below, load_identity, read_object, told_differences

_STEP = re.compile(r"step(\d+)(-unsharded)?")

PADDING = 512
"""Rows that an embedding may have beyond the vocabulary, to make a round number."""


@dataclass(frozen=True)
class Source:
    """One checkpoint to ask."""

    path: Path

    kind: str
    """As `eval.checkpoints.sharded.checkpoint_kind` says."""

    step: int | None
    """Optimizer steps taken; None if the folder's name does not say."""

    run: Path | None
    """The folder of the run that it is of, with its plan; None outside of any."""


def find_sources(path: str | Path) -> list[Source]:
    """The checkpoints at or below a path, run by run in the order of their steps.

    Raises FileNotFoundError, with what to give, if there is none.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no folder {path}; give a run, a folder of runs or a checkpoint")
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is a file; give the folder of the checkpoint it is of")
    path = by_step(path) if path.is_symlink() else path
    if checkpoint_kind(path) is not None:
        run = path.parent if (path.parent / PLAN).is_file() else None
        return [_source(path, run)]
    runs = [file.parent for file in find_below(path, PLAN)]
    if runs:
        found = [
            Source(checkpoint.path, "unsharded", checkpoint.step, run)
            for run in runs
            for checkpoint in find_checkpoints(run)
        ]
        found += [source for run in runs for source in _core_sources(run)]
        if not found:
            raise FileNotFoundError(
                f"no complete checkpoint in {', '.join(map(str, runs[:3]))}; let the run save one "
                "(train.save_interval_unsharded; OLMo-core with its ConfigSaverCallback, "
                "docs/olmo_core.md) before it is evaluated"
            )
        return found
    # Links count too, each target once: under the name that says a step if there is one.
    children = sorted(path.iterdir(), key=lambda child: bool(_STEP.fullmatch(child.name)))
    inside = {os.path.realpath(child): child for child in children if child.is_dir()}.values()
    sources = [_source(child, None) for child in inside if checkpoint_kind(child) is not None]
    if not sources:
        raise FileNotFoundError(
            f"no run (a folder with plan.json) in or below {path}, and no checkpoint of OLMo or "
            "transformers in it; give the folder of a run, of runs or of a checkpoint"
        )
    return sorted(sources, key=lambda source: (source.step or 0, source.path.name))


def _core_sources(run: Path) -> list[Source]:
    """A run's own checkpoints of OLMo-core, in the order of their steps."""
    paths = [path for path in run.glob("step*") if checkpoint_kind(path) == "core"]
    own = [source for path in paths if (source := _source(path, run)).run is not None]
    return sorted(own, key=lambda source: source.step or 0)


def _source(path: Path, run: Path | None) -> Source:
    kind = checkpoint_kind(path)
    assert kind is not None
    named = _STEP.fullmatch(path.name)
    step = int(named[1]) if named else None
    # A run's checkpoint says so itself; what merely lies in its folder is another's.
    own = run is not None and step is not None and (path / IDENTITY_FILE).is_file()
    return Source(path, kind, step, run if own and kind != "hf" else None)


def check_belongs(source: Source) -> None:
    """Raise ConfigError if a checkpoint in a run's folder was trained as another run.

    Another plan, corpus, seed, model, strategy: the records would call it by the wrong name.
    """
    assert source.run is not None
    theirs = read_identity(source.path)
    theirs = {key: value for key, value in theirs.items() if key not in ("step", "ledger")}
    if found := differences(theirs, load_identity(source.run), later=False):
        rule = f"was trained as another run than {source.run}/plan.json says (now: the checkpoint, "
        rule += "\n  ".join(["before: the run):", *told_differences(found)])
        remedy = "move it back to its own run's folder, or out of any and name its plan with --plan"
        raise ConfigError(key=source.path, rule=rule, remedy=remedy)


def check_vocabulary(source: Source, *, vocab_size: int) -> None:
    """Raise ConfigError if a model's token ids are not those that the tasks were drawn from."""
    if source.kind in ("hf", "core"):
        config = source.path / "config.json"
        model = core_config(source.path) if source.kind == "core" else read_object(config)
        try:
            rows = int(model["vocab_size"])
        except (ValueError, KeyError, TypeError):
            rule = "has no vocab_size"
            raise ConfigError(key=config, rule=rule, remedy="is it transformers' own?") from None
        fits, what = vocab_size <= rows < vocab_size + PADDING, f"vocab_size {rows}"
    else:
        size = load_model_config(source.path)["vocab_size"]
        fits, what = size == vocab_size, f"model.vocab_size {size}"
    if not fits:
        rule = (
            f"has {what}, but the tasks of the plan are drawn from a vocabulary of {vocab_size}: "
        )
        rule += "the same ids would be other tokens"
        remedy = "give the plan of a run with this model's tokenizer"
        raise ConfigError(key=source.path, rule=rule, remedy=remedy)
