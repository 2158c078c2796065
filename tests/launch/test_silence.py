"""The verbs that take minutes say what they do within a beat (its time: test_beat.py)."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from waiting import lines_of_beats

from data_injection.beat import Beat
from data_injection.errors import ConfigError
from launch import doctor
from launch.lab.cells import run_cells
from launch.terminal import progress_bar
from olmo_ext.callbacks.task_eval import TaskEval
from olmo_ext.config import load_experiment
from olmo_ext.train import train
from theory.lab.cells import Cell, Row

Spoken = Callable[[], None]


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> Spoken:
    """Slow work: as long as a beat takes to say what is at work."""
    return lines_of_beats(monkeypatch)


def test_a_slow_cell_of_the_lab_is_not_silent(tmp_path: Path, spoken: Spoken) -> None:
    def slow_cell(number: int) -> list[Row]:
        spoken()
        return [{"value": number}]

    pipe = io.StringIO()
    with progress_bar(Console(file=pipe)) as bar:
        bar("phase", 0, 2)
        cells = [Cell(slow_cell, {"number": number}) for number in range(2)]
        run_cells(cells, tmp_path, progress=lambda cell, done, total: bar("phase", done, total))
    assert "phase: 0 of 2" in pipe.getvalue()
    assert "phase: 1 of 2" in pipe.getvalue()


def test_training_tells_what_it_does_when_no_progress_line_can(
    write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, spoken: Spoken
) -> None:
    evaluated = TaskEval._evaluate

    def slowly(self: TaskEval, trainer: Any) -> None:
        evaluated(self, trainer)
        if trainer.global_step in (0, trainer.last_step):
            spoken()

    monkeypatch.setattr(TaskEval, "_evaluate", slowly)
    said: list[str] = []
    with Beat(said.append) as beat:
        train(load_experiment(write_experiment()), beat=beat)
    for step in (0, 12):
        assert any(line.startswith(f"task_eval at step {step}: 3 of 4") for line in said)


def test_preparing_a_corpus_is_not_silent(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoken: Spoken,
) -> None:
    from data_injection.corpus import prepare

    def slowly(*args: Any, **options: Any) -> Any:
        spoken()
        raise ConfigError("too slow")

    monkeypatch.setattr(prepare, "train_tokenizer", slowly)
    with pytest.raises(ConfigError):
        prepare.prepare_embedded(tmp_path / "corpus", max_documents=3)
    assert "training a tokenizer on 0M characters: 0:00:0" in capsys.readouterr().err


def test_looking_at_the_machine_is_not_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spoken: Spoken
) -> None:
    def slowly() -> list[doctor.Finding]:
        spoken()
        return []

    monkeypatch.setattr(doctor, "examine", slowly)
    doctor.doctor()
    assert "importing the engine: 0:00:0" in capsys.readouterr().err
