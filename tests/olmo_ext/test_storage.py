"""Disks that fill up, cannot be written or are shared, and clocks that go backwards."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from refusals import refuses

from data_injection.errors import ConfigError
from data_injection.lock import lock_folder
from eval.checkpoints.checkpoint import find_checkpoints, verify_checkpoint
from eval.records import read_records
from launch.sweep.executor import fork_server, run_olmo_ext
from olmo_ext.config import load_experiment
from olmo_ext.train import train

Write = Callable[..., Path]

KIB = 1024


def final(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(find_checkpoints(folder)[-1].path / "model.pt", weights_only=True)


class Disk:
    """A small file system of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self, *options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(self.path)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def leave(self, num_bytes: int) -> None:
        """Fill it up to so many free bytes."""
        (self.path / "filler").unlink(missing_ok=True)
        free = os.statvfs(self.path)
        size = free.f_bavail * free.f_frsize - num_bytes
        (self.path / "filler").write_bytes(b"\0" * max(size, 0))

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], capture_output=True, check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A tmpfs of 4 MiB; mounting needs root, which CI has."""
    path = tmp_path / "disk"
    path.mkdir()
    made = Disk(path)
    if not made.mount("size=4m"):
        pytest.skip("cannot mount a small file system here")
    yield made
    made.unmount()


@pytest.mark.parametrize("free", [0, 60, 120, 200, 280, 360, 440, 520, 640])
def test_a_disk_that_fills_up_at_any_point_leaves_what_was_there_and_the_run_goes_on(
    free: int, disk: Disk, write_experiment: Write, tiny_run: Write
) -> None:
    """So many KiB are free at the start; a checkpoint takes about 150."""
    experiment = write_experiment()
    overrides = [f"train.save_folder={disk.path / 'run'}", "train.save_interval_unsharded=3"]
    disk.leave(free * KIB)
    with pytest.raises((OSError, ConfigError)) as caught:
        train(load_experiment(experiment, overrides))
    said = str(caught.value)
    assert "No space left" in said
    assert str(disk.path) in said
    folder = disk.path / "run"
    checkpoints = find_checkpoints(folder)
    assert all(verify_checkpoint(checkpoint.path) == [] for checkpoint in checkpoints)
    assert not list(folder.glob("*-tmp"))  # what a failed save took is free again
    kept = {c.path: (c.path / "model.pt").read_bytes() for c in checkpoints}
    disk.leave(3000 * KIB)
    train(load_experiment(experiment, overrides), resume=True)
    assert all((path / "model.pt").read_bytes() == data for path, data in kept.items())
    assert len(read_records(folder).query("metric == 'train_loss'")) == 12
    ours, theirs = final(folder), final(tiny_run())
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_full_disk_is_one_sentence_on_the_command_line(
    disk: Disk, write_experiment: Write
) -> None:
    disk.leave(400 * KIB)
    log = disk.path.parent / "log"
    arguments = ["train", str(write_experiment()), "-o", f"train.save_folder={disk.path / 'run'}"]
    process = fork_server().Process(target=run_olmo_ext, args=(arguments, log))
    process.start()
    process.join(60)
    assert process.exitcode == 1
    said = " ".join(log.read_text().split())
    assert "No space left on device (0 MiB free). Checkpoints, records and ledger" in said
    assert "go on with --resume" in said
    assert "Traceback" not in said


def test_a_folder_on_a_read_only_disk_is_refused_before_any_work(
    disk: Disk, write_experiment: Write
) -> None:
    assert disk.mount("remount", "ro")
    with refuses(key="train.save_folder", value=disk.path, remedy="read-only"):
        train(load_experiment(write_experiment(), [f"train.save_folder={disk.path / 'run'}"]))


def test_a_run_whose_disk_has_become_read_only_keeps_all_it_has(
    disk: Disk, write_experiment: Write
) -> None:
    overrides = [f"train.save_folder={disk.path / 'run'}"]
    folder = train(load_experiment(write_experiment(), [*overrides, "train.stop_at=6"]))
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert disk.mount("remount", "ro")
    with refuses(key="train.save_folder", value=folder, remedy="read-only"):
        train(load_experiment(write_experiment(), overrides), resume=True)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_clock_that_goes_backwards_changes_nothing(
    write_experiment: Write, tiny_run: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_run()
    ticks = itertools.count()
    monkeypatch.setattr("time.time", lambda: 1e9 - 3600 * next(ticks))
    train(load_experiment(write_experiment(), ["train.stop_at=6"]))
    folder = train(load_experiment(write_experiment()), resume=True)
    assert next(ticks) >= 2  # it is looked at, if seldom
    assert sorted(p.name for p in (folder / "ledger").iterdir()) == [
        "segment-00000.bin",
        "segment-00001.bin",
    ]
    ours, theirs = final(folder), final(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_of_two_processes_on_one_folder_one_trains_and_the_other_says_why_not(
    write_experiment: Write, tmp_path: Path
) -> None:
    long = "train.max_duration=4000"
    arguments = ["train", str(write_experiment()), "--resume", "-o", long]
    logs = [tmp_path / "one.log", tmp_path / "two.log"]
    both = [fork_server().Process(target=run_olmo_ext, args=(arguments, log)) for log in logs]
    for process in both:
        process.start()
    try:
        # Both find an empty folder; the lock lets one of them have it.
        while all(process.is_alive() for process in both):
            both[0].join(0.2)
        loser, winner = sorted(both, key=lambda process: process.is_alive())
        assert winner.is_alive()
        assert loser.exitcode == 2
        said = " ".join(logs[both.index(loser)].read_text().split())
        assert "is being written by another process; wait for it or choose another folder" in said
    finally:
        for process in both:
            process.terminate()
            process.join(60)
    assert winner.exitcode == 0  # SIGTERM: saved
    folder = tmp_path / "run"
    assert (folder / "requeue.marker").exists()
    assert len(list((folder / "ledger").iterdir())) == 1


def test_a_lock_is_waited_for_as_long_as_asked(tmp_path: Path) -> None:
    """The loader's workers of a killed run hold it for some seconds more."""
    code = (
        "from pathlib import Path; from data_injection.lock import lock_folder\n"
        f"with lock_folder(Path({str(tmp_path)!r})):\n"
        "    print('held', flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        key = f"the run's folder {tmp_path}"
        with refuses(key=key, rule="another process"), lock_folder(tmp_path):
            pass
        threading.Timer(1.0, os.write, [holder.stdin.fileno(), b"\n"]).start()
        with lock_folder(tmp_path, patience=600):
            pass
