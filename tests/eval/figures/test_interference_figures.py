"""Interference by cell and its figure: the means that the records hold, with their nulls."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from refusals import refuses

from eval.figures.interference import interference
from eval.interference.table import interference_table, measured_steps
from eval.records import RecordWriter, read_records
from eval.statistics import student_t975

HOSTS = Path(__file__).parents[3] / "docs" / "findings" / "hosts" / "records.jsonl"
STEPS = (1, 101, 201, 301)
COSINES = {"cos_g_nt": -0.02, "cos_g_t_all": 0.3, "cos_g_t_label": 0.5, "cos_update": 0.01}
PLACES = (("mlp_top", 0, 768), ("layers", 0, 4096), ("layers", 1, 4096), ("model", None, 65536))


def records(
    rung: str, seed: int, *, places: tuple = PLACES, share: float = 0.4, task: str = "cmp"
) -> Iterator[dict]:
    """cos_g_nt is 0.5 in the first half (warm-up), then -.02 + .01 seed, its null .01 below."""
    shared = {
        **{"run": f"{rung}-s{seed}", "rung": rung, "params": int(rung[1:]) * 1000, "seed": seed},
        **{"plan_hash": "h", "protocol": "single", "task": task, "family": "comparison"},
        **{"rate_per_step": 4.0, "exposures_per_example": 1.0, "tokens": 1, "split": "all"},
    }
    for step in STEPS:
        late = step > 200
        for group, layer, dim in places:
            place = shared | {"step": step, "group": group, "n": 100, "dim": dim}
            place |= {} if layer is None else {"layer": layer}
            for metric, middle in COSINES.items():
                value = middle + 0.01 * seed if late else 0.5
                nulls = {"null_labels": value - 0.01, "perp": 0.005 + 0.01 * seed, "norm": 1.0}
                nulls |= {"null_random": 0.001, "random_spread": dim**-0.5}
                yield place | nulls | {"metric": metric, "value": value}
            yield place | {"metric": "norm_g_r", "value": 2.0, "perp_share": share}
    end = {"step": 400, "split": "test", "metric": "score", "value": 0.6, "subset": "all"}
    yield shared | end


def read(folder: Path, *runs: Iterator[dict]) -> pd.DataFrame:
    for index, rows in enumerate(runs):
        with RecordWriter(folder / str(index) / "records.jsonl") as writer:
            writer.write(rows)
    return read_records(folder)


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    return read(tmp_path, *(records(rung, seed) for rung in ("w16", "w64") for seed in range(3)))


def model_cell(table: pd.DataFrame, rung: str = "w16") -> pd.Series:
    return table[(table.group == "model") & (table.rung == rung)].iloc[0]


def test_a_cell_is_the_mean_of_the_last_half_per_seed_then_over_seeds(frame: pd.DataFrame) -> None:
    table = interference_table(frame)
    assert len(table) == len(PLACES) * 2
    cell = model_cell(table)
    assert cell.cos_g_nt == pytest.approx(-0.01)  # seeds give -.02, -.01 and 0
    half = student_t975(2) * 0.01 / math.sqrt(3)
    assert cell.cos_g_nt_low == pytest.approx(-0.01 - half)
    assert cell.cos_g_nt_high == pytest.approx(-0.01 + half)
    assert cell.cos_g_nt_null == pytest.approx(-0.02)
    assert (cell.cos_g_nt_excess, cell.cos_g_nt_excess_low) == pytest.approx((0.01, 0.01))
    assert cell.cos_g_nt_perp == pytest.approx(0.015)
    assert cell.abs_cos_g_nt == pytest.approx(0.01)
    assert cell.cos_g_t_all == pytest.approx(0.31)
    assert cell.cos_g_t_label == pytest.approx(0.51)
    assert cell.cos_update == pytest.approx(0.02)
    assert (cell.perp_share, cell.dim, cell.random_spread) == pytest.approx((0.4, 65536, 1 / 256))
    assert (cell.n_seeds, cell.n_steps, cell.provisional) == (3, 2, False)


def test_every_place_stands_alone(frame: pd.DataFrame) -> None:
    table = interference_table(frame[frame.rung == "w16"])
    places = [
        (row.group, None if row.layer != row.layer else row.layer) for _, row in table.iterrows()
    ]
    assert places == [("layers", 0), ("layers", 1), ("mlp_top", 0), ("model", None)]


def test_tasks_of_one_seed_are_one_draw(tmp_path: Path) -> None:
    """Five like tasks of a mixture do not make a cell of one seed one of five."""
    rows = read(tmp_path, records("w16", 0, task="a"), records("w16", 0, task="b"))
    cell = model_cell(interference_table(rows))
    assert (cell.n_seeds, cell.n_steps, cell.provisional) == (1, 2, True)
    assert cell.cos_g_nt == pytest.approx(-0.02)
    assert math.isnan(cell.cos_g_nt_low)


def test_a_step_without_rows_of_the_task_still_counts_for_the_rest(frame: pd.DataFrame) -> None:
    """Under a rare task some measured steps have a g_nt and no g_t."""
    gone = frame[~((frame.metric == "cos_g_t_label") & (frame.step == 301))]
    assert model_cell(interference_table(gone)).n_steps == 2
    none = interference_table(frame[frame.metric != "cos_g_t_label"])
    assert none.cos_g_t_label.isna().all()
    assert none.cos_g_nt.notna().all()


def test_committed_records_without_the_norm_of_g_r_have_a_table_without_its_share() -> None:
    table = interference_table(read_records(HOSTS))
    assert table.perp_share.isna().all()
    assert table.cos_g_nt.notna().all()


def test_an_undefined_cosine_is_left_out_not_0(frame: pd.DataFrame) -> None:
    frame.loc[(frame.metric == "cos_g_nt") & (frame.step == 301), "value"] = np.nan
    cell = model_cell(interference_table(frame))
    assert cell.cos_g_nt == pytest.approx(-0.01)
    assert cell.n_steps == 1


def test_without_interference_or_before_the_last_half_there_is_no_table(
    frame: pd.DataFrame,
) -> None:
    with refuses(key="records", rule="hold no interference", remedy="train with"):
        measured_steps(frame[frame.metric == "score"])
    with refuses(key="records", rule="no interference after 0.5 of a run's steps"):
        interference_table(frame[(frame.step < 200) | (frame.metric == "score")])


def test_the_figure_shows_the_cosine_its_null_perp_and_the_random_band(
    frame: pd.DataFrame,
) -> None:
    figure = interference(frame)
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles == [
        "comparison, single, 4 per step; strongest neurons of layer 0's MLP: 3 seeds",
        "comparison, single, 4 per step; whole model: 3 seeds",
    ]
    upper, lower = figure.subfigs[1].subfigs
    w16, w64 = upper.axes
    assert [axis.get_title()[:3] for axis in (w16, w64)] == ["w16", "w64"]
    value, null, perp = w16.lines[:3]
    np.testing.assert_allclose(value.get_ydata(), [0.5, 0.5, -0.01, -0.01])
    np.testing.assert_allclose(null.get_ydata(), [0.49, 0.49, -0.02, -0.02])
    np.testing.assert_allclose(perp.get_ydata(), 0.015)
    assert null.is_dashed()
    random, *bands = w16.collections
    assert random.get_paths()[0].vertices[:, 1].max() == pytest.approx(2 / 256)
    assert len(bands) == 3
    assert lower.axes[0].get_title() == "of the rest of the batch, $g_{nt}$"
    against_size = np.asarray(lower.axes[0].lines[0].get_ydata(), dtype=float)
    np.testing.assert_allclose(against_size, [-0.01, -0.01])
    assert lower.axes[0].get_xscale() == "log"


def test_below_three_seeds_there_is_a_mean_and_no_band(frame: pd.DataFrame) -> None:
    figure = interference(frame[frame.seed < 2])
    assert figure.subfigs[0].get_suptitle().endswith("2 seeds, provisional")
    upper, _ = figure.subfigs[0].subfigs
    assert len(upper.axes[0].collections) == 1  # the random band


def test_where_perp_speaks_for_little_the_panel_says_so(tmp_path: Path) -> None:
    figure = interference(read(tmp_path, records("w16", 0), records("w64", 0, share=0.05)))
    w16, w64 = figure.subfigs[0].subfigs[0].axes
    said = [" ".join(text.get_text() for text in axis.texts) for axis in (w16, w64)]
    assert "40%" in said[0]
    assert "little" not in said[0]
    assert "5% of $g_r$\nand speaks for little" in said[1]


def test_layers_are_drawn_where_there_is_nothing_else(tmp_path: Path) -> None:
    figure = interference(read(tmp_path, records("w16", 0, places=PLACES[1:3])))
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert [title.split("; ")[1] for title in titles] == [
        "layer 0: 1 seed, provisional",
        "layer 1: 1 seed, provisional",
    ]


def test_seeds_measured_at_steps_of_their_own_are_not_averaged(frame: pd.DataFrame) -> None:
    """Random schedules: the first injected step of an interval is another one in each seed."""
    frame["step"] += frame.seed * (frame.metric != "score")
    upper, _ = interference(frame).subfigs[1].subfigs
    assert len(upper.axes[0].lines) == 3 * 3 + 1  # each part and seed, and the line at 0
