"""`--jobs auto`: the number side by side that trains most in total, by a probe before the runs."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import launch.sweep.probe as probe
from data_injection.errors import ConfigError
from launch.grid import Sweep
from launch.runs import Run, plan_runs
from launch.sweep.executor import Started
from launch.sweep.verbs import _jobs

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("speeds", "tried", "chosen"),
    [
        ({1: 10, 2: 19, 4: 30, 8: 31}, [1, 2, 4, 8], 4),  # launch-bound, then full
        ({1: 10, 2: 10.9, 4: 40}, [1, 2], 1),  # 9% more may be chance; nothing beyond is tried
        ({2: 20, 4: 22}, [2, 4], 4),  # two GPUs, exactly a tenth
        ({1: 10, 2: None, 4: 40}, [1], 1),  # two cannot be trained
        ({1: None, 2: 9}, [], None),
    ],
)
def test_the_most_steps_a_second_by_a_clear_margin_are_chosen(
    speeds: dict, tried: list[int], chosen: int | None
) -> None:
    told = probe.climb(list(speeds), speeds.__getitem__)
    assert list(told) == tried
    assert probe.best(told) == chosen


def test_numbers_are_a_multiple_of_the_gpus_and_no_more_than_allowed() -> None:
    assert probe.doubled(1, most=8) == [1, 2, 4, 8]
    assert probe.doubled(2, most=7) == [2, 4, 7]
    assert probe.doubled(4, most=3) == [3]  # fewer runs than GPUs
    assert probe.doubled(1, most=0) == [1]  # nothing left to train


def test_memory_bounds_them_by_the_largest_runs_peak(
    write_experiment: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = {"size": {"small": {}, "large": {"train.device_train_microbatch_size": 4}}}
    runs = plan_runs(Sweep("demo", (write_experiment(),), axes), tmp_path)
    peaks = {run.name: _peak(run) for run in runs}
    assert peaks["demo-large"] > peaks["demo-small"]
    needed = peaks["demo-large"] + probe.PROCESS_BYTES
    for room, fit in ((3.01, 3), (2.99, 2), (0.5, 1)):  # one is tried in any case
        card = int(room * needed / probe.USABLE)
        monkeypatch.setattr(probe, "_device_bytes", lambda gpus, card=card: card)
        assert probe.runs_that_fit(runs, gpus=["0"]) == fit


def _peak(run: Run) -> float:
    assert run.experiment is not None
    cost = probe.Reckoner().row(run.experiment).cost
    extra = sum(probe.extra_bytes(run.experiment, cost).values())
    return max(cost.memory.start, cost.memory.step + extra)


class FakeProcess:
    exitcode: int | None = None
    killed = False

    def kill(self) -> None:
        self.killed = True

    def terminate(self) -> None:
        assert self.killed  # before it is asked to save

    def join(self) -> None:
        pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Run, dict]]:
    """(run, environment) of each start; by a clock of its own a run begins at 1 s a slot and does
    4 steps a second; one whose name ends in -ends does so at second 5."""
    clock, seen = [100.0], []
    processes: list[FakeProcess] = []

    def start(run: Run, environment: dict) -> Started:
        seen.append((run, environment))
        processes.append(FakeProcess())
        run.folder.mkdir(parents=True)
        return Started(run, processes[-1], 0)  # type: ignore[arg-type]

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        for slot, (run, _) in enumerate(seen):
            step = int((clock[0] - 101 - slot) * 4)
            speed = 4.0 if step >= 2 else None
            told = {"step": max(step, 0), "steps_per_second": speed, "time": 101 + slot + step / 4}
            (run.folder / "progress.json").write_text(json.dumps(told))
            if run.name.endswith("-ends") and clock[0] > 105:
                processes[slot].exitcode = 0

    monkeypatch.setattr(probe, "start", start)
    monkeypatch.setattr(probe, "time", SimpleNamespace(sleep=sleep))
    return seen


def test_the_total_is_of_the_time_in_which_all_train(tmp_path: Path, started: list) -> None:
    """Not of the seconds in which the first to start had the device for itself."""
    runs = [Run(name, tmp_path / name, ("train",), 900, 9000) for name in ("a", "b", "c")]
    assert probe.total_speed(runs, gpus=["2", "5"]) == pytest.approx(12)
    assert [pin["CUDA_VISIBLE_DEVICES"] for _, pin in started] == ["2", "5", "2"]


def test_one_that_ends_gives_no_speed(tmp_path: Path, started: list) -> None:
    runs = [Run(name, tmp_path / name, ("train",), 20, 200) for name in ("a", "b-ends")]
    assert probe.total_speed(runs, gpus=[]) is None


def test_the_bound_and_the_figures_are_told_and_the_first_ready_run_is_tried(
    write_experiment: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = {"seed": {f"s{number}": {"train.seed": number} for number in range(6)}}
    runs = plan_runs(Sweep("demo", (write_experiment(),), axes), tmp_path / "out")
    tried: list[list[Run]] = []

    def total_speed(copies: list[Run], *, gpus: list[str]) -> float:
        tried.append(copies)
        return {2: 20.0, 4: 39.0, 6: 40.0}[len(copies)]

    monkeypatch.setattr(probe, "total_speed", total_speed)
    monkeypatch.setattr(probe, "default_jobs", lambda gpus: 16)
    monkeypatch.setattr(probe, "_device_bytes", lambda gpus: 10**12)
    text = io.StringIO()
    given = {"gpus": ["0", "1"], "console": Console(file=text, width=80)}
    assert probe.probe_jobs(runs, **given) == 4
    assert text.getvalue().splitlines() == [
        "--jobs auto: 6 runs are left; trying 2, 4, 6",
        "steps/s in total: 20 by 2, 39 by 4, 40 by 6",
    ]
    copies = tried[1]
    assert len({run.folder for run in copies}) == 4
    assert all(run.arguments[: len(runs[0].arguments)] == runs[0].arguments for run in copies)
    assert all(run.settings == runs[0].settings for run in copies)
    assert not copies[0].folder.parent.exists()
    assert not (tmp_path / "out").exists()
    tried.clear()
    monkeypatch.setattr(probe, "_device_bytes", lambda gpus: 10**6)
    assert probe.probe_jobs(runs, **given) == 2
    assert tried == []  # one each in any case: there is nothing to choose


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", ""])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        _jobs(text)
    assert (refused.value.key, refused.value.value) == ("--jobs", text)
    assert [_jobs(given) for given in (None, "auto", "3")] == [None, "auto", 3]


@pytest.mark.slow
def test_tiny_runs_are_measured_and_leave_nothing_behind(
    write_experiment: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long, so that they are still training when they are measured; never trained to the end.
    experiment = write_experiment(lambda config: config["train"].update(max_duration=20_000))
    axes = {"seed": {"s1": {"train.seed": 1}, "s2": {"train.seed": 2}}}
    runs = plan_runs(Sweep("demo", (experiment,), axes), tmp_path / "out")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(probe, "default_jobs", lambda gpus: 2)  # also on one core
    monkeypatch.setattr(probe, "SECONDS", 1.0)
    text = io.StringIO()
    chosen = probe.probe_jobs(runs, gpus=[], console=Console(file=text, width=80))
    first, second = text.getvalue().splitlines()
    assert first == "--jobs auto: 2 runs are left; trying 1, 2"
    told = {int(n): float(s) for s, n in (p.split(" by ") for p in second[19:].split(", "))}
    assert list(told) == [1, 2]
    assert all(speed > 0 for speed in told.values())
    assert chosen == probe.best(told)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "out").exists()
