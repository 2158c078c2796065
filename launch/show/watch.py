"""`olmo-ext report --watch`: a report that is written again while a run lives.

watch_report(Path("runs/mine"), None, every=30, command="olmo-ext report runs/mine", errors=errors)
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from data_injection.errors import ConfigError
from data_injection.lock import is_locked
from eval.report.write import write_report
from eval.run import RUN, find_below
from launch.terminal import say


def lives(source: Path) -> bool:
    """Whether a process trains a run in or below a folder at this moment."""
    return any(is_locked(path.parent) for path in find_below(source, RUN))


def watch_report(
    source: Path, out: Path | None, *, every: float, command: str, errors: Console
) -> None:
    """Write the report every so many seconds; the page loads itself again. Ends when nothing has
    lived for two looks in a row: between two runs of a sweep there may be a moment without one."""
    idle = 0
    while idle < 2:
        idle = 0 if lives(source) else idle + 1
        if idle:
            time.sleep(min(every, 2.0))
            continue
        try:
            path = write_report(source, out, command=command, refresh=every)
            say(errors, f"{path}, again in {every:g} s")
        except (ConfigError, FileNotFoundError) as error:
            say(errors, f"nothing to report yet: {error}")
        time.sleep(every)
