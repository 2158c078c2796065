"""No work is silent for more than two seconds, whatever it does."""

from __future__ import annotations

import itertools
import threading

import pytest

from data_injection.beat import Beat


class Clock:
    """A beat's time and waits, told by hand: a busy machine's clock proves nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.said: list[tuple[float, str]] = []
        monkeypatch.setattr("data_injection.beat.monotonic", lambda: self.now)
        self.beat = Beat(lambda line: self.said.append((self.now - 1000.0, line)))
        self._next = self.now + 1.5

    def passes(self, seconds: float) -> None:
        end = self.now + seconds
        while self._next <= end:
            self.now = max(self.now, self._next)
            wait = self.beat._look()
            assert wait > 0
            self._next = self.now + wait
        self.now = end

    def lines(self) -> list[str]:
        return [line for _, line in self.said]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_slow_unit_is_never_silent_for_two_seconds(clock: Clock) -> None:
    clock.beat.at("cells", 0, 3)
    clock.passes(4.6)
    clock.beat.at("cells", 1, 3)
    clock.passes(1.6)
    times = [0.0, *(at for at, _ in clock.said), 6.2]
    assert max(after - before for before, after in itertools.pairwise(times)) < 2.0
    told = [line.split(",")[0] for line in clock.lines()]
    assert told == ["cells: 0 of 3"] * 3 + ["cells: 1 of 3"]
    assert "about 0:00:12 more" in clock.lines()[-1]  # 6 s a cell, two left
    assert "about" not in clock.lines()[0]


def test_work_that_begins_after_a_silence_is_told_soon(clock: Clock) -> None:
    clock.passes(60)
    clock.beat.then("saving step 0")
    clock.passes(0.5)
    assert clock.lines() == ["saving step 0: 0:00:00"]


def test_a_log_of_days_stays_readable(clock: Clock) -> None:
    clock.beat.then("scanning")
    clock.passes(86_400)
    last = [at for at, _ in clock.said[-2:]]
    assert 250 < last[1] - last[0] < 300
    assert len(clock.said) < 2_200  # 400 in the first ten minutes, then the fewer the longer


def test_what_is_done_is_forgotten(clock: Clock) -> None:
    clock.beat.at("shards", 2, 2)
    clock.passes(10)
    assert clock.said == []


def test_the_time_left_is_of_what_this_start_does(clock: Clock) -> None:
    """What an earlier start did took no time of this one."""
    clock.beat.at("cells", 90, 100)
    clock.passes(1.0)
    clock.beat.at("cells", 95, 100)
    clock.passes(0.5)
    assert clock.lines() == ["cells: 95 of 100, 0:00:02, about 0:00:02 more"]


def test_after_a_step_only_what_lasts_is_said(clock: Clock) -> None:
    """A training of many steps has its progress line; a callback that takes long has none."""
    for _ in range(20):
        clock.beat.step()
        with clock.beat.during("features at step 7"):
            clock.passes(0.4)
    assert clock.said == []
    clock.beat.step()
    with clock.beat.during("features at step 8"):
        clock.passes(1.4)
    with clock.beat.during("interference at step 8"):
        clock.passes(1.4)
    clock.passes(5)
    assert clock.lines() == ["interference at step 8: 0:00:00"]


def test_a_beat_speaks_from_a_thread_of_its_own_until_it_is_stopped() -> None:
    said: list[str] = []
    spoken = threading.Event()

    def say(line: str) -> None:
        said.append(line)
        spoken.set()

    with Beat(say, every=0.02) as beat:
        beat.then("training")
        assert spoken.wait(60)
    num = len(said)
    assert all(line.startswith("training: ") for line in said)
    beat.then("training")
    assert not any(thread.name == "beat" for thread in threading.enumerate())
    assert len(said) == num
