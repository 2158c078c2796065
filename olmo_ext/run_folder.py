"""A run's folder: whose it is, what is written into it at a start, what is left of an earlier one.

    checkpoint = check_folder(folder, resume=True, identity=identity)

It holds experiment.yaml, config.yaml (stock), plan.json (the run's identity), run.json (each start:
command, commit, versions), records.jsonl, ledger/ and the engine's checkpoints.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import shlex
import shutil
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from data_injection.errors import ConfigError
from data_injection.extensions import origins
from data_injection.files import replace_file
from data_injection.ledger import (
    LEDGER_FOLDER,
    LedgerWriter,
    Position,
    position_from,
    read_segments,
)
from data_injection.lineage import lineage
from data_injection.tasks.sequences import TABLES, keep_tables
from eval.checkpoints.checkpoint import (
    IDENTITY_FILE,
    Checkpoint,
    find_checkpoints,
    verify_checkpoint,
)
from eval.commit import git_commit
from eval.records import FILE_NAME as RECORDS
from eval.records import records_of
from eval.run import (
    EXPERIMENT,
    FAILED,
    MARKER,
    PLAN,
    PROGRESS,
    RUN,
    read_if_whole,
    read_object,
    read_run,
    whole,
)
from olmo_ext.build import check_same_run
from olmo_ext.compat import link_latest
from olmo_ext.config import save_experiment
from olmo_ext.engines.ranks import get_world_size
from olmo_ext.prepare import Prepared

log = logging.getLogger(__name__)

OURS = {
    *(EXPERIMENT, PLAN, RUN, MARKER, FAILED, PROGRESS, RECORDS, LEDGER_FOLDER, "config.yaml"),
    *("train_data", "data-indices", "latest-unsharded", TABLES, "wandb", "wandb_id"),
}
"""What a start writes into a run's folder, beside checkpoints and what the engine logs."""


def check_folder(folder: Path, *, resume: bool, identity: dict[str, Any]) -> None:
    """Raise ConfigError if the folder is in use, or is another run's."""
    if not (names := _names(folder)) or _took_no_step(folder, names):
        return
    if not resume:
        last, found = whole(read_if_whole(folder / RUN), "num_steps"), find_checkpoints(folder)
        if last is not None and found and found[-1].step >= last:
            rule = f"is in use by a run that is finished (step {last:,} of {last:,})"
            remedy = f"`olmo-ext report {folder}` shows it, --resume with a longer "
            remedy += "train.max_duration goes on with it; for a new run choose another folder"
            raise _taken(folder, rule, remedy)
        remedy = "pass --resume to go on with it, or choose another folder"
        raise _taken(folder, "is in use by an earlier run", remedy)
    plan_file = folder / PLAN
    if not plan_file.is_file():
        rule = f"holds files but no {PLAN}, so it is not a run of olmo-ext"
        raise _taken(folder, rule, "choose another folder")
    try:
        before = read_object(plan_file)
    except ValueError as error:
        rule = f"cannot be read ({error})"
        remedy = f"restore it from a checkpoint's {IDENTITY_FILE} (without `step` and `ledger`)"
        raise ConfigError(key=str(plan_file), rule=rule, remedy=remedy) from None
    check_same_run(identity, before, where=str(folder))


def _taken(folder: Path, rule: str, remedy: str) -> ConfigError:
    return ConfigError(key="train.save_folder", value=str(folder), rule=rule, remedy=remedy)


def _names(folder: Path) -> set[str]:
    """What a folder holds, but for what says nothing of a run."""
    # A start that died before plan.json was whole has left its temporary name, and no work.
    found = folder.iterdir() if folder.is_dir() else ()
    return {p.name for p in found if p.name != "logs" and p.suffix != ".tmp" and p.name[0] != "."}


def _took_no_step(folder: Path, names: set[str]) -> bool:
    """Whether a run began there and ended before its first step, and nobody keeps anything else."""
    others = {name for name in names - OURS if not name.startswith("step0-")}
    if others or PLAN not in names:
        return False
    segments = read_segments(folder / LEDGER_FOLDER) if LEDGER_FOLDER in names else {}
    if any(len(s.rows) or s.problems or s.torn for s in segments.values()):
        return False
    # The steps before another's checkpoint, which it began with, are not its own.
    start = min((s.start_step for s in segments.values()), default=0)
    no_progress = read_if_whole(folder / PROGRESS).get("step", start) == start
    # Without the progress callback, and before the first instance, only records say so.
    return no_progress and bool((records_of(folder).step == start).all())


def take_over(folder: Path, *, resume: bool, identity: dict[str, Any]) -> None:
    """Empty a folder in which no step was taken, for a corrected command; the lock must be held."""
    if not _took_no_step(folder, names := _names(folder)):
        return
    if resume and read_if_whole(folder / PLAN) == json.loads(json.dumps(identity)):
        return
    log.warning("%s: no step was taken there; it is taken over", folder)
    # plan.json last: until then a start that is killed here finds the same folder again.
    for name in sorted(names, key=lambda name: name == PLAN):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def clear_unfinished(folder: Path, identity: dict[str, Any]) -> Path | None:
    """Put aside what an earlier start left that is not whole; the lock must be held.

    Checkpoints that a killed writer had not renamed into place yet are removed, those that lack a
    file or are not what was written (SHA256SUMS) are renamed, never deleted; the run goes on from
    the latest whole one, which is returned, and trains the steps after it again.

    Raises ConfigError if there were checkpoints and all are damaged, or if it is another run's.
    """
    for path in folder.glob("step*-unsharded-tmp"):
        log.warning("%s was never finished; removed", path)
        shutil.rmtree(path)
    (folder / MARKER).unlink(missing_ok=True)
    checkpoints = find_checkpoints(folder)
    complete = {checkpoint.path for checkpoint in checkpoints}
    for path in folder.glob("step*-unsharded"):
        if path not in complete and not path.is_symlink():
            _set_aside(path, "incomplete", "a file is missing")
    damaged: list[Checkpoint] = []
    while checkpoints:
        latest = checkpoints[-1]
        problems = verify_checkpoint(latest.path)
        theirs = _read_identity(latest.path)
        if theirs is None and not problems:
            problems = [f"{IDENTITY_FILE} cannot be read"]
        if not problems:
            assert theirs is not None
            check_same_run(identity, theirs, where=str(latest.path))
            link_latest(latest.path)  # a kill between renaming and linking left it behind
            return latest.path
        _set_aside(latest.path, "damaged", "; ".join(problems))
        damaged.append(checkpoints.pop())
    if damaged:
        names = ", ".join(checkpoint.path.name for checkpoint in damaged)
        rule = f"holds no checkpoint that is whole: every checkpoint is damaged ({names}, renamed)"
        raise _taken(folder, rule, "restore one, or start a new run in another train.save_folder")
    return None


def _set_aside(path: Path, what: str, why: str) -> None:
    aside = path.with_name(f"{path.name}.{what}-{secrets.token_hex(3)}")
    log.warning("%s is %s (%s); it is now %s", path, what, why, aside.name)
    path.rename(aside)


def _read_identity(checkpoint: Path) -> dict[str, Any] | None:
    """The identity in a checkpoint without what is the checkpoint's own; None if unreadable."""
    try:
        identity = read_object(checkpoint / IDENTITY_FILE)
    except ValueError:
        return None
    return {key: value for key, value in identity.items() if key not in ("step", "ledger")}


@dataclass(frozen=True)
class LedgerStart:
    """Where the next segment of the ledger begins."""

    step: int
    parent: Position | None
    above: int
    """Number of a segment that was once there."""

    digest: int | None
    """Of the stream before; None where the checkpoint is from before there was a ledger."""

    lost: tuple[str, ...] = ()
    """What the ledger does not hold any more of the steps before."""


def find_ledger_start(
    folder: Path, checkpoint: Path | None, *, new_ledger: bool = False
) -> LedgerStart:
    """What a segment that goes on from a checkpoint (None: from nothing) must know.

    Args:
        new_ledger: go on although the ledger has lost what the checkpoint was trained on.

    Raises:
        ConfigError: it has lost it.
    """
    if checkpoint is None:
        return LedgerStart(step=0, parent=None, above=-1, digest=0)
    place: Any = read_object(checkpoint / IDENTITY_FILE).get("ledger")
    step = _step(checkpoint)
    parent = position_from(place, where=f"{checkpoint}/{IDENTITY_FILE}")
    if parent is None:
        return LedgerStart(step=step, parent=None, above=-1, digest=None)
    digest = place.get("stream_digest")
    start = LedgerStart(step, parent, parent.segment, int(digest, 16) if digest else None)
    problems = _lost(folder / LEDGER_FOLDER, parent, step)
    if not problems:
        return start
    if not new_ledger:
        rule = f"no longer holds what {checkpoint} was trained on ({'; '.join(problems)})"
        remedy = "restore it from a copy, or pass --new-ledger to go on with a ledger that knows "
        remedy += "nothing of the steps before"
        raise ConfigError(key=str(folder / LEDGER_FOLDER), rule=rule, remedy=remedy)
    log.warning("the ledger begins anew at step %d: %s", step, "; ".join(problems))
    return replace(start, parent=None, lost=tuple(problems))


def begin_ledger_at(checkpoint: Path) -> LedgerStart:
    """Where the first segment begins that goes on from a checkpoint of another run."""
    return LedgerStart(step=_step(checkpoint), parent=None, above=-1, digest=None)


def start_ledger(prepared: Prepared, start: LedgerStart, checkpoint: Path | None) -> LedgerWriter:
    """The new segment."""
    train, plan = prepared.experiment.train, prepared.stream.plan
    header = {
        "run": train.run_name,
        "plan_hash": plan.hash,
        "tasks": [task.name for task in plan.tasks],
        "world_size": get_world_size(),
        "checkpoint": checkpoint.name if checkpoint else None,
    }
    return LedgerWriter(
        Path(train.save_folder) / LEDGER_FOLDER,
        start_step=start.step,
        parent=start.parent,
        header=header | ({"lost": start.lost} if start.lost else {}),
        above=start.above,
    )


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[0].removeprefix("step"))


def _lost(ledger: Path, position: Position, step: int) -> list[str]:
    """What of the lineage of a checkpoint the ledger does not hold any more."""
    try:
        return list(lineage(read_segments(ledger), position, step=step).problems)
    except FileNotFoundError:
        return ["there is no segment"]


def write_run_files(prepared: Prepared, *, resumed_from: Path | None) -> None:
    """plan.json, experiment.yaml, config.yaml and run.json, each under a temporary name first."""
    experiment, stream, manifest = prepared.experiment, prepared.stream, prepared.manifest
    folder = Path(experiment.train.save_folder)
    # First: without it a folder is not taken for a run that can be resumed.
    _write_json(folder / PLAN, prepared.identity)
    keep_tables(folder, stream.plan.tasks)
    save_experiment(experiment, folder / EXPERIMENT)
    save_experiment(experiment.train, folder / "config.yaml")
    tasks = {
        task.name: stream.plan.rates(index)
        | {"instances": stream.plan.instances(index, stream.num_steps)}
        for index, task in enumerate(stream.plan.tasks)
    }
    start = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed_from": str(resumed_from) if resumed_from else None,
        "command": shlex.join(sys.argv),
        "commit": git_commit(),
        "world_size": get_world_size(),
    }
    about = {
        "run": experiment.train.run_name,
        "starts": [*_earlier_starts(folder), start],
        "command": start["command"],
        "commit": start["commit"],
        "plan_hash": stream.plan.hash,
        "corpus": manifest.name if manifest else "unnamed memmaps",
        "corpus_hash": stream.identity["corpus_hash"],
        "num_steps": stream.num_steps,
        "device": _device_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("ai2-olmo", "numpy", "olmo-ext")},
        "record_fields": prepared.fields,
        "tasks": tasks,
        "extensions": origins(
            {task.family: type(task) for task in stream.plan.tasks}
            | {name: type(callback) for name, callback in prepared.callbacks.items()}
        ),
    }
    _write_json(folder / RUN, about)


def _earlier_starts(folder: Path) -> list[dict[str, Any]]:
    try:
        return read_run(folder)["starts"]
    except FileNotFoundError:
        return []
    except (ConfigError, KeyError):
        _set_aside(folder / RUN, "damaged", "it is no account of a run")  # not worth stopping for
        return []


def _write_json(path: Path, value: dict[str, Any]) -> None:
    replace_file(path, json.dumps(value, indent=1), sync=True)


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
