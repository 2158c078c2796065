"""`olmo-ext verify` tells what does not hold from what does: each row has a case that it fails."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from typer.testing import CliRunner

import olmo_ext.verify.bench
import olmo_ext.verify.checks
import olmo_ext.verify.split
from data_injection.errors import ConfigError
from launch.cli import app
from olmo_ext.verify.bench import num_rows
from olmo_ext.verify.checks import LOOKS, same_weights, verify
from olmo_ext.verify.runs import Check, TrialRuns
from olmo_ext.verify.split import device_gap, split


@pytest.fixture
def runs(tmp_path: Path) -> TrialRuns:
    return TrialRuns(tmp_path)


def passed(checks: Any) -> dict[str, bool | None]:
    return {check.name: check.passed for check in checks}


@pytest.mark.slow
def test_the_verb_passes_here_and_writes_what_it_shows(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["verify", "--json", str(tmp_path / "rows.json")])
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["passed"] for row in rows} == {True, None}
    assert "all checks passed" in done.output
    assert all(row["name"] in done.output for row in rows)


def test_a_wrong_gradient_split_fails_in_both_precisions(
    runs: TrialRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = olmo_ext.verify.split.step_parts
    assert set(passed(split(runs)).values()) == {True}

    def wrong(*args: Any, **settings: Any) -> Any:
        return {n: [1.1 * part for part in v] for n, v in right(*args, **settings).items()}

    monkeypatch.setattr(olmo_ext.verify.split, "step_parts", wrong)
    found = passed(split(runs))
    assert [name for name, held in found.items() if not held] == [
        *("g_t by short rows, fp32", "g_t + g_nt from g, fp32"),
        *("g_t by short rows, amp_bf16", "g_t + g_nt from g, amp_bf16"),
    ]


def test_weights_that_are_not_stocks_fail(runs: TrialRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    right = olmo_ext.verify.checks.stock

    def nudged(experiment: Any) -> Any:
        trainer = right(experiment)
        with torch.no_grad():
            next(trainer.model.parameters()).view(-1)[0] += 1e-6
        return trainer

    monkeypatch.setattr(olmo_ext.verify.checks, "stock", nudged)
    assert passed(same_weights(runs)) == {
        "ours against ours": True,
        "ours against stock ai2-olmo": False,
    }


def test_what_raises_has_failed_and_the_rest_is_still_checked(
    runs: TrialRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(runs: TrialRuns) -> Any:
        raise RuntimeError("no such kernel\nand a trace")

    looks = {"broken": broken, "whole": lambda runs: [Check("whole", 1.0)]}
    monkeypatch.setattr(olmo_ext.verify.checks, "LOOKS", looks)
    said: list[str] = []
    first, second = verify(runs, say=said.append)
    assert (first.passed, second.passed) == (False, None)
    assert "no such kernel" in first.note
    assert said == ["broken", "whole"]


def test_the_same_device_has_the_same_gradient_and_bf16_another(runs: TrialRuns) -> None:
    place = torch.device("cpu")
    assert device_gap(runs, place, "fp32") == 0
    assert 1e-4 < device_gap(runs, place, "amp_bf16") < 3e-2


def test_an_experiments_own_model_is_taken(write_experiment: Any, tmp_path: Path) -> None:
    runs = TrialRuns(tmp_path, experiment=write_experiment())
    model = runs.experiment("one", steps=1, rate=1).train.model
    assert model.d_model == runs.experiment("two", steps=1).train.model.d_model
    off, on = LOOKS["memory"](runs)
    assert (off.name, on.name) == tuple(
        f"peak MB of a step, {what}" for what in ("callbacks off", "all callbacks")
    )
    for row in (off, on):  # numbers, which the JSON then has
        assert 0 < row.value <= row.bound
    assert off.bound < on.bound


class ToldSteps:
    """A stepper whose seconds are told: stock's .2 and .4 in turns, ours half as long again."""

    taken: ClassVar[list[str]] = []

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.seconds, self.losses = trainer, [], []

    def step(self, *, timed: bool = True) -> None:
        self.losses.append(float(len(self.losses)))
        if timed:
            self.taken.append(self.trainer.name)
            self.seconds.append((0.2, 0.4)[len(self.seconds) % 2] * self.trainer.slower)


def test_bench_takes_turns_and_divides_by_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(olmo_ext.verify.bench, "Stepper", ToldSteps)
    model = SimpleNamespace(max_sequence_length=100, num_fwd_flops=1e9, num_bck_flops=2e9)
    cfg = SimpleNamespace(global_train_batch_size=3, model=model)
    a, b = (
        SimpleNamespace(name=name, slower=slower, model=model, cfg=cfg)
        for name, slower in (("stock", 1.0), ("ours", 1.5))
    )
    told = olmo_ext.verify.bench.turns(a, b, steps=10, seconds=1e9, peak_tflops=10)
    blocks = [ToldSteps.taken[at : at + 5] for at in range(0, 20, 5)]
    assert blocks == [[name] * 5 for name in ("ours", "stock", "stock", "ours")]
    assert told["steps"] == 10
    assert told["ratio"] == pytest.approx(1.5)
    assert told["ours_tok_s"] == pytest.approx(300 / 0.45)
    assert told["ours_mfu"] == pytest.approx(3e9 * 300 / 0.45 / 10e12)


def test_the_bench_verb_times_both_trainers_and_writes_what_it_shows(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    asked = ["--steps", "6", "--rows", "1", "--micro-batch", "1", "--json", str(path)]
    done = CliRunner().invoke(app, ["bench", *asked])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(path.read_text())
    assert row["steps"] == 5  # whole turns
    assert row["ours_s"] > 0 < row["stock_s"]
    assert f"{row['ratio']:.3f}" in done.output
    refused = CliRunner().invoke(app, ["bench", "--rows", "7"])
    assert isinstance(refused.exception, ConfigError)
    assert refused.exception.key == "--micro-batch"


def test_the_text_of_bench_lasts_for_all_steps_of_both(tmp_path: Path) -> None:
    asked = {"train__global_train_batch_size": 2, "train__device_train_microbatch_size": 2}
    runs = TrialRuns(tmp_path, rows=num_rows(20, 2))
    told = olmo_ext.verify.bench.bench(runs, steps=20, seconds=1e9, peak_tflops=1, **asked)
    assert told["steps"] == 20
