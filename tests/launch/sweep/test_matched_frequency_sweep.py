"""The matched-frequency sweep: equal totals, bursts that fit, and controls that are twins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from refusals import refuses

from launch.grid import Sweep, load_sweep
from launch.runs import Run, plan_runs
from olmo_ext.build import compile_stream
from olmo_ext.config import load_experiment

SWEEP = (
    Path(__file__).parent.parent.parent.parent / "configs" / "confirm" / "matched_frequency.yaml"
)
GAPS = {"n1": 1, "n5": 5, "n10": 10, "n25": 25}


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """Random tokens stand in for the corpus."""
    tokens = np.random.default_rng(0).integers(2, 2048, size=8 * 128 * 3, dtype=np.uint16)
    tokens.tofile(tmp_path / "tokens.npy")
    ids = ["train.model.eos_token_id=0", "train.model.pad_token_id=1"]
    return [f"train.data.paths=[{tmp_path / 'tokens.npy'}]", *ids]


def one_seed(sweep: Sweep) -> Sweep:
    return replace(sweep, axes=sweep.axes | {"seed": {"s1": sweep.axes["seed"]["s1"]}})


def test_every_run_is_checked_and_has_the_full_runs_learning_rates(
    overrides: list[str], tmp_path: Path
) -> None:
    sweep = load_sweep(SWEEP)
    assert (len(sweep.points()), len(sweep.axes["seed"])) == (36, 3)
    runs: list[Run] = plan_runs(one_seed(sweep), tmp_path / "out", overrides=overrides)
    assert {run.settings["train"]["scheduler"]["t_max"] for run in runs} == {1200}
    assert sorted({run.num_steps for run in runs}) == [801, 1200]


def test_gaps_end_with_equal_totals_and_controls_are_one_run_until_the_burst(
    overrides: list[str],
) -> None:
    points = [p for p in one_seed(load_sweep(SWEEP)).points() if p.labels[1] == "w16"]
    plans = {}
    for point in points:
        given = [f"{key}={value}" for key, value in point.settings.items()]
        # A list of tasks is no dotted override's text; the sweep hands it on as JSON.
        given = [text for text in given if not text.startswith("injection.tasks=")]
        tasks = "[{name: cmp, num_symbols: 40, schedule: {kind: burst, rate: 4, every: 25}}]"
        experiment = load_experiment(
            point.experiment, [*overrides, f"injection.tasks={tasks}", *given]
        )
        plans[point.labels[2]] = compile_stream(experiment, manifest=None).plan
    for label, gap in GAPS.items():
        schedule = plans[label].schedules[0]
        assert (schedule.gap, schedule.before(1200), schedule.peak) == (gap, 4800, 4 * gap)
        assert schedule.count(1200) == 4 * gap  # the step after the last would be a burst
    full, once, control = (plans[f"n25{name}"] for name in ("", "_once", "_control"))
    for step in range(0, 600):
        rows = [plan.at(step) for plan in (full, once, control)]
        assert all(np.array_equal(rows[0].slots, other.slots) for other in rows[1:])
        assert all(np.array_equal(rows[0].examples, other.examples) for other in rows[1:])
    assert [len(plan.at(600)) for plan in (full, once, control)] == [100, 100, 0]
    assert [len(plan.at(625)) for plan in (full, once, control)] == [100, 0, 0]


def test_a_gap_whose_bursts_do_not_fit_is_refused_with_the_most_that_fits(
    overrides: list[str], tmp_path: Path
) -> None:
    sweep = load_sweep(SWEEP)
    gap = {"n50": {"injection.tasks.0.schedule.every": 50}}
    axes = {"seed": one_seed(sweep).axes["seed"], "gap": gap}
    key = "injection.tasks[0].schedule"
    with refuses(key=key, value=200, rule="at most 128 instances"):
        plan_runs(replace(sweep, axes=axes), tmp_path / "out", overrides=overrides)
