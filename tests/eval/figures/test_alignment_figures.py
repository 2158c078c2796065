"""What the alignment figures show is what the records say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_injection.errors import ConfigError
from eval.alignment.controls import METRIC
from eval.figures.alignment import alignment, causal_map
from eval.figures.index import draw_figures
from eval.records import RecordWriter, read_records

VALUES = {"das": 0.9, "random_model": 0.35, "random_subspace": 0.05, "full_vector": 1.0}


def records(seed: int, *, rate: float = 4.0, step: int = 100) -> Iterator[dict]:
    shared = {
        "run": f"w64-s{seed}", "rung": "w64", "params": 64, "seed": seed, "plan_hash": "h",
        "protocol": "single", "step": step, "tokens": 1, "task": f"cmp_r{rate:.0f}",
        "family": "comparison", "rate_per_step": rate, "exposures_per_example": 1.0,
        "split": "test", "variant": "",
    }  # fmt: skip
    for subset, less in (("answered", 0.0), ("all", 0.3)):
        place = shared | {"subset": subset, "component": "residual", "majority": 0.5}
        for variable, position in (("tok1", 0), ("tok2", 1)):
            where = place | {"variable": variable, "position": position}
            for layer in (0, 1):
                for held_out in ("pairs", "symbols"):
                    for control, value in VALUES.items():
                        value = value - less - 0.2 * layer - 0.02 * seed
                        row = {"metric": METRIC, "control": control, "held_out": held_out}
                        yield where | row | {"layer": layer, "value": value}
                value = {"metric": "causal_recovered", "value": 1 - 0.5 * layer - less}
                yield where | value | {"layer": layer, "control": "full_vector"}
                yield where | value | {"layer": layer + 1, "component": "mlp"}


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    for seed in (0, 1):
        with RecordWriter(tmp_path / f"s{seed}" / "records.jsonl") as writer:
            writer.write(records(seed))
            writer.write(records(seed, rate=1.0))
            writer.write(records(seed, step=50))
    return read_records(tmp_path)


def test_lines_are_means_over_runs_of_the_answered_pairs_with_controls(frame: pd.DataFrame) -> None:
    figure = alignment(frame)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["tok1 at token 0", "tok2 at token 1"]
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["alignment search"], [0.89, 0.69])
    np.testing.assert_allclose(lines["the same in a random model"], [0.34, 0.14])
    np.testing.assert_allclose(lines["whole state"], [0.99, 0.79])
    assert figure.axes[0].get_ylabel() == "held-out symbols"
    (part,) = figure.subfigs
    assert part.get_suptitle() == "w64, comparison, single protocol, 4 per step: mean of 2 runs"


def test_of_a_place_searched_at_two_ranks_the_last_is_drawn_and_none_is_averaged(
    tmp_path: Path,
) -> None:
    with RecordWriter(tmp_path / "records.jsonl") as writer:
        for rank, lift in ((1, -0.3), (4, 0.0)):
            searched = (row for row in records(0) if row["metric"] == METRIC)
            writer.write(row | {"rank": rank, "value": row["value"] + lift} for row in searched)
    frame = read_records(tmp_path)
    assert set(frame["rank"]) == {1, 4}
    lines = {line.get_label(): line.get_ydata() for line in alignment(frame).axes[0].lines}
    np.testing.assert_allclose(lines["alignment search"], [0.9, 0.7])


def test_cells_of_the_map_are_the_recovered_shares(frame: pd.DataFrame) -> None:
    figure = causal_map(frame)
    shown = {
        axis.get_title(): [text.get_text() for text in axis.texts]
        for axis in figure.axes
        if axis.get_visible()
    }
    assert shown["tok1, residual"] == ["1.00", "0.50"]
    assert shown["tok2, mlp"] == ["1.00", "0.50"]
    assert "tok1, attention" not in shown


def test_records_without_a_search_have_no_such_figure(frame: pd.DataFrame) -> None:
    assert {"alignment.png", "causal.png"} <= {drawn.name for drawn in draw_figures(frame)}
    other = frame[frame.metric == "nothing"]
    for draw in (alignment, causal_map):
        with pytest.raises(ConfigError) as refused:
            draw(other)
        assert "olmo-ext features RUN --das" in refused.value.remedy
    with pytest.raises(ConfigError) as refused:
        alignment(frame[frame.subset == "all"])
    assert (refused.value.key, refused.value.remedy) == ("records", "train it further")
