"""status: what runs are at, joined from their folders and from SLURM's queue.

    olmo-ext status runs/                 # every run below, with or without SLURM
    for run in find_status([Path("runs")])[0]: print(run.name, run.state, run.step)

It only reads. A run counts as running without SLURM too, where a process of this machine holds the
lock of its folder.
"""

from __future__ import annotations

import time
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from data_injection.errors import ConfigError
from data_injection.files import parse_json
from data_injection.lock import is_locked
from eval.checkpoints.checkpoint import find_checkpoints
from eval.run import (
    DIVERGED,
    FAILED,
    MARKER,
    PROGRESS,
    RECORDS,
    RUN,
    find_below,
    left_out,
    read_if_whole,
    whole,
)
from eval.text import new_table, print_table
from launch.json_file import write_json
from launch.slurm.jobs import EVENTS_FILE, Job, Queue, ask_slurm, read_events
from launch.terminal import say

STATES = (
    *("running", "requeued", "pending", "finished", "saved", "stopped", "stalled", "ended"),
    *("failed", "diverged", "cancelled", "interrupted", "new"),
)
"""saved: stopped by a signal and not in the queue; stopped: on request (logs/stop), or SLURM would
not requeue it; stalled: requeued without a step forward; ended: before its last step but without an
error (early stopping); diverged: its loss or logits were no numbers any more; interrupted: there
are checkpoints, and nothing that goes on."""

_FAILED = {"FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
_COLOURS = {
    **dict.fromkeys(("running", "finished"), "green"),
    **dict.fromkeys(("requeued", "pending", "new"), "cyan"),
    **dict.fromkeys(("failed", "stalled", "diverged"), "red"),
}


@dataclass(frozen=True)
class Status:
    """One run."""

    name: str
    folder: str
    state: str
    """One of STATES."""
    step: int
    num_steps: int | None
    checkpoint: int | None
    """Step of the last complete one."""
    marker: dict[str, Any] | None
    """What requeue.marker says: step, num_steps, reason."""
    job: str | None
    """The last one."""
    slurm: str
    """SLURM's word for it and, in brackets, its reason to wait; empty if it is not known."""
    starts: int
    requeues: int
    record_age: float | None
    """Seconds since the last measurement."""
    exposures: dict[str, float]
    """Injected task -> exposures per example at the highest step that was measured."""
    error: str
    """What ended a failed run."""


def find_status(sources: Sequence[Path]) -> tuple[list[Status], str]:
    """Every run in or below the folders, and why SLURM could not be asked (or "").

    Raises FileNotFoundError for a folder that is not there, ConfigError if it holds no run.
    """
    folders: list[Path] = []
    for source in sources:
        if not source.is_dir():
            raise FileNotFoundError(f"no folder {source}")
        if not (found := _run_folders(source)):
            rule = f"holds no run: no {RUN}, no logs/{EVENTS_FILE} below it"
            raise ConfigError(key=source, rule=rule)
        # A run that is given by its own name and by a link to it is one run.
        seen = {folder.resolve() for folder in folders}
        folders += [folder for folder in found if folder.resolve() not in seen]
    events = {folder: read_events(folder) for folder in folders}
    queue = ask_slurm({told[-1]["job"] for told in events.values() if told})
    return [run_status(folder, events[folder], queue) for folder in folders], queue.problem


def _run_folders(source: Path) -> list[Path]:
    """Links are followed: a run is often moved to scratch and linked back."""
    found = {path.parent for path in find_below(source, RUN)}
    found |= {path.parent.parent for path in find_below(source, f"logs/{EVENTS_FILE}")}
    return sorted(found)


def run_status(folder: Path, events: Sequence[dict[str, Any]], queue: Queue) -> Status:
    """One run's, from what its folder holds and what SLURM says of its last job."""
    run, progress = read_if_whole(folder / RUN), read_if_whole(folder / PROGRESS)
    starts, tasks = (run.get(key) for key in ("starts", "tasks"))
    num_steps = whole(run, "num_steps") or whole(progress, "last_step") or None
    marker = read_if_whole(folder / MARKER) or None
    # OLMo-core's checkpoints are folders of another kind.
    core = [path.parts[-3] for path in folder.glob("step*/model_and_optim/.metadata")]
    saved = [int(name[4:]) for name in core if name[4:].isdecimal()]
    checkpoint = max([*saved, *(one.step for one in find_checkpoints(folder))], default=None)
    measured, exposures = _exposures(folder / RECORDS, tasks if isinstance(tasks, dict) else {})
    number = events[-1]["job"] if events else None
    job = queue.jobs.get(number) if number else None
    state = _state(folder, events, job, checkpoint, num_steps, queue)
    # Steps after the last checkpoint are lost with their process.
    reached = max(checkpoint or 0, measured, whole(progress, "step") or 0)
    return Status(
        name=str(run.get("run") or folder.name),
        folder=str(folder),
        state=state,
        step=reached if state == "running" else checkpoint or 0,
        num_steps=num_steps,
        checkpoint=checkpoint,
        marker=marker,
        job=number,
        slurm="" if job is None else job.state + (f" ({job.reason})" if job.reason else ""),
        starts=len(starts) if isinstance(starts, list) else 0,
        requeues=sum(event["event"] == "requeued" for event in events),
        record_age=_age(folder / RECORDS),
        exposures=exposures,
        error=_error(folder, events) if state in ("failed", "stalled", "diverged") else "",
    )


def _state(
    folder: Path, events: Sequence[dict[str, Any]], job: Job | None, checkpoint: int | None,
    num_steps: int | None, queue: Queue,
) -> str:  # fmt: skip
    last = events[-1]["event"] if events else ""
    if checkpoint is not None and num_steps is not None and checkpoint >= num_steps:
        return "finished"
    if job is not None and job.state in ("RUNNING", "COMPLETING") and last != "requeued":
        return "running"
    if job is not None and job.live:
        own = [event["event"] for event in events if event["job"] == events[-1]["job"]]
        return "requeued" if "requeued" in own else "pending"
    if is_locked(folder):
        return "running"
    if (folder / DIVERGED).is_file():
        return "diverged"
    if queue.problem and last in ("submitted", "requeued", "started"):
        # Nobody can be asked: what was said last may still hold.
        return {"submitted": "pending", "started": "running"}.get(last, last)
    if job is not None and job.state == "CANCELLED":
        return "cancelled"
    if last in ("failed", "stalled", "stopped", "ended"):
        return last
    if job is not None and job.state in _FAILED:
        return "failed"
    if (folder / MARKER).is_file():  # damaged or whole: it was saved
        return "saved"
    return "new" if checkpoint is None else "interrupted"


def _exposures(path: Path, injected: Container[str]) -> tuple[int, dict[str, float]]:
    """The highest step with a record of an injected task, and each such task's exposures there.

    The last rows of the file may be of an earlier checkpoint (`eval --step`), or of natural tasks
    (`reference`), which no plan injects. Where run.json names no tasks all but those count.
    """
    highest = 0
    exposures: dict[str, float] = {}
    try:
        lines = path.open("rb")
    except OSError:
        return highest, exposures
    with lines:
        for line in lines:
            if b'"exposures_per_example"' not in line:
                continue
            try:
                row = parse_json(line)
                task, step, value = row["task"], row["step"], float(row["exposures_per_example"])
                known = task in injected if injected else row.get("family") != "reference"
                passed = step < highest
            except (ValueError, TypeError, KeyError):
                continue  # torn by a kill
            if not task or not known or passed:
                continue
            if step > highest:
                highest, exposures = step, {}
            exposures[task] = value
    return highest, exposures


def _age(path: Path) -> float | None:
    try:
        return max(time.time() - path.stat().st_mtime, 0.0)
    except OSError:
        return None


def _error(folder: Path, events: Sequence[dict[str, Any]]) -> str:
    """What the last start left in FAILED; of one that ended before the folder was its own, in logs/
    (launch/train.py). A kill leaves nothing."""
    last = events[-1] if events else {}
    for path in (folder / FAILED, folder / "logs" / FAILED):
        told = read_if_whole(path)
        if told and all(told.get(key) == last.get(key) for key in ("job", "restart")):
            rank = f"[rank{told['rank']}]: " if told.get("rank") else ""
            text = (str(told.get("text")).splitlines() or [""])[0]
            return f"{rank}{told.get('error')}: {text}"
    return f"left no word of why; {folder}/logs/train.log may have it" if events else ""


# -- for people and programs ---------------------------------------------------------------------


def show_status(sources: Sequence[Path], *, json: Path | None, console: Console) -> None:
    """Print a table, or write all that was found."""
    runs, problem = find_status(sources)
    missed = [line for source in sources for line in left_out(source)]
    if json is not None:
        told = {"slurm": problem or "asked", "left_out": missed}
        write_json(json, told | {"runs": [asdict(run) for run in runs]})
        return
    numbers = ("step", "saved", "job", "requeues", "record", "exposures")
    table = new_table("run", "state", numbers=numbers)
    for run in runs:
        share = f"/{run.num_steps:,}" if run.num_steps else ""
        seen = sorted({f"{value:.3g}" for value in run.exposures.values()}, key=float)
        waits = run.slurm.partition(" ")[2] if run.state in ("pending", "requeued") else ""
        table.add_row(
            Text(run.name),
            Text(f"{run.state} {waits}", style=_COLOURS.get(run.state, "yellow")),
            f"{run.step:,}{share}",
            "" if run.checkpoint is None else f"{run.checkpoint:,}",
            run.job or "",
            str(run.requeues),
            "" if run.record_age is None else f"{_duration(run.record_age)} ago",
            " to ".join([*seen[:1], *seen[1:][-1:]]),
        )
    print_table(table, console)
    counts = {state: sum(run.state == state for run in runs) for state in STATES}
    console.print(", ".join(f"{number} {state}" for state, number in counts.items() if number))
    for run in runs:
        if run.marker is not None:
            said = f"{run.marker.get('reason')} at step {run.marker.get('step')}"
            say(console, f"{run.name}: stopped by {said}, wants to go on")
        if run.error:
            say(console, f"{run.name}: {run.error}")
    for line in missed:
        say(console, f"left out: {line}")
    if problem:
        say(console, f"SLURM was not asked: {problem}")


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
