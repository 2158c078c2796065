"""The figure of what was learned by heart: its panels, levels and nulls, from a few records."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from refusals import refuses

from eval.figures.memorization import TITLES, memorization


def records(num_seeds: int) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for seed in range(num_seeds):
        run = {"run": f"r{seed}", "seed": seed, "rung": "w32", "params": 1000, "task": "seq"}
        for step in (100, 200):
            for copies in (0, 1, 64):
                subset = {"copies": copies, "subset": f"copies={copies}", "step": step}
                for metric in TITLES:
                    value = 0.1 + copies / 100 + step / 1000
                    interval = {
                        "value": value,
                        "low": value - 0.1 if copies else value + 1e-17 + 2e-16,
                        "high": value + 0.1,
                    }
                    rows.append(run | subset | {"metric": metric, "null_mean": 1.4} | interval)
            for metric in ("sequence_loss", "extraction"):
                told = {"copies": 0, "subset": "twins", "step": step, "metric": metric}
                rows.append(run | told | {"value": 0.25, "low": 0.2, "high": 0.3})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("num_seeds", [1, 2, 3])
def test_a_panel_a_measure_at_the_last_step_with_its_null(num_seeds: int):
    figure = memorization(records(num_seeds))
    axes = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in axes] == list(TITLES.values())
    nulls = {"sequence_loss": 0.25, "extraction": 0.25, "exposure": 1.4, "membership_auc": 0.5}
    for axis, metric in zip(axes, TITLES, strict=True):
        lines = [line.get_ydata() for line in axis.lines]
        assert [0.3, 0.31, 0.94] in [pytest.approx(list(y)) for y in lines if len(y) == 3]
        assert [nulls[metric]] * 2 in [pytest.approx(list(y)) for y in lines if len(y) == 2]
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ["0", "1", "64"]


def test_records_without_sequences_are_refused():
    with refuses(key="records", rule="no memorization", remedy="a task of family sequences"):
        memorization(records(1).drop(columns="copies"))
