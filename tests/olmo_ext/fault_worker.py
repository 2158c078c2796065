"""A training run that kills itself at a chosen file operation: between any two there may be a kill.

The tests import it by name, so that a process forked from a server can be told to run it.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path

from launch.sweep.executor import run_olmo_ext

EVENTS = {
    *("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate"),
    "os.listdir",
}
"""Python's audit events of file operations; each is raised before the operation."""


def train(arguments: list[str], log: Path, folder: str, die_at: int | None) -> None:
    """Run olmo-ext; before the die_at-th operation on a path in `folder` the process is killed.

    Without `die_at` their number is written beside the log.
    """
    counter = itertools.count()

    def watch(event: str, details: tuple) -> None:
        if event in EVENTS and any(_inside(folder, value) for value in details):
            number = next(counter)
            if number == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    try:
        run_olmo_ext(arguments, log)
    finally:
        log.with_suffix(".count").write_text(str(next(counter)))


def _inside(folder: str, value: object) -> bool:
    return isinstance(value, str | os.PathLike) and os.fspath(value).startswith(folder)
