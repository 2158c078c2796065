"""No work is silent for more than two seconds, whatever it does."""

from __future__ import annotations

import itertools
import time

from data_injection.beat import Beat


def test_a_slow_unit_is_never_silent_for_two_seconds() -> None:
    said: list[tuple[float, str]] = []
    began = time.monotonic()
    with Beat(lambda line: said.append((time.monotonic() - began, line))) as beat:
        beat.at("cells", 0, 3)
        time.sleep(4.5)
        beat.at("cells", 1, 3)
        time.sleep(1.5)
    times = [0.0, *(at for at, _ in said), time.monotonic() - began]
    assert max(after - before for before, after in itertools.pairwise(times)) < 2.0
    assert [line.split(",")[0] for _, line in said] == [
        "cells: 0 of 3",
        "cells: 0 of 3",
        "cells: 1 of 3",
    ]
    assert "about 0:00:09 more" in said[-1][1]  # 4.5 s a cell, two left
    assert "about" not in said[0][1]


def test_what_is_done_is_forgotten_and_a_stopped_beat_is_silent() -> None:
    said: list[str] = []
    with Beat(said.append, every=0.02) as beat:
        beat.at("shards", 2, 2)
        time.sleep(0.1)
        assert said == []
        beat.then("saving step 0")
        time.sleep(0.1)
        assert set(said) == {"saving step 0: 0:00:00"}
        beat.stop()
        num = len(said)
        beat.then("training")
        time.sleep(0.1)
    assert len(said) == num


def test_the_time_left_is_of_what_this_start_does() -> None:
    """What an earlier start did took no time of this one."""
    said: list[str] = []
    with Beat(said.append, every=1.1) as beat:
        beat.at("cells", 90, 100)
        time.sleep(1.0)
        beat.at("cells", 95, 100)
        time.sleep(0.2)
    assert said[0].endswith("about 0:00:01 more")


def test_after_a_step_only_what_lasts_is_said() -> None:
    """A training of many steps has its progress line; a callback that takes long has none."""
    said: list[str] = []
    with Beat(said.append, every=0.2) as beat:
        for _ in range(20):
            beat.step()
            with beat.during("features at step 7"):
                time.sleep(0.02)
        assert said == []
        beat.step()
        with beat.during("features at step 8"):
            time.sleep(0.2)
        with beat.during("interference at step 8"):
            time.sleep(0.2)
        num = len(said)
        time.sleep(0.5)
    assert set(said) == {"interference at step 8: 0:00:00"}
    assert len(said) == num, "what is done is not said any more"
