"""A run that is told to stop saves its step, says so, and goes on later as if nothing had been."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer

import olmo_ext.callbacks.build
from eval.checkpoints.checkpoint import find_checkpoints
from launch.train import train as train_verb
from olmo_ext.callbacks.base import Callback
from olmo_ext.config import load_experiment
from olmo_ext.signals import SIGNALS, StopSignals, ignore_in_worker
from olmo_ext.train import train

Write = Callable[..., Path]


@dataclass
class Sender(Callback):
    """Sends this process signals while it takes a step, and tells whether `on_end` was called."""

    at: int = 4
    names: str = "SIGTERM"
    during: str = "step"
    ended: bool = False

    def on_start(self, trainer) -> None:
        if self.during == "start":
            self._send()

    def on_gradients(self, trainer, batch) -> None:
        if self.during == "step" and trainer.global_step == self.at:
            self._send()

    def on_checkpoint(self, trainer) -> None:
        if self.during == "save" and trainer.global_step == self.at:
            self._send()

    def _send(self) -> None:
        for name in self.names.split():
            os.kill(os.getpid(), signal.Signals[name])


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(olmo_ext.callbacks.build.CALLBACKS, "sender", Sender)
    # Tests under nohup would inherit a SIGHUP that is ignored, which a run leaves so.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def saved(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in find_checkpoints(folder)]


def final(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(find_checkpoints(folder)[-1].path / "model.pt", weights_only=True)


@pytest.mark.usefixtures("sender")
@pytest.mark.parametrize(
    ("names", "strategy"),
    [
        ("SIGTERM", "ddp"),
        ("SIGUSR1", "fsdp"),
        ("SIGHUP", "ddp"),
        ("SIGTERM SIGTERM", "fsdp"),
        ("SIGUSR1 SIGTERM", "ddp"),
    ],
)
def test_a_signal_saves_the_step_it_came_in_and_the_run_goes_on_bit_for_bit(
    names: str, strategy: str, write_experiment: Write, tiny_run: Callable[..., Path]
) -> None:
    experiment = write_experiment(lambda c: c["train"].update(distributed_strategy=strategy))
    stopped = load_experiment(experiment, ["callbacks.sender={at: 4, names: " + names + "}"])
    folder = train(stopped)
    assert saved(folder) == [0, 4]
    marker = json.loads((folder / "requeue.marker").read_text())
    assert marker == {"step": 4, "num_steps": 12, "reason": names.split()[0]}
    train(load_experiment(experiment), resume=True)
    assert saved(folder) == [0, 4, 6, 12]
    assert not (folder / "requeue.marker").exists()
    ours, theirs = final(folder), final(tiny_run(strategy))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.usefixtures("sender")
def test_a_signal_during_a_save_ends_the_run_after_the_next_step(write_experiment: Write) -> None:
    overrides = ["callbacks.sender={at: 6, during: save}"]
    folder = train(load_experiment(write_experiment(), overrides))
    assert saved(folder) == [0, 6, 7]
    assert (folder / "requeue.marker").exists()


@pytest.mark.usefixtures("sender")
def test_a_signal_while_a_run_still_starts_ends_it_before_a_step(write_experiment: Write) -> None:
    """A large checkpoint takes minutes to read, and the time that a signal leaves may be less."""
    experiment = write_experiment()
    folder = train(load_experiment(experiment, ["train.stop_at=6"]))
    train(load_experiment(experiment, ["callbacks.sender={during: start}"]), resume=True)
    assert saved(folder) == [0, 6]
    assert json.loads((folder / "requeue.marker").read_text())["step"] == 6


def test_a_time_limit_leaves_the_marker_too(
    write_experiment: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"time_limit": 0.0, "canceled_check_interval": 4}
    experiment = write_experiment(lambda c: c["train"].update(settings))
    train_verb(experiment)
    said = " ".join(capfd.readouterr().out.split())
    assert "stopped by train.time_limit, saved at step 4 of 12; --resume goes on" in said
    assert saved(experiment.parent / "run") == [0, 4]


@pytest.mark.usefixtures("sender")
def test_the_marker_is_there_before_a_kill_in_the_runs_last_words(
    write_experiment: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's last upload may take minutes, which a signal does not leave."""

    def never_ends(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("olmo_ext.trainer.finish_wandb", never_ends)
    experiment = write_experiment()
    with pytest.raises(KeyboardInterrupt):
        train(load_experiment(experiment, ["callbacks.sender={at: 4}"]))
    assert (experiment.parent / "run" / "requeue.marker").exists()


@pytest.mark.usefixtures("sender")
def test_a_signal_in_the_last_step_leaves_no_marker(write_experiment: Write) -> None:
    """A finished run must not be put into the queue again, for ever."""
    folder = train(load_experiment(write_experiment(), ["callbacks.sender={at: 12}"]))
    assert saved(folder) == [0, 6, 12]
    assert not (folder / "requeue.marker").exists()


@pytest.mark.usefixtures("sender")
def test_the_command_line_says_where_a_stopped_run_stands(
    write_experiment: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    train_verb(write_experiment(), ["callbacks.sender={at: 4}"])
    said = " ".join(capfd.readouterr().out.split())
    assert "stopped by SIGTERM, saved at step 4 of 12; --resume goes on" in said


def test_handlers_are_put_back_and_only_taken_where_python_can() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == "SIGUSR1"
    assert [signal.getsignal(number) for number in SIGNALS] == before
    errors = []

    def elsewhere() -> None:
        try:
            with StopSignals():
                pass
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert errors == []


def _worker(ready: multiprocessing.synchronize.Event, done: multiprocessing.synchronize.Event):
    ignore_in_worker(0)
    ready.set()
    done.wait(60)


@pytest.mark.parametrize("sender", ["SLURM", "the parent"])
def test_a_loader_worker_ends_on_its_parents_signal_and_on_nobody_elses(sender: str) -> None:
    """SLURM signals every process of a job step; a worker that hangs must still go in the end."""
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    worker = context.Process(target=_worker, args=(ready, done))
    worker.start()
    assert ready.wait(20)
    if sender == "SLURM":
        for name in ("TERM", "USR1", "TERM"):
            subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
        worker.join(1)
        assert worker.is_alive()
        done.set()
    else:
        worker.terminate()
    worker.join(20)
    assert worker.exitcode == (0 if sender == "SLURM" else 128 + signal.SIGTERM)


def test_a_worker_whose_parent_was_killed_before_it_could_ask_ends_all_the_same() -> None:
    """It held the lock of the run's folder for ever, and every later start was refused."""
    context = multiprocessing.get_context("fork")
    told, tells = context.Pipe(duplex=False)
    late = context.Event()

    def worker() -> None:
        tells.send("born")
        late.wait(600)
        try:
            ignore_in_worker(0)
        finally:  # also after an error, which would end it too
            tells.send("goes on")

    def parent() -> None:
        context.Process(target=worker).start()
        threading.Event().wait(600)

    process = context.Process(target=parent)
    process.start()
    tells.close()
    assert told.recv() == "born"
    process.kill()
    process.join()
    late.set()
    with pytest.raises(EOFError):
        told.recv()


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("sender")
@pytest.mark.parametrize("code", [0, 85])
def test_a_stopped_runs_status_is_0_unless_another_is_asked_for(
    code: int, write_experiment: Write
) -> None:
    experiment = write_experiment()
    override = ["callbacks.sender={at: 4, names: SIGTERM}"]
    if code == 0:
        train_verb(experiment, override)
    else:
        with pytest.raises(typer.Exit) as ended:
            train_verb(experiment, override, exit_code_on_signal=code)
        assert ended.value.exit_code == code
    assert saved(experiment.parent / "run") == [0, 4]


def test_a_signal_that_comes_while_ranks_agree_stops_none_of_them_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others have been told 0: a rank that stopped by itself would leave them in the step."""
    told: list[int] = []

    def reduced(largest: torch.Tensor, op: object) -> None:
        told.append(int(largest))
        if len(told) == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", reduced)
    with StopSignals() as signals:
        assert not signals.on_any_rank(torch.device("cpu"))
        assert signals.received == "SIGUSR1"
        assert signals.on_any_rank(torch.device("cpu"))
    assert told == [0, signal.SIGUSR1]
