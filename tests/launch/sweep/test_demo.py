"""The demo trains, and says in words what happened; somebody else's folder is left alone."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from refusals import refuses
from rich.console import Console

from eval.records import read_records
from launch.sweep import demo as module
from launch.sweep.demo import demo


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 6)
    monkeypatch.setattr(module, "DOCUMENTS", 5)


def test_it_tells_what_it_did_and_is_a_run_like_any_other(tmp_path: Path, small: None) -> None:
    """Twice: the second takes the first one's place, which began where one had been killed."""
    (tmp_path / "run" / "logs").mkdir(parents=True)
    for name in (".lock", ".plan.json.1.tmp"):
        (tmp_path / "run" / name).touch()
    threads = torch.get_num_threads()
    for _ in range(2):
        out = io.StringIO()
        demo(tmp_path, console=Console(file=out, width=200), errors=Console(quiet=True))
    said = out.getvalue()
    assert torch.get_num_threads() == threads
    assert "24 examples in each step's batch, exactly: 144 in all" in said
    assert "at step 0, " in said
    assert "at step 6." in said
    assert "not learned the order (yet)" in said
    assert "yes: plan, ledger, text and weights agree" in said
    assert (tmp_path / "run" / "report.html").is_file()
    assert read_records(tmp_path / "run").step.max() == 6


def test_a_folder_that_is_no_demos_is_refused(tmp_path: Path, small: None) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with refuses(key="--out", value=tmp_path, rule="no demo's"):
        demo(tmp_path, console=Console(quiet=True), errors=Console(quiet=True))
    assert (tmp_path / "run" / "thesis.txt").exists()
