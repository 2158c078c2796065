"""What programs are told of a running run, and that its ETA is of steps alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from olmo_ext.callbacks.progress import Progress
from olmo_ext.config import load_experiment
from olmo_ext.train import train

Write = Callable[..., Path]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def trainer_in(folder: Path, *, step: int = 0) -> Any:
    cfg = SimpleNamespace(save_folder=str(folder), run_name="tiny")
    return SimpleNamespace(cfg=cfg, global_step=step, last_step=100, max_steps=100)


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "progress.json").read_text())


def test_the_eta_counts_from_the_end_of_the_first_step(tmp_path: Path, clock: list[float]) -> None:
    """A start of ten minutes, a first step of one minute, then two steps a second."""
    progress, trainer = Progress(), trainer_in(tmp_path)
    clock[0] += 600
    progress.on_start(trainer)
    assert (told(tmp_path)["step"], told(tmp_path)["status"]) == (0, "starting")
    clock[0] += 60
    for step in range(1, 22):
        trainer.global_step = step
        progress.on_step(trainer, {"train/CrossEntropyLoss": 2.5})
        if step == 1:
            assert told(tmp_path)["eta"] is None
        clock[0] += 0.5
    found = told(tmp_path)
    assert (found["step"], found["last_step"], found["loss"]) == (21, 100, 2.5)
    assert found["steps_per_second"] == pytest.approx(2)
    assert found["eta"] == pytest.approx(79 / 2)


def test_a_start_keeps_the_speed_of_the_one_before_until_it_has_its_own(
    tmp_path: Path, clock: list[float]
) -> None:
    (tmp_path / "progress.json").write_text('{"step": 40, "steps_per_second": 4.0, "eta": 15.0}')
    progress, trainer = Progress(), trainer_in(tmp_path, step=40)
    progress.on_start(trainer)
    assert (told(tmp_path)["steps_per_second"], told(tmp_path)["eta"]) == (4.0, None)
    for step in (41, 42, 43):
        trainer.global_step = step
        progress.on_step(trainer, {"train/CrossEntropyLoss": 2.5})
        assert told(tmp_path)["steps_per_second"] == (4.0 if step == 41 else pytest.approx(0.5))
        clock[0] += 2


def test_the_file_is_written_once_a_second_and_at_the_last_step(
    tmp_path: Path, clock: list[float]
) -> None:
    progress, trainer = Progress(), trainer_in(tmp_path)
    progress.on_start(trainer)
    seen = []
    for step in range(1, 101):
        trainer.global_step = step
        clock[0] += 0.01
        progress.on_step(trainer, {"train/CrossEntropyLoss": float("nan")})
        seen.append(told(tmp_path)["step"])
    assert sorted(set(seen)) == [1, 100]
    assert told(tmp_path)["loss"] is None


def test_each_hundredth_of_the_run_leaves_its_speed_and_a_later_start_goes_on_below(
    tmp_path: Path, clock: list[float]
) -> None:
    trainer = trainer_in(tmp_path)
    trainer.max_steps = 1000
    for first in (0, 20):
        progress = Progress()
        progress.on_start(trainer)
        for step in range(first + 1, first + 31):
            trainer.global_step = step
            progress.on_step(trainer, {"train/CrossEntropyLoss": 2.5})
            clock[0] += 0.5
        with (tmp_path / "speed.jsonl").open("a") as file:
            file.write('{"step": 4')  # killed in the middle of a line
    lines = [json.loads(s) for s in (tmp_path / "speed.jsonl").read_text().splitlines()[:-1]]
    assert [line["step"] for line in lines] == [10, 20, 30, 30, 40, 50]
    assert {line["value"] for line in lines} == {2.0}


@pytest.mark.parametrize(
    ("overrides", "step", "status"), [([], 12, "finished"), (["train.stop_at=5"], 5, "stopped")]
)
def test_a_run_leaves_how_far_it_came(
    overrides: list[str], step: int, status: str, write_experiment: Write
) -> None:
    experiment = write_experiment(lambda c: c.update(callbacks={}))
    folder = train(load_experiment(experiment, overrides))
    assert (told(folder)["step"], told(folder)["status"]) == (step, status)
    assert told(folder)["loss"] > 0
