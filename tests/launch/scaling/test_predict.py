"""`olmo-ext predict`: what is put in comes out, plans tell twins, no clear gain is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from refusals import refuses
from rich.console import Console

from data_injection.errors import ConfigError
from launch.scaling.predict import predict, predicted, twins
from olmo_ext.config import load_experiment
from olmo_ext.train import train
from theory.advice.accumulation import course

CELL = ("w16", 41040, 0.01, "feedface", "cmp")
STEPS = range(900, 1501, 100)


def pairs(gain: float, forgetting: float, *, seeds: int, spread: float = 0.0) -> list[dict]:
    """Records of runs that follow the equation, seeds apart by a constant."""
    rates = {"gain": gain, "forgetting": forgetting, "ceiling": 0.9}

    def score(step: int) -> float:
        if step <= 1200:
            return course(step - 800, rate=16.0, **rates)
        return course(step - 1200, rate=0.0, **rates, x=score(1200))

    scores = pd.Series({step: score(step) for step in STEPS})
    burst = {"start": 800, "stop": 1200, "rate": 16.0, "last": 1501, "twin": scores * 0}
    apart = [spread * (2 * seed / max(seeds - 1, 1) - 1) for seed in range(seeds)]
    return [burst | {"seed": seed, "scores": scores + by} for seed, by in enumerate(apart)]


def test_rates_of_the_equation_come_out_with_an_interval_that_holds_them() -> None:
    found = predicted(CELL, pairs(6.2e-4, 6.9e-3, seeds=5, spread=0.02), 0.9)
    for name, true in (
        ("gain_per_instance", 6.2e-4),
        ("forgetting_per_step", 6.9e-3),
        ("rate", 6.9e-3 / 6.2e-4 / 0.8),
    ):
        value = found[name]
        assert value["value"] == pytest.approx(true, rel=0.02)
        assert value["low"] <= true <= value["high"]


@pytest.mark.parametrize(("gain", "seeds", "spread"), [(0.0, 5, 0.1), (1e-6, 1, 0.0)])
def test_a_burst_whose_gain_is_not_clear_is_refused(gain: float, seeds: int, spread: float) -> None:
    with pytest.raises(ConfigError) as error:
        predicted(CELL, pairs(gain, 1e-3, seeds=seeds, spread=spread), 0.9)
    assert error.value.key == "gain of w16 (cmp, feedface)"


def test_twins_are_found_by_their_plans_and_what_was_found_is_written(
    write_experiment: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = {"burst": (2, 6, 2), "none": (11, 12, 1)}
    constant = {"name": "constant_with_warmup", "t_warmup": 1}
    for name, (start, stop, rate) in windows.items():

        def edit(config: dict, window: Any = (start, stop, rate)) -> None:
            keys = ("start", "stop", "rate")
            schedule = {"kind": "window"} | dict(zip(keys, window, strict=True))
            config["injection"]["tasks"] = [{"name": "cmp", "num_symbols": 10}]
            config["injection"]["tasks"][0]["schedule"] = schedule
            config["callbacks"] = {"task_eval": {"every": 3}, "progress": None}
            config["train"]["scheduler"] = constant

        folder = f"train.save_folder={tmp_path / 'runs' / name}"
        train(load_experiment(write_experiment(edit), [folder]))
    [[pair]] = twins(tmp_path / "runs").values()
    assert (pair["start"], pair["stop"], pair["rate"]) == (2, 6, 2.0)
    assert list(pair["scores"].index) == list(pair["twin"].index) == [0, 3, 6, 9, 12]
    monkeypatch.setattr("launch.scaling.predict.CLEAR", -2.0)  # too short to have learned
    out = tmp_path / "predicted.json"
    predict(tmp_path / "runs", ceiling=0.9, out=out, console=Console())
    assert json.loads(out.read_text())["sizes"][0]["burst"] == {"start": 2, "stop": 6, "rate": 2.0}
    with pytest.raises(ConfigError) as error:
        twins(tmp_path / "runs" / "burst")
    assert error.value.key == "RUNS"
    # The twin cut off before its task came: it has not seen it, and is none.
    records = tmp_path / "runs" / "none" / "records.jsonl"
    whole = records.read_text()
    rows = [row for row in whole.splitlines(True) if json.loads(row)["step"] <= 9]
    records.write_text("".join(rows))
    with pytest.raises(ConfigError) as error:
        twins(tmp_path / "runs")
    assert error.value.key == "RUNS"
    records.write_text(whole)
    asked = tmp_path / "runs" / "burst" / "experiment.yaml"
    asked.write_text(asked.read_text().replace("constant_with_warmup", "cosine_with_warmup"))
    with pytest.raises(ConfigError) as error:
        twins(tmp_path / "runs")
    assert error.value.key == "train.scheduler.name"


@pytest.mark.parametrize("ceiling", [0.5, 1.01, float("nan")])
def test_a_ceiling_that_is_not_above_learned_is_refused_before_any_work(ceiling: float) -> None:
    with pytest.raises(ConfigError) as error:
        predict(Path("none"), ceiling=ceiling, out=None, console=Console())
    assert error.value.key == "--ceiling"


def test_a_ceiling_below_the_twins_score_is_refused() -> None:
    high = [one | {"twin": one["twin"] + 0.65} for one in pairs(6e-4, 4e-3, seeds=2)]
    high = [one | {"scores": one["scores"] + 0.65} for one in high]
    with refuses(key="--ceiling", value="0.6", rule="above the twin's score, 0.65"):
        predicted(CELL, high, 0.6)
