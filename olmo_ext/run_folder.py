"""A run's folder: whose it is, what is written into it at a start, what is left of an earlier one.

    checkpoint = check_folder(folder, resume=True, identity=identity)

It holds experiment.yaml, config.yaml (stock), plan.json (the run's identity), run.json (each start:
command, commit, versions), records.jsonl and the engine's checkpoints.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from olmo.torch_util import get_world_size

from data_injection.config import ConfigError
from data_injection.corpus import Manifest
from eval.checkpoint import IDENTITY_FILE, find_checkpoints
from olmo_ext.build import Stream, check_same_run
from olmo_ext.config import FILE_NAME, ExperimentConfig, save_experiment

log = logging.getLogger(__name__)


def check_folder(folder: Path, *, resume: bool, identity: dict[str, Any]) -> Path | None:
    """The checkpoint to go on from, or None to start; ConfigError if the folder is in use."""
    used = folder.is_dir() and any(
        p.name != "logs" for p in folder.iterdir() if not p.name.startswith(".")
    )
    if not used:
        return None
    if not resume:
        raise ConfigError(
            f"train.save_folder {folder} is in use by an earlier run; pass --resume to go on with "
            "it, or choose another folder"
        )
    plan_file = folder / "plan.json"
    if not plan_file.is_file():
        raise ConfigError(
            f"train.save_folder {folder} holds files but no plan.json, so it is not a run of "
            "olmo-ext; choose another folder"
        )
    check_same_run(identity, json.loads(plan_file.read_text()), where=str(folder))
    checkpoints = find_checkpoints(folder)
    if not checkpoints:
        return None
    latest = checkpoints[-1].path
    check_same_run(identity, json.loads((latest / IDENTITY_FILE).read_text()), where=str(latest))
    return latest


def set_aside_incomplete(folder: Path) -> None:
    """Rename checkpoints that lack a file, which the engine would refuse to write over."""
    complete_ones = {checkpoint.path for checkpoint in find_checkpoints(folder)}
    for path in folder.glob("step*-unsharded"):
        if path not in complete_ones and not path.is_symlink():
            aside = path.with_name(f"{path.name}.incomplete-{secrets.token_hex(3)}")
            log.warning("%s is incomplete; it is now %s", path, aside.name)
            path.rename(aside)


def write_run_files(
    experiment: ExperimentConfig,
    stream: Stream,
    identity: dict[str, Any],
    fields: dict[str, Any],
    manifest: Manifest | None,
    *,
    resumed_from: Path | None,
) -> None:
    """plan.json, experiment.yaml, config.yaml and run.json, each under a temporary name first."""
    folder = Path(experiment.train.save_folder)
    # First: without it a folder is not taken for a run that can be resumed.
    _write_json(folder / "plan.json", identity)
    save_experiment(experiment, folder / FILE_NAME)
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
    _write_json(
        folder / "run.json",
        {
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
            "record_fields": fields,
            "tasks": tasks,
        },
    )


def _earlier_starts(folder: Path) -> list[dict[str, Any]]:
    path = folder / "run.json"
    return json.loads(path.read_text())["starts"] if path.is_file() else []


def _write_json(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def git_commit() -> str | None:
    """Commit of the code that runs, "+changes" if the checkout is not clean; None outside git."""
    here = Path(__file__).parent
    try:
        top, commit, status = (
            subprocess.run(
                ["git", "-C", str(here), *args], capture_output=True, text=True, check=True
            ).stdout.strip()
            for args in (
                ["rev-parse", "--show-toplevel"],
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "-uno"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    if Path(top) != here.parent:  # installed in an environment inside somebody else's checkout
        return None
    return commit + ("+changes" if status else "")
