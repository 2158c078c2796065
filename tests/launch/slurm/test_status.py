"""status: a run's state from its folder and from SLURM's queue, whichever of them there is."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import refuses
from rich.console import Console
from typer.testing import CliRunner

from data_injection.lock import lock_folder
from launch.cli import app
from launch.slurm.jobs import Job, Queue, append_event, ask_slurm, events_file, read_events
from launch.slurm.status import Status, find_status, run_status, show_status

ABSENT = Queue(problem="no squeue here")


def make_run(folder: Path, *, checkpoint: int | None = None, marker: int | None = None) -> Path:
    folder.mkdir(parents=True)
    told = {"run": "tiny", "num_steps": 40, "starts": [{}, {}]}
    (folder / "run.json").write_text(json.dumps(told))
    if checkpoint is not None:
        path = folder / f"step{checkpoint}-unsharded"
        path.mkdir()
        for name in ("model.pt", "optim.pt", "train.pt", "config.yaml", "olmo_ext.json"):
            (path / name).touch()
    if marker is not None:
        told = {"step": marker, "num_steps": 40, "reason": "SIGTERM"}
        (folder / "requeue.marker").write_text(json.dumps(told))
    return folder


def status(
    run: Path, events: str = "", job: Job | None = None, queue: Queue | None = None
) -> Status:
    for event in events.split():
        append_event(events_file(run), {"job": "7", "event": event, "step": 5})
    asked = queue or Queue({"7": job} if job is not None else {})
    return run_status(run, read_events(run), asked)


@pytest.mark.parametrize(
    ("events", "slurm", "checkpoint", "marker", "state"),
    [
        ("submitted", "PENDING", None, None, "pending"),
        ("submitted started", "RUNNING", None, None, "running"),
        ("submitted started", "RUNNING", 20, 20, "running"),
        ("submitted started requeued", "PENDING", 20, 20, "requeued"),
        ("submitted started requeued started", "RUNNING", 20, None, "running"),
        ("submitted started", "PENDING", 20, None, "pending"),
        ("submitted started finished", "COMPLETED", 40, None, "finished"),
        ("submitted started finished", None, 40, None, "finished"),
        ("submitted started failed", "FAILED", 20, None, "failed"),
        ("submitted started failed", None, 20, None, "failed"),
        ("submitted started", "TIMEOUT", 20, None, "failed"),
        ("submitted started", "OUT_OF_MEMORY", 20, None, "failed"),
        ("submitted started", "CANCELLED", 20, 20, "cancelled"),
        ("submitted started stalled", "FAILED", 20, 20, "stalled"),
        ("submitted started stopped", "COMPLETED", 20, 20, "stopped"),
        ("submitted started ended", "COMPLETED", 20, None, "ended"),
        ("", None, 20, 20, "saved"),
        ("", None, 20, None, "interrupted"),
        ("", None, None, None, "new"),
        ("", None, 40, None, "finished"),
    ],
)
def test_a_state_follows_from_folder_and_queue(
    events: str, slurm: str | None, checkpoint: int | None, marker: int | None, state: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    run = make_run(tmp_path / "run", checkpoint=checkpoint, marker=marker)
    told = status(run, events, Job(slurm) if slurm else None)
    assert told.state == state
    assert told.step == (checkpoint or 0)
    assert told.requeues == events.split().count("requeued")
    assert told.starts == 2


def test_a_run_submitted_anew_is_pending_whatever_its_earlier_job_did(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", checkpoint=20)
    for job, event in (("1", "started"), ("1", "requeued"), ("1", "stopped"), ("2", "submitted")):
        append_event(events_file(run), {"job": job, "event": event, "step": 20})
    told = run_status(run, read_events(run), Queue({"2": Job("PENDING")}))
    assert (told.state, told.requeues) == ("pending", 1)


@pytest.mark.parametrize(
    ("events", "state"),
    [("submitted", "pending"), ("submitted started", "running"), ("requeued", "requeued")],
)
def test_without_slurm_the_last_word_of_a_job_stands(
    events: str, state: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", checkpoint=20)
    assert status(run, events, queue=ABSENT).state == state


def test_a_run_that_a_process_here_trains_is_running_without_any_job(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", checkpoint=20)
    with lock_folder(run):
        assert status(run, queue=ABSENT).state == "running"
    assert status(run, queue=ABSENT).state == "interrupted"


def test_steps_after_the_last_checkpoint_count_only_while_it_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", checkpoint=20)
    (run / "progress.json").write_text('{"step": 27, "last_step": 40}')
    running = status(run, "submitted started", Job("RUNNING"))
    assert (running.step, running.checkpoint) == (27, 20)
    assert status(run, "failed", Job("FAILED")).step == 20


@pytest.mark.parametrize("other", ['"x"', "3.5", "[[1]]", '{"a": [1]}', "null", "-1"])
def test_files_that_hold_something_else_hide_no_run(other: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", checkpoint=20)
    for name, keys in {
        "run.json": ("run", "num_steps", "starts", "tasks"),
        "progress.json": ("step", "last_step", "steps_per_second"),
        "requeue.marker": ("step", "reason"),
        "failed.json": ("error", "text", "rank", "job"),
        "records.jsonl": ("step", "task", "exposures_per_example"),
    }.items():
        (run / name).write_text("{" + ", ".join(f'"{key}": {other}' for key in keys) + "}\n")
    rows = (f'{{"job": {other}, "event": "failed"}}', f'{{"job": "7", "event": {other}}}')
    events_file(run).parent.mkdir()
    events_file(run).write_text("\n".join(rows) + "\n")
    (found,), _ = find_status([run])
    assert (found.state, found.step, found.checkpoint) == ("saved", 20, 20)
    show_status([run], json=None, console=Console(file=io.StringIO(), width=100))
    (folder,) = {status(run, "failed", Job("FAILED")).folder}
    assert folder == str(run)


def test_what_ended_a_start_is_read_as_values_and_only_of_the_last_start(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    told = {"rank": 1, "job": "7", "restart": 2, "error": "OSError", "text": "no\nspace"}
    (run / "failed.json").write_text(json.dumps(told))
    event = {"job": "7", "event": "failed", "restart": 2}
    assert run_status(run, [event], Queue()).error == "[rank1]: OSError: no"
    assert "left no word" in run_status(run, [event | {"restart": 3}], Queue()).error


def test_a_start_that_ended_before_the_folder_was_its_own_has_told_why_in_its_logs(
    write_experiment: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run = write_experiment(), tmp_path / "run"
    event = {"job": "7", "event": "failed", "restart": 0}
    append_event(events_file(run), event)
    assert "left no word of why" in run_status(run, [event], Queue()).error
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for dry in (True, False):
        words = ["train", str(path), "-o", f"corpus={tmp_path}/none", *["--dry-run"] * dry]
        assert CliRunner().invoke(app, words).exception
        assert (run / "logs" / "failed.json").exists() is not dry
    said = run_status(run, [event], Queue()).error
    assert said.startswith(f"FileNotFoundError: corpus: there is no folder {tmp_path}/none")
    assert "left no word" in run_status(run, [event | {"job": "8"}], Queue()).error


def test_records_give_age_and_exposures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", checkpoint=20)
    rows = [
        {"step": 10, "task": "cmp", "exposures_per_example": 1.0},
        {"step": 20, "task": "cmp", "exposures_per_example": 2.0},
        {"step": 20, "task": "add", "exposures_per_example": 0.5},
        {"step": 20, "task": "", "exposures_per_example": 0.0},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "records.jsonl").write_text(text + '{"step": 30, "ta')
    told = status(run, queue=ABSENT)
    assert told.exposures == {"cmp": 2.0, "add": 0.5}
    assert told.record_age is not None
    assert 0 <= told.record_age < 60


def test_exposures_of_every_task_are_found_however_long_its_records_are(tmp_path: Path) -> None:
    """An evaluation writes hundreds of rows a task; the end of the file shows the last task's."""
    run = make_run(tmp_path / "run", checkpoint=20)
    told = json.loads((run / "run.json").read_text()) | {"tasks": {"cmp": {}, "add": {}}}
    (run / "run.json").write_text(json.dumps(told))
    rows = [
        {"step": 20, "task": task, "exposures_per_example": exposures, "split": "x" * 100}
        for task, exposures in (("cmp", 2.0), ("add", 0.5))
        for _ in range(600)
    ]
    (run / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert status(run, queue=ABSENT).exposures == {"cmp": 2.0, "add": 0.5}


def test_exposures_are_of_the_highest_step_and_of_injected_tasks(tmp_path: Path) -> None:
    """Not those of the last rows: `eval --step` appends an earlier checkpoint's, `reference`
    natural tasks', which are never injected."""
    run = make_run(tmp_path / "run", checkpoint=40)
    told = json.loads((run / "run.json").read_text()) | {"tasks": {"cmp": {}}}
    rows = [
        {"step": step, "task": task, "family": family, "exposures_per_example": exposures}
        for step, task, family, exposures in (
            (40, "cmp", "comparison", 4.0),
            (20, "cmp", "comparison", 2.0),
            (40, "natural", "reference", 0.0),
            (60, "natural", "reference", 0.0),
        )
    ]
    (run / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert status(run, queue=ABSENT).exposures == {"cmp": 4.0}  # run.json names no tasks
    (run / "run.json").write_text(json.dumps(told))
    assert status(run, queue=ABSENT).exposures == {"cmp": 4.0}


def test_a_linked_run_is_found_once_and_what_a_link_misses_is_named(tmp_path: Path) -> None:
    """A run moved to scratch and linked back; a link to itself ends; one to nothing is said."""
    make_run(tmp_path / "scratch" / "moved", checkpoint=20)
    runs = tmp_path / "runs"
    make_run(runs / "here")
    (runs / "back").symlink_to(tmp_path / "scratch" / "moved")
    (runs / "here" / "loop").symlink_to(runs)
    (runs / "gone").symlink_to(tmp_path / "nowhere")
    found = find_status([runs, tmp_path / "scratch"])[0]
    assert [Path(run.folder).name for run in found] == ["back", "here"]
    out = io.StringIO()
    show_status([runs], json=None, console=Console(file=out, width=100))
    assert f"left out: {runs}/gone: a link to {tmp_path}/nowhere" in out.getvalue()
    show_status([runs], json=tmp_path / "told.json", console=Console(quiet=True))
    assert len(json.loads((tmp_path / "told.json").read_text())["left_out"]) == 1


def test_a_torn_line_of_the_jobs_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    append_event(events_file(run), {"job": "7", "event": "submitted"})
    with events_file(run).open("a") as file:
        file.write('{"job": "7", "ev')
    assert [event["event"] for event in read_events(run)] == ["submitted"]


def test_a_run_that_is_only_in_the_queue_is_found_too(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    append_event(events_file(tmp_path / "b"), {"job": "7_2", "event": "submitted"})
    assert [Path(run.folder).name for run in find_status([tmp_path])[0]] == ["a", "b"]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with refuses(key=tmp_path, rule="holds no run"):
        find_status([tmp_path])
    with pytest.raises(FileNotFoundError):
        find_status([tmp_path / "none"])


def test_names_are_printed_as_they_are(tmp_path: Path) -> None:
    run = make_run(tmp_path / "[red]run")
    (run / "run.json").write_text(json.dumps({"run": "[bold]x[/]", "num_steps": 40}))
    out = io.StringIO()
    show_status([run], json=None, console=Console(file=out, width=100))
    assert "[bold]x[/]" in out.getvalue()


def fake(folder: Path, name: str, prints: str, status: int = 0) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\ncat <<'E'\n{prints}\nE\nexit {status}\n")
    path.chmod(0o755)


def test_jobs_that_left_the_queue_are_looked_up_in_the_accounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    fake(tmp_path, "squeue", "12_3|PENDING|0:00|JobArrayTaskLimit\n13|RUNNING|1:02|None")
    fake(tmp_path, "sacct", "9|CANCELLED by 0|00:01:00\n13|FAILED|00:01:00")
    jobs = ask_slurm(["9", "13"]).jobs
    assert jobs["12_3"] == Job("PENDING", "JobArrayTaskLimit", "0:00")
    assert jobs["13"].state == "RUNNING"  # the queue knows better
    assert (jobs["9"].state, jobs["9"].live) == ("CANCELLED", False)
    fake(tmp_path, "squeue", "", status=1)
    assert ask_slurm().problem
