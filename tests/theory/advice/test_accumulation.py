"""Gain and forgetting: what is put in by the equation comes out, and its closed forms hold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from theory.advice.accumulation import balance, course, threshold

STEPS = (900, 1000, 1100, 1200, 1300, 1400, 1500)
BURST = {"start": 800, "stop": 1200, "rate": 16.0, "ceiling": 0.9}


def curve(gain: float, forgetting: float, *, noise: float = 0.0, seed: int = 0) -> list[float]:
    """What a run and its twin would record, from a numerical solution in small steps."""
    x, by_step = 0.0, {}
    for step in range(800, 1500):
        rate = 16.0 if step < 1200 else 0.0
        for _ in range(20):
            x += (rate * gain * (0.9 - x) - forgetting * x) / 20
        by_step[step + 1] = x
    error = np.random.default_rng(seed).normal(0, noise, len(STEPS))
    return (np.array([by_step[step] for step in STEPS]) + error).tolist()


@pytest.mark.parametrize(("gain", "forgetting"), [(6.2e-4, 6.9e-3), (3e-4, 1.9e-3), (1e-4, 3e-4)])
def test_a_burst_of_the_equation_gives_its_numbers_back(gain: float, forgetting: float) -> None:
    found = balance(STEPS, {1: curve(gain, forgetting)}, **BURST)
    assert found.gain.value == pytest.approx(gain, rel=0.01)
    assert found.forgetting.value == pytest.approx(forgetting, rel=0.01)
    assert found.threshold.value == pytest.approx(forgetting / (0.8 * gain), rel=0.01)
    assert math.isnan(found.threshold.low)


def test_the_interval_covers_over_draws_of_the_noise() -> None:
    covered = []
    for draw in range(20):
        seeds = {s: curve(6e-4, 4e-3, noise=0.05, seed=100 * draw + s) for s in range(5)}
        found = balance(STEPS, seeds, **BURST)
        covered.append(found.threshold.low <= 4e-3 / (0.8 * 6e-4) <= found.threshold.high)
    assert sum(covered) >= 17


def test_without_forgetting_any_rate_will_do() -> None:
    found = balance(STEPS, {s: curve(6e-4, 0.0, noise=0.01, seed=s) for s in range(5)}, **BURST)
    assert found.threshold.low == 0
    assert found.threshold.value < 0.5


def test_at_the_threshold_the_score_settles_at_one_half() -> None:
    rate = threshold(6e-4, 4e-3, ceiling=0.9)
    assert course(1e6, rate=rate, gain=6e-4, forgetting=4e-3, ceiling=0.9) == pytest.approx(0.5)
    assert threshold(6e-4, 4e-3, ceiling=0.5) == math.inf


def test_a_twin_that_does_worse_than_guessing_leaves_more_room() -> None:
    lower = [value * 1.2 / 0.9 for value in curve(6e-4, 4e-3)]
    found = balance(STEPS, {1: lower}, **BURST, twin={1: -0.3})
    assert found.gain.value == pytest.approx(6e-4, rel=0.01)


def test_a_fitted_burst_with_a_twin_below_guessing_settles_at_one_half_at_its_threshold() -> None:
    """The equation with a twin at -.5, in small steps: what is put in comes out, and held at the
    rate* that is found it settles at one half, whatever the closed forms say."""
    gain, forgetting, below = 6e-4, 4e-3, -0.5

    def settle(x: float, rate: float, steps: int) -> float:
        for _ in range(20 * steps):
            x += (rate * gain * (0.9 - x) - forgetting * (x - below)) / 20
        return x

    over, x = [], below
    for step in STEPS:
        x = settle(x, 16.0 if step <= 1200 else 0.0, 100)
        over.append(x - below)
    found = balance(STEPS, {1: over}, **(BURST | {"start": 800}), twin={1: below})
    assert found.below == below
    assert found.gain.value == pytest.approx(gain, rel=0.01)
    assert found.forgetting.value == pytest.approx(forgetting, rel=0.01)
    assert settle(below, found.threshold.value, 3000) == pytest.approx(0.5, abs=0.01)
    closed = course(400, rate=16.0, gain=gain, forgetting=forgetting, ceiling=0.9, below=below)
    assert closed == pytest.approx(settle(below, 16.0, 400), abs=1e-3)
    idle = course(1e6, rate=0.0, gain=gain, forgetting=forgetting, ceiling=0.9, below=below, x=0.8)
    assert idle == pytest.approx(below)
