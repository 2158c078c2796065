"""The verbs that take minutes say what they do before two seconds have passed."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data_injection.beat import Beat
from data_injection.errors import ConfigError
from launch import doctor
from launch.lab.cells import run_cells
from launch.terminal import progress_bar
from olmo_ext.callbacks.task_eval import TaskEval
from olmo_ext.config import load_experiment
from olmo_ext.train import train
from theory.lab.cells import Cell, Row

SLOW = 2.6


class Lines(io.StringIO):
    """A pipe that remembers when each line came."""

    def __init__(self) -> None:
        super().__init__()
        self.times = [time.monotonic()]

    def write(self, text: str) -> int:
        if text.strip():
            self.times.append(time.monotonic())
        return super().write(text)

    def longest_silence(self) -> float:
        times = [*self.times, time.monotonic()]
        return max(b - a for a, b in itertools.pairwise(times))


def slow_cell(number: int) -> list[Row]:
    time.sleep(SLOW)
    return [{"value": number}]


def test_a_slow_cell_of_the_lab_is_not_silent(tmp_path: Path) -> None:
    pipe = Lines()
    with progress_bar(Console(file=pipe)) as bar:
        bar("phase", 0, 2)
        cells = [Cell(slow_cell, {"number": number}) for number in range(2)]
        run_cells(cells, tmp_path, progress=lambda cell, done, total: bar("phase", done, total))
    assert pipe.longest_silence() < 2.0
    assert "phase: 0 of 2" in pipe.getvalue()
    assert "phase: 1 of 2" in pipe.getvalue()


def test_training_tells_what_it_does_when_no_progress_line_can(
    write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = TaskEval._evaluate

    def slowly(self: TaskEval, trainer: Any) -> None:
        evaluated(self, trainer)
        if trainer.global_step in (0, trainer.last_step):
            time.sleep(SLOW)

    monkeypatch.setattr(TaskEval, "_evaluate", slowly)
    pipe = Lines()
    with Beat(lambda line: pipe.write(line + "\n") and None) as beat:
        pipe.times = [time.monotonic()]
        train(load_experiment(write_experiment()), beat=beat)
    assert "task_eval at step 0: 3 of 4" in pipe.getvalue()
    assert "task_eval at step 12: 3 of 4" in pipe.getvalue()
    # Between the steps `progress` has lines of its own, which do not come here.
    lines = pipe.getvalue().splitlines()
    begun = 1 + max(num for num, line in enumerate(lines) if "task_eval at step 0" in line)
    times = pipe.times[: begun + 1]
    assert max(b - a for a, b in itertools.pairwise(times)) < 2.0


def test_preparing_a_corpus_is_not_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_injection.corpus import prepare

    def slowly(*args: Any, **options: Any) -> Any:
        time.sleep(SLOW)
        raise ConfigError("too slow")

    monkeypatch.setattr(prepare, "train_tokenizer", slowly)
    with pytest.raises(ConfigError):
        prepare.prepare_embedded(tmp_path / "corpus", max_documents=3)
    assert "training a tokenizer on 0M characters: 0:00:0" in capsys.readouterr().err


def test_looking_at_the_machine_is_not_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slowly() -> list[doctor.Finding]:
        time.sleep(SLOW)
        return []

    monkeypatch.setattr(doctor, "examine", slowly)
    doctor.doctor()
    assert "importing the engine: 0:00:0" in capsys.readouterr().err
