"""Runs side by side: failures are tried again and told, the rest goes on, nobody is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import warm
from refusals import refuses
from rich.console import Console
from waiting import wait_until

import launch.sweep.executor as executor
from data_injection.lock import is_locked, lock_folder
from launch.grid import Point, Sweep
from launch.runs import Run, plan_runs
from launch.sweep.executor import RunFailed, default_jobs, train_all, visible_gpus
from launch.sweep.sweep import train_sweeps

Write = Callable[..., Path]


class FakeProcess:
    """A process that has ended already, or that ends when told."""

    def __init__(self, exitcode: int | None) -> None:
        self.exitcode = exitcode
        self.pid = 0

    def terminate(self) -> None:
        self.exitcode = self.exitcode if self.exitcode is not None else -signal.SIGTERM

    def join(self) -> None:
        pass


def make_run(folder: Path, name: str) -> Run:
    return Run(name, folder / name, ("train",), 10, 10_000, {"seed": 1})


def finish(run: Run) -> None:
    checkpoint = run.folder / f"step{run.num_steps}-unsharded"
    checkpoint.mkdir(parents=True, exist_ok=True)
    for name in ("model.pt", "optim.pt", "train.pt", "config.yaml", "olmo_ext.json"):
        (checkpoint / name).touch()


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict]]:
    """(run, environment) of each start; a run's outcome is named in its name: ok, bad, ends-3."""
    seen: list[tuple[str, dict]] = []

    def start(run: Run, environment: dict | None = None) -> executor.Started:
        seen.append((run.name, dict(environment or {})))
        statuses = {"ok": 0, "bad": 2, "killed": -9, "stopped": 0}
        kind = run.name.split("-")[0]
        number = sum(name == run.name for name, _ in seen)
        status = 0 if kind == "flaky" and number > 1 else statuses.get(kind, 1)
        run.log.parent.mkdir(parents=True, exist_ok=True)
        with run.log.open("a") as file:
            file.write(f"start {number} ends {status}\n\n")
        (run.folder / "progress.json").write_text('{"step": 3}')
        if status == 0 and kind != "stopped":
            finish(run)
        return executor.Started(run, FakeProcess(status), 0)  # type: ignore[arg-type]

    monkeypatch.setattr(executor, "start", start)
    monkeypatch.setattr(executor.time, "sleep", lambda seconds: None)
    return seen


def test_the_rest_goes_on_and_every_failure_is_told_with_its_last_words(
    tmp_path: Path, starts: list, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("flaky-a", "killed-b", "bad-c", "ok-d", "stopped-e", "ok-f")
    runs = [make_run(tmp_path, name) for name in names]
    with pytest.raises(RunFailed, match="3 of 6 runs failed"):
        train_sweeps(runs, jobs=2, retries=1, console=Console(width=160))
    started = [name for name, _ in starts]
    # Retried once, bad input never, what somebody stopped never.
    assert {name: started.count(name) for name in names} == {
        "flaky-a": 2, "killed-b": 2, "bad-c": 1, "ok-d": 1, "stopped-e": 1, "ok-f": 1,
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "flaky-a ended with status 1 at step 3; starting it again (1 of 1)" in said
    table = said[said.index("failed run") :]
    assert "start 2 ends -9" in table
    assert "SIGKILL" in table
    assert "status 2" in table
    assert "stopped early" in table
    assert "flaky" not in table
    again = [name for name, _ in starts]
    assert [run.name for run in runs if run.finished] == ["flaky-a", "ok-d", "ok-f"]
    assert again == started


def test_the_same_command_again_starts_only_what_is_not_finished(
    tmp_path: Path, starts: list
) -> None:
    runs = [make_run(tmp_path, name) for name in ("ok-a", "error-b")]
    for _ in range(2):
        failures = train_all(runs, jobs=1, retries=0, keep_going=True, console=Console(quiet=True))
        assert [failure.run.name for failure in failures] == ["error-b"]
    assert [name for name, _ in starts] == ["ok-a", "error-b", "error-b"]


def test_a_twin_waits_for_its_parent_but_not_for_one_that_was_given_up(
    tmp_path: Path, starts: list
) -> None:
    def twin_of(parent: Run) -> Run:
        point = Point(("twin",), tmp_path, {}, origin=(parent.name, 6))
        return replace(make_run(tmp_path, f"ok-of-{parent.name}"), point=point, parent=parent)

    parents = [make_run(tmp_path, name) for name in ("ok-a", "bad-b")]
    runs = [*map(twin_of, parents), *parents]
    train_all(runs, jobs=2, keep_going=True, console=Console(quiet=True))
    names = [name for name, _ in starts]
    assert names == ["ok-a", "bad-b", "ok-of-ok-a", "ok-of-bad-b"]


def test_after_its_minutes_what_runs_is_saved_and_what_is_left_is_named(
    tmp_path: Path, starts: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    runs = [make_run(tmp_path, name) for name in ("ok-a", "endless-b", "ok-c")]
    asked: list[float] = []
    fake = executor.start

    class Endless(FakeProcess):
        def terminate(self) -> None:
            asked.append(clock[0])
            self.exitcode = 0  # it saves and ends

    def start(run: Run, environment: dict | None = None) -> executor.Started:
        started = fake(run, environment)
        return replace(started, process=Endless(None)) if run.name == "endless-b" else started

    def passed(seconds: float = 0.0) -> float:
        clock[0] += seconds
        return clock[0]

    clock = [1000.0]
    monkeypatch.setattr(executor, "start", start)
    monkeypatch.setattr(executor, "time", SimpleNamespace(monotonic=passed, sleep=passed))
    left = train_sweeps(runs, jobs=1, retries=1, minutes=0.1, console=Console(width=160))
    assert [run.name for run in left] == ["endless-b", "ok-c"]
    assert [name for name, _ in starts] == ["ok-a", "endless-b"]
    assert len(asked) == 1  # once, and not before
    assert 1006 <= asked[0] < 1007
    said = capsys.readouterr().out
    assert "0.1 minutes are over; left are endless-b at step 0/10, ok-c at step 0/10" in said
    monkeypatch.setattr(executor, "start", fake)
    assert train_sweeps(runs[2:], jobs=1, retries=0, minutes=1, console=Console(quiet=True)) == []


def test_each_run_has_a_gpu_of_its_own_and_a_freed_one_is_given_again(
    tmp_path: Path, starts: list
) -> None:
    runs = [make_run(tmp_path, f"ok-{number}") for number in range(5)]
    train_all(runs, jobs=2, console=Console(quiet=True), gpus=["2", "5"])
    assert [pin["CUDA_VISIBLE_DEVICES"] for _, pin in starts] == ["2", "5", "2", "5", "2"]
    starts.clear()
    train_all([make_run(tmp_path, "ok-x")], jobs=1, console=Console(quiet=True))
    assert starts == [("ok-x", {})]


def test_the_gpus_that_were_allotted_are_used_by_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-ab12")
    assert visible_gpus() == ["3", "GPU-ab12"]
    assert default_jobs(["3", "GPU-ab12"]) == 2
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    assert default_jobs([]) == len(os.sched_getaffinity(0))


def test_a_second_sweep_on_the_folder_is_refused(tmp_path: Path, starts: list) -> None:
    run = make_run(tmp_path, "ok-a")
    with (
        lock_folder(run.folder.parent),
        refuses(key="--out", value=run.folder.parent, rule="by another sweep"),
    ):
        train_all([run], jobs=1, console=Console(quiet=True))
    assert starts == []


def test_a_run_that_another_process_trains_is_waited_for(
    tmp_path: Path, starts: list, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a sweep was killed its runs still save; a second start would only be refused."""
    run, other = make_run(tmp_path, "ok-a"), make_run(tmp_path, "ok-b")
    leave = threading.Event()

    def hold() -> None:
        # With patience: the look below takes the lock too, for a moment.
        with lock_folder(run.folder, patience=60):
            leave.wait(60)

    threading.Thread(target=hold).start()
    while not is_locked(run.folder):
        time.sleep(0.01)
    monkey = time.monotonic()
    threading.Timer(0.5, leave.set).start()
    train_all([run, other], jobs=1, console=Console(width=160))
    assert time.monotonic() - monkey >= 0.5
    assert [name for name, _ in starts] == ["ok-b", "ok-a"]
    assert capsys.readouterr().out.count("ok-a: waiting for a process that trains it") == 1


@pytest.mark.slow
def test_a_sweep_that_is_killed_leaves_no_run_alive_and_goes_on_afterwards(
    write_experiment: Write, tmp_path: Path
) -> None:
    """SIGKILL: nobody can tell the runs, and the fork server they hang on lives as long as they."""

    def edit(config: dict) -> None:
        config["train"].update(max_duration=900, save_interval_unsharded=900)
        config["train"]["data"]["num_workers"] = 1
        config["callbacks"] = {"task_eval": {"every": 100}}

    write_experiment(edit)
    text = "experiments: [experiment.yaml]\naxes: {seed: {s1: {train.seed: 1}, s2: {}}}\n"
    (tmp_path / "two.yaml").write_text(text)
    # A path that a shell would take apart reaches no shell.
    out = tmp_path / "out $(touch hacked); #x"
    command = [sys.executable, "-m", "launch", "sweep", str(tmp_path / "two.yaml")]
    command += ["--out", str(out), "--jobs", "2"]
    folders = [out / "two" / label for label in ("s1", "s2")]
    sweep = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    told = re.compile(r"step \d+/900")
    logs = [folder / "logs" / "train.log" for folder in folders]
    wait_until(lambda: all(log.exists() and told.search(log.read_text()) for log in logs))
    below = descendants(sweep.pid)
    assert len(below) >= 5  # the fork server, two runs, a worker each
    sweep.kill()
    sweep.wait()
    wait_until(lambda: not any(map(alive, below)))
    done = warm.run(*command[3:], cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    for folder in folders:
        starts = json.loads((folder / "run.json").read_text())["starts"]
        # It had saved when it noticed: the second start went on from there.
        assert len(starts) == 2
        assert starts[1]["resumed_from"] is not None
    assert not (tmp_path / "hacked").exists()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    below = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            below += [int(stat.parent.name), *descendants(int(stat.parent.name))]
    return below


def test_out_with_signs_that_yaml_reads_is_quoted_and_one_with_a_reference_refused(
    write_experiment: Write, tmp_path: Path
) -> None:
    sweep = Sweep("demo", (write_experiment(),), {"seed": {"s1": {}}})
    for odd in ("a: b", "x #y", "{z}", "it's"):
        (run,) = plan_runs(sweep, tmp_path / odd)
        assert run.experiment is not None
        assert run.experiment.train.save_folder == str(tmp_path / odd / "s1")
    with refuses(key="--out", value=tmp_path / "${x}/s1", rule="${"):
        plan_runs(sweep, tmp_path / "${x}")


@pytest.mark.parametrize("key", ["train.run_name", "train.save_folder"])
def test_a_setting_that_would_give_all_runs_one_name_or_folder_is_refused(
    key: str, write_experiment: Write, tmp_path: Path
) -> None:
    sweep = Sweep("demo", (write_experiment(),), {"seed": {"s1": {}, "s2": {}}})
    with refuses(key=key, value="same", rule="each run's own"):
        plan_runs(sweep, tmp_path / "out", overrides=[f"{key}=same"])
    by_label: dict[str, Any] = {"seed": {"s1": {"train.seed": 1, key: "same"}, "s2": {}}}
    for one in (replace(sweep, settings={key: "same"}), replace(sweep, axes=by_label)):
        with refuses(key=key, value="same", rule="each run's own"):
            plan_runs(one, tmp_path / "out")
    with refuses(key="sweep demo: axes.seed", value=["s1", "S1"], rule="in lower case too"):
        replace(sweep, axes={"seed": {"s1": {}, "S1": {}}}).points()
