"""Jobs of runs: which ones there were (logs/jobs.jsonl) and what SLURM says of them now.

    for event in read_events(run_folder): print(event["job"], event["event"])
    queue = ask_slurm()
    queue.states.get("12_3")

`submit` and the batch script append to a run's logs/jobs.jsonl; nothing ever rewrites it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_injection.files import parse_json

EVENTS_FILE = "jobs.jsonl"

LIVE = {
    *("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD"),
    *("REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED", "SPECIAL_EXIT"),
}
"""SLURM's names of states in which a job may still run."""


def events_file(run: Path) -> Path:
    return run / "logs" / EVENTS_FILE


def read_events(run: Path) -> list[dict[str, Any]]:
    """What happened to a run's jobs, in order. A line torn by a kill is left out."""
    path = events_file(run)
    if not path.is_file():
        return []
    events = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            event = parse_json(line)
        except ValueError:
            continue
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            continue
        job = event.get("job")  # a number where a shell wrote it
        if isinstance(job, str) or (type(job) is int and job > 0):
            events.append(event | {"job": str(job)})
    return events


def append_event(file: Path, event: Mapping[str, Any]) -> None:
    """One line, in one write. `time` is added."""
    file.parent.mkdir(parents=True, exist_ok=True)
    now = {"time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    # A full disk may have left half a line, which must not take this one with it.
    torn = file.is_file() and file.read_bytes()[-1:] not in (b"", b"\n")
    with file.open("a") as out:
        out.write("\n" * torn + json.dumps(now | dict(event)) + "\n")


@dataclass(frozen=True)
class Job:
    """What SLURM says of one job."""

    state: str
    """SLURM's word: PENDING, RUNNING, COMPLETED, TIMEOUT ..."""
    reason: str = ""
    """Why it waits; empty if SLURM says None."""
    used: str = ""
    """Time since its start."""

    @property
    def live(self) -> bool:
        return self.state in LIVE


@dataclass(frozen=True)
class Queue:
    """SLURM's answer."""

    jobs: Mapping[str, Job] = field(default_factory=dict)
    """By number; a task of an array as 12_3."""
    problem: str = ""
    """Why SLURM could not be asked; empty if it could."""


def ask_slurm(ended: Iterable[str] = ()) -> Queue:
    """The user's jobs in the queue, and what the accounts say of those of `ended` that left it.

    squeue knows a job for some minutes after its end (MinJobAge), sacct for good.
    """
    if shutil.which("squeue") is None:
        return Queue(problem="no squeue here")
    text, problem = _ask("squeue", "--me", "-h", "-r", "-t", "all", "-o", "%i|%T|%M|%r")
    if problem:
        return Queue(problem=problem)
    jobs = {}
    for line in text.splitlines():
        number, state, used, reason = line.split("|", 3)
        jobs[number] = Job(state, "" if reason == "None" else reason, used)
    if (left := [number for number in ended if number not in jobs]) and shutil.which("sacct"):
        fields = "--format=JobID,State,Elapsed"
        text, _ = _ask("sacct", "-n", "-P", "-X", fields, "-j", ",".join(left))
        for line in text.splitlines():
            number, state, used = line.split("|", 2)
            jobs.setdefault(number, Job(state.split(" ")[0], "", used))  # "CANCELLED by 0"
    return Queue(jobs)


def _ask(*command: str) -> tuple[str, str]:
    """Output, and what went wrong in one line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"{command[0]}: {error}"
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return "", said[-1] if said else f"{command[0]}: status {done.returncode}"
    return done.stdout, ""
