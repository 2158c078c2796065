"""`olmo-ext verify` tells what does not hold from what does: each row has a case that it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import olmo_ext.verify.checks
import olmo_ext.verify.split
from launch.cli import app
from olmo_ext.verify.checks import LOOKS, same_weights, verify
from olmo_ext.verify.runs import Check, Runs
from olmo_ext.verify.split import device_gap, split


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


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
    runs: Runs, monkeypatch: pytest.MonkeyPatch
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


def test_weights_that_are_not_stocks_fail(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
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
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(runs: Runs) -> Any:
        raise RuntimeError("no such kernel\nand a trace")

    looks = {"broken": broken, "whole": lambda runs: [Check("whole", 1.0)]}
    monkeypatch.setattr(olmo_ext.verify.checks, "LOOKS", looks)
    said: list[str] = []
    first, second = verify(runs, say=said.append)
    assert (first.passed, second.passed) == (False, None)
    assert "no such kernel" in first.note
    assert said == ["broken", "whole"]


def test_the_same_device_has_the_same_gradient_and_bf16_another(runs: Runs) -> None:
    place = torch.device("cpu")
    assert device_gap(runs, place, "fp32") == 0
    assert 1e-4 < device_gap(runs, place, "amp_bf16") < 3e-2


def test_an_experiments_own_model_is_taken(write_experiment: Any, tmp_path: Path) -> None:
    runs = Runs(tmp_path, experiment=write_experiment())
    model = runs.experiment("one", steps=1, rate=1).train.model
    assert model.d_model == runs.experiment("two", steps=1).train.model.d_model
    assert passed(LOOKS["memory"](runs)) == {"peak memory of a step by plan --cost": True}
