"""How a start of a run ended, left in its folder for whoever looks or goes on: a marker, a failure.

with noting_failure(folder):                 # failed.json
    ...
write_marker(folder, step=120, num_steps=2400, reason="SIGTERM")
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_injection.errors import NO_VALUE, ConfigError
from data_injection.files import replace_file
from eval.run import FAILED, MARKER, read_if_whole
from olmo_ext.engines.ranks import get_global_rank


def write_marker(folder: Path, *, step: int, num_steps: int, reason: str) -> None:
    """Say that the run was stopped for a reason, is saved at `step` and wants to be resumed.

    With the SLURM job and its restart, by which a batch script knows its own marker from an earlier
    start's: clocks of nodes and file servers differ, and times would deny a marker that is there.
    """
    value = {"step": step, "num_steps": num_steps, "reason": reason}
    replace_file(folder / MARKER, json.dumps(value | _slurm_start(), indent=1), sync=True)


@contextmanager
def noting_failure(folder: Path) -> Iterator[None]:
    """Leave FAILED, where there is the folder, for an error that ends this start: of several
    ranks' the first."""
    try:
        yield
    except Exception as error:
        told = {"rank": get_global_rank(), **_slurm_start(), "error": type(error).__name__}
        told["text"] = str(error)
        if isinstance(error, ConfigError) and error.key:
            value = None if error.value is NO_VALUE else error.value
            told |= {"key": error.key, "value": value, "rule": error.rule, "remedy": error.remedy}
        with suppress(OSError):  # the disk may be what failed
            before = read_if_whole(folder / FAILED)
            if not before or any(before.get(k) != told.get(k) for k in ("job", "restart")):
                replace_file(folder / FAILED, json.dumps(told, default=str) + "\n", sync=True)
        raise


def _slurm_start() -> dict[str, Any]:
    """Which start of which SLURM job this is, as the batch script names it; empty elsewhere."""
    if (job := os.environ.get("SLURM_JOB_ID")) is None:
        return {}
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return {"job": job, "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0"))}
