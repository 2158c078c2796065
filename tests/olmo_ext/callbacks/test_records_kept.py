"""No callback loses a measurement: between its call and the records, or under W&B."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import olmo_ext.trainer
from eval.records import identity, read_records, record_name
from olmo_ext.callbacks.build import CALLBACKS
from olmo_ext.config import load_experiment
from olmo_ext.train import train

Row = Mapping[str, Any]

SETTINGS: dict[str, dict[str, Any]] = {
    "interference": {"every": 3, "top_k": 4, "window": 6, "instances": 6},
    "loss_budget": {"every": 3, "record": 6, "instances": 10, "exact": 2},
    "task_eval": {"every": 3},
    "retention": {"lags": [1, 2], "min_gap": 1},
    "features": {"every": 6},
    "progress": {},
}


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, write_experiment_in: Callable[[Path], Any]
) -> tuple[Path, list[tuple[str, Row]]]:
    """A run with every callback: its folder, and what was mirrored (callback, row)."""
    seen: list[tuple[str, Row]] = []

    def edit(config: dict) -> None:
        config["train"]["model"]["n_layers"] = 2
        config["injection"]["tasks"][0]["schedule"] = {
            "kind": "burst", "rate": 1, "every": 5, "phase": 2,
        }  # fmt: skip
        config["callbacks"] = SETTINGS

    path = write_experiment_in(tmp_path_factory.mktemp("kept"))(edit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(olmo_ext.trainer, "mirror", lambda *shown: seen.append(shown))
        return train(load_experiment(path)), seen


def test_every_row_that_is_written_is_read(measured: tuple[Path, list[tuple[str, Row]]]) -> None:
    folder, seen = measured
    assert set(SETTINGS) == set(CALLBACKS)
    # Progress prints; the others record.
    assert {callback for callback, _ in seen} == set(CALLBACKS) - {"progress"}
    lines = (folder / "records.jsonl").read_text().splitlines()
    written = Counter(identity(json.loads(line)) for line in lines)
    assert len(lines) == len(seen)
    assert [key for key, num in written.items() if num > 1] == []
    assert len(read_records(folder)) == len(lines)


def test_rows_of_a_step_are_on_curves_of_their_own(
    measured: tuple[Path, list[tuple[str, Row]]],
) -> None:
    points = Counter((record_name(callback, row), row["step"]) for callback, row in measured[1])
    assert [point for point, num in points.items() if num > 1] == []
