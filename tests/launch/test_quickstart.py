"""The quickstart's bookkeeping; its science is checked by `make smoke`, which CI runs."""

from __future__ import annotations

import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from data_injection.config import ConfigError
from launch import quickstart
from launch.quickstart import Run, RunFailed, train_all


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run("w4", tmp_path / "w4", ["train.seed=1"], 10, {"train": {"seed": 1}})


def finish(run: Run) -> None:
    checkpoint = run.folder / f"step{run.num_steps}-unsharded"
    checkpoint.mkdir(parents=True)
    for name in ("model.pt", "optim.pt", "train.pt", "config.yaml", "olmo_ext.json"):
        (checkpoint / name).touch()


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put a shell script in the place of olmo-ext."""
    path = folder / "olmo-ext"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))


def test_a_finished_run_is_not_trained_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, monkeypatch, "exit 1")
    finish(run)
    train_all([run], jobs=1, console=Console(quiet=True))
    assert run.process is None


def test_a_run_of_other_settings_is_refused_not_reported_as_this_one(run: Run) -> None:
    run.check_settings()
    replace(run).check_settings()
    with pytest.raises(ConfigError, match="choose another --out"):
        replace(run, settings={"train": {"seed": 2}}).check_settings()


def test_a_failed_run_shows_the_end_of_its_log_and_stops_the_others(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = 'case "$*" in *seed=1*) echo "no luck" >&2; exit 3;; *) exec sleep 60;; esac'
    program(tmp_path, monkeypatch, body)
    other = Run("w8", tmp_path / "w8", ["train.seed=2"], 10, {})
    with pytest.raises(RunFailed, match=r"(?s)w4 ended with status 3.*no luck"):
        train_all([run, other], jobs=2, console=Console(quiet=True))
    assert other.process is not None
    assert other.process.poll() is not None


def test_progress_is_read_from_the_log(run: Run) -> None:
    assert run.step() == 0
    run.log.parent.mkdir(parents=True)
    run.log.write_text("[w4] step 3/10 (30%)  loss 5\n[w4] step 7/10 (70%)  loss 4\n")
    assert run.step() == 7


def test_children_run_on_one_thread_and_offline() -> None:
    assert quickstart.ENVIRONMENT["OMP_NUM_THREADS"] == "1"
    assert quickstart.ENVIRONMENT["HF_HUB_OFFLINE"] == "1"
