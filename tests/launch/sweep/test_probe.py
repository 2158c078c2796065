"""`--jobs auto`: the number side by side that trains most in total, by a probe before the runs."""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import launch.sweep.probe as probe
from data_injection.errors import ConfigError
from launch.grid import Sweep
from launch.reckon import Reckoner
from launch.runs import Run, plan_runs
from launch.sweep.executor import Started
from launch.sweep.sweep import parse_jobs
from olmo_ext.cost import extra_bytes

Write = Callable[..., Path]

BEFORE = {".lock", "settings.json"}
"""Files that a sweep's folders have before anything is trained in them."""


def test_memory_bounds_them_by_the_largest_runs_peak(
    write_experiment: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = {"size": {"small": {}, "large": {"train.device_train_microbatch_size": 4}}}
    runs = plan_runs(Sweep("demo", (write_experiment(),), axes), tmp_path)
    peaks = {run.name: _peak(run) for run in runs}
    assert peaks["demo-large"] > peaks["demo-small"]
    needed = peaks["demo-large"] + probe.PROCESS_BYTES
    for room, fit in ((3.01, 3), (2.99, 2), (0.5, 1)):  # one is tried in any case
        give_cards(monkeypatch, int(room * needed / probe.USABLE))
        assert probe.runs_that_fit(runs, gpus=["0", "1"]) == fit


def give_cards(monkeypatch: pytest.MonkeyPatch, smallest: int) -> None:
    """Two GPUs, the second with `smallest` bytes."""
    cards = [SimpleNamespace(total_memory=10**13), SimpleNamespace(total_memory=smallest)]
    monkeypatch.setattr("torch.cuda.get_device_properties", cards.__getitem__)


def _peak(run: Run) -> float:
    assert run.experiment is not None
    cost = Reckoner().row(run.experiment).cost
    extra = sum(extra_bytes(run.experiment, cost).values())
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
    40 steps a second until the last has begun, then 4; one whose name ends in -ends does so at
    second 5."""
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
            alone = max(len(seen) - 1 - slot, 0)  # seconds
            rest = clock[0] - 101 - slot - alone
            step = int(40 * (alone + min(rest, 0)) + 4 * max(rest, 0))
            speed = 4.0 if step >= 2 else None
            told = {"step": max(step, 0), "steps_per_second": speed, "time": clock[0]}
            (run.folder / "progress.json").write_text(json.dumps(told))
            if run.name.endswith("-ends") and clock[0] > 105:
                processes[slot].exitcode = 0

    monkeypatch.setattr(probe, "start", start)
    monkeypatch.setattr(probe, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0]))
    return seen


def test_the_total_is_of_the_time_in_which_all_train(tmp_path: Path, started: list) -> None:
    """Not of the seconds in which the first to start had the device for itself."""
    runs = [Run(name, tmp_path / name, ("train",), 900, 9000) for name in ("a", "b", "c")]
    speed = probe.total_speed(runs, gpus=["2", "5"], until=math.inf)
    assert speed == pytest.approx(12, rel=0.05)  # a progress file tells whole steps
    assert [pin["CUDA_VISIBLE_DEVICES"] for _, pin in started] == ["2", "5", "2"]


def test_one_that_ends_gives_no_speed(tmp_path: Path, started: list) -> None:
    runs = [Run(name, tmp_path / name, ("train",), 20, 200) for name in ("a", "b-ends")]
    assert probe.total_speed(runs, gpus=[], until=math.inf) is None


def test_a_try_ends_with_the_minutes_that_the_sweep_has(tmp_path: Path, started: list) -> None:
    runs = [Run("a", tmp_path / "a", ("train",), 900, 9000)]
    assert probe.total_speed(runs, gpus=[], until=104.0) is None


@pytest.mark.parametrize(
    ("speeds", "tried", "chosen"),
    [
        ({2: 20.0, 4: 38.0, 8: 60.0, 16: 62.0}, [2, 4, 8, 16], 8),  # launch-bound, then full
        ({2: 20.0, 4: 21.8, 8: 80.0}, [2, 4], 2),  # 9% more may be chance: nothing beyond is tried
        ({2: 20.0, 4: None, 8: 80.0}, [2, 4], 2),  # as where the device has too little memory
        ({2: None}, [2], 2),
    ],
)
def test_the_most_steps_a_second_by_a_clear_margin_are_chosen(
    speeds: dict, tried: list[int], chosen: int, sixteen: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def total_speed(copies: list[Run], **options: Any) -> float | None:
        asked.append(len(copies))
        return speeds[len(copies)]

    monkeypatch.setattr(probe, "total_speed", total_speed)
    assert probe.probe_jobs(sixteen, gpus=["0", "1"], console=Console(quiet=True)) == chosen
    assert asked == tried


@pytest.fixture
def sixteen(write_experiment: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Runs of one sweep, on a machine of many cores and two large GPUs."""
    monkeypatch.setattr(probe, "default_jobs", lambda gpus: len(gpus) or 64)
    give_cards(monkeypatch, 10**12)
    axes = {"seed": {f"s{number}": {"train.seed": number} for number in range(16)}}
    return plan_runs(Sweep("demo", (write_experiment(),), axes), tmp_path / "out")


def test_what_was_measured_is_told_and_the_runs_own_folders_are_not_touched(
    sixteen: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[Run]] = []

    def total_speed(copies: list[Run], **options: Any) -> float:
        tried.append(copies)
        return {2: 20.0, 4: 39.04, 8: 40.0}[len(copies)]

    monkeypatch.setattr(probe, "total_speed", total_speed)
    text = io.StringIO()
    given = {"gpus": ["0", "1"], "console": Console(file=text, width=80)}
    nine = sixteen[:9]
    assert probe.probe_jobs(nine, **given) == 4
    assert text.getvalue().splitlines() == [
        "--jobs auto: 9 runs are left; trying 2, 4, 8, 9",
        "steps/s in total: 20 by 2, 39 by 4, 40 by 8",
    ]
    first, copies = nine[0], tried[1]
    assert len({run.folder for run in copies}) == 4
    assert all(run.arguments[: len(first.arguments)] == first.arguments for run in copies)
    assert all(run.settings == first.settings for run in copies)
    assert not copies[0].folder.parent.exists()
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} <= BEFORE
    give_cards(monkeypatch, 10**6)
    assert probe.probe_jobs(nine, **given) == 2  # one each in any case
    assert probe.probe_jobs(nine[:1], **given) == 1
    assert len(tried) == 3  # where there is nothing to choose nothing is tried


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", ""])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_jobs(text)
    assert (refused.value.key, refused.value.value) == ("--jobs", text)
    assert [parse_jobs(given) for given in (None, "auto", "3")] == [None, "auto", 3]


@pytest.mark.slow
def test_tiny_runs_are_measured_and_leave_nothing_behind(
    write_experiment: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long, so that they are still training when they are measured; never trained to the end.
    experiment = write_experiment(lambda config: config["train"].update(max_duration=20_000))
    axes = {"seed": {"s1": {"train.seed": 1}, "s2": {"train.seed": 2}}}
    runs = plan_runs(Sweep("demo", (experiment,), axes), tmp_path / "out")
    (tmp_path / "tmp").mkdir()
    # Not all of Python's: the warm process's socket would have too long a path.
    folder_in = partial(tempfile.TemporaryDirectory, dir=tmp_path / "tmp")
    monkeypatch.setattr(probe, "TemporaryDirectory", folder_in)
    monkeypatch.setattr(probe, "default_jobs", lambda gpus: 4)  # also on one core
    monkeypatch.setattr(probe, "SECONDS", 1.0)
    speeds, measure = [], probe.total_speed
    monkeypatch.setattr(
        probe, "total_speed", lambda *a, **kw: speeds.append(measure(*a, **kw)) or speeds[-1]
    )
    text = io.StringIO()
    chosen = probe.probe_jobs(runs, gpus=[], console=Console(file=text, width=80))
    first, second = text.getvalue().splitlines()
    assert first == "--jobs auto: 2 runs are left; trying 1, 2"
    alone, together = speeds
    assert second == f"steps/s in total: {alone:.3g} by 1, {together:.3g} by 2"
    assert alone > 0
    assert chosen == (2 if together >= probe.CLEAR * alone else 1)
    assert list((tmp_path / "tmp").glob("olmo-ext-*")) == []
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} <= BEFORE
