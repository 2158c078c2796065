"""What of a plan a callback measures, and says it leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_injection.config import InjectionConfig, ScheduleConfig, TaskConfig
from data_injection.plan import compile_plan
from olmo_ext.callbacks.base import check_measured
from olmo_ext.callbacks.interference import Interference
from olmo_ext.callbacks.loss_budget import LossBudget


@pytest.mark.parametrize("settings", [Interference(), LossBudget(instances=0)])
@pytest.mark.parametrize("labelled", [False, True])
def test_sequences_have_no_label_to_measure_and_that_is_said(
    settings: Any, labelled: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "s.jsonl").write_text(json.dumps({"tokens": [3, 4, 5], "copies": 2}) + "\n")
    canaries = TaskConfig(
        name="canaries", family="sequences", params={"file": str(tmp_path / "s.jsonl")}
    )
    cmp = TaskConfig(name="cmp", num_symbols=10, schedule=ScheduleConfig(rate=1))
    plan = compile_plan(
        InjectionConfig(tasks=[cmp, canaries] if labelled else [canaries]), batch_size=8,
        seq_len=16, epoch_rows=8, vocab_size=100, eos_token_id=0, num_steps=10,
    )  # fmt: skip
    check_measured("x", settings, plan)
    (said,) = caplog.messages
    if labelled:
        assert said == "callbacks.x leaves out what has no label to ask for: canaries"
        caplog.clear()
        settings.tasks = ["cmp"]  # left out by name
        check_measured("x", settings, plan)
        assert not caplog.messages
    else:
        assert "callbacks.x measures nothing" in said
