"""Equal frequency at unequal gaps: what stands beside what, and the two figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from refusals import refuses
from scipy.stats import t

from eval.figures.retention import forgetting, gaps
from eval.figures.style import png
from eval.records import RecordWriter, read_records
from eval.retention.matched_frequency import matched_frequency
from eval.retention.retained import bursts

GAPS = (1, 5, 25)
LAGS = (0, 1, 5, 20, 24)


def run(
    rung: str, gap: int, seed: int, *, left_out: bool = False, rate: float = 4.0, end: int = 200,
    entropy: float = 0.8, **said: object,
) -> Iterator[dict]:  # fmt: skip
    """Records of one run: the loss at its end is .1 x gap + .01 x seed, at each burst 1 more."""
    label = f"burst every {gap}" + (" until 150" if left_out else "")
    shared = {
        **{"run": f"{rung}-{label}-{seed}", "rung": rung, "params": int(rung[1:]) * 1000},
        **{"seed": seed, "learning_rate": 0.003, "plan_hash": label, "protocol": "single"},
        **{"tokens": 1, "task": "cmp", "family": "comparison", "schedule": label},
        **{"variant": f"{label}, 40 symbols", "gap": None if left_out else gap},
        **{"rate_per_step": rate, "exposures_per_example": 6.0, "split": "test", "subset": "all"},
        **said,
    }
    loss = 0.1 * gap + 0.01 * seed
    if not left_out:
        for step in (100, end):
            values = {"label_loss": loss, "score": 1 - loss / 4, "label_entropy": entropy}
            for metric, value in values.items():
                yield shared | {"step": step, "metric": metric, "value": value}
    if gap == 1:
        return
    place = {"burst": 7, "burst_step": 150, "instances": 0 if left_out else 4 * gap}
    before = loss + 1
    yield shared | place | {"step": 150, "metric": "label_loss_before", "value": before}
    for lag in LAGS:
        moved = 0.01 * lag if left_out else -(0.3 + 0.02 * seed) * 2 ** (-lag / 20)
        when = {"step": 151 + lag, "lag": lag, "metric": "label_loss_lag"}
        yield shared | place | when | {"value": before + moved}


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    with RecordWriter(tmp_path / "records.jsonl") as writer:
        for rung in ("w16", "w64"):
            for seed in (1, 2, 3):
                for gap in GAPS:
                    writer.write(run(rung, gap, seed))
                writer.write(run(rung, 25, seed, left_out=True))
    return read_records(tmp_path)


def test_each_gap_has_the_mean_over_seeds_at_the_end_and_its_interval(frame: pd.DataFrame) -> None:
    table = matched_frequency(frame)
    assert list(zip(table.rung, table.gap, strict=True)) == [
        (rung, gap) for rung in ("w16", "w64") for gap in GAPS
    ]
    assert table.value.tolist() == pytest.approx([0.12, 0.52, 2.52] * 2)
    half = t.ppf(0.975, 2) * 0.01 / np.sqrt(3)
    assert (table.high - table.value).tolist() == pytest.approx([half] * 6)
    assert (set(table.end), set(table.n_seeds)) == ({200}, {3})
    assert table.null.tolist() == pytest.approx([0.8] * 6)
    assert set(table.setting) == {"40 symbols"}  # the schedule itself sets no runs apart


def test_the_change_is_against_the_smallest_gap_seed_by_seed(frame: pd.DataFrame) -> None:
    table = matched_frequency(frame).query("rung == 'w16'")
    assert table.change.tolist() == pytest.approx([0.0, 0.4, 2.4])
    # The seeds' own differences cancel: the change is the same in each.
    assert table.change_low.tolist() == pytest.approx(table.change_high.tolist())
    some = frame[~((frame.seed == 3) & (frame.gap == 25))]
    unpaired = matched_frequency(some).query("gap == 25")
    assert unpaired.change.isna().all()
    assert unpaired.provisional.all()


def test_right_after_the_last_burst_is_another_reading(frame: pd.DataFrame) -> None:
    table = matched_frequency(frame, when="after").query("rung == 'w16'")
    assert table.gap.tolist() == [5, 25]
    assert table.value.tolist() == pytest.approx([1.52 - 0.34, 3.52 - 0.34])


def test_runs_of_another_rate_or_length_never_stand_beside_these(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    with RecordWriter(tmp_path / "records.jsonl") as writer:
        writer.write(run("w16", 10, 1, rate=2.0))
        writer.write(run("w16", 20, 1, end=300))
    table = matched_frequency(read_records(tmp_path))
    found = [sorted(set(g.gap)) for _, g in table.groupby(["rate_per_step", "end"])]
    assert found == [[10], [1, 5, 25], [20]]


def test_learning_rates_corpora_and_families_never_stand_beside_one_another(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    with RecordWriter(tmp_path / "records.jsonl") as writer:
        writer.write(run("w16", 25, 1, run="fast", learning_rate=0.03))
        writer.write(run("w64", 25, 1, run="other", corpus_hash="0a0a0a0a0a"))
        writer.write(run("w64", 25, 2, run="text", corpus_hash="f1f1f1f1f1"))
        writer.write(run("w64", 25, 3, run="add", family="addition", entropy=4.6))
    found = read_records(tmp_path)
    table = matched_frequency(found).set_index(["rung", "family", "gap"])
    assert table.value.to_dict() == pytest.approx({
        **{("w16", "comparison, learning rate 0.003", gap): 0.1 * gap + 0.02 for gap in GAPS},
        ("w16", "comparison, learning rate 0.03", 25): 2.51,
        **{("w64", "comparison", gap): 0.1 * gap + 0.02 for gap in GAPS},
        ("w64", "comparison, corpus 0a0a0a0a", 25): 2.51,
        ("w64", "comparison, corpus f1f1f1f1", 25): 2.52,
        ("w64", "addition", 25): 2.53,
    })  # fmt: skip
    assert table.null["w64", "addition", 25] == 4.6
    assert table.null["w64", "comparison", 25] == pytest.approx(0.8)
    families = bursts(found).query("rung == 'w16'").family.unique()
    assert set(families) == {"comparison, learning rate 0.003", "comparison, learning rate 0.03"}


def test_records_without_a_gap_are_refused_with_the_remedy(frame: pd.DataFrame) -> None:
    for bare in (frame.drop(columns="gap"), frame.assign(gap=math.nan)):
        with refuses(
            key="records", rule="one gap", remedy="configs/confirm/matched_frequency.yaml"
        ):
            matched_frequency(bare)


def test_both_figures_are_drawn_and_their_bytes_are_repeatable(frame: pd.DataFrame) -> None:
    for draw in (gaps, forgetting):
        assert png(draw(frame)) == png(draw(frame))


def texts(axis: object) -> str:
    return "\n".join(text.get_text() for text in axis.texts)  # type: ignore[attr-defined]


def test_the_figure_of_forgetting_draws_the_control_and_the_half_life(
    frame: pd.DataFrame,
) -> None:
    figure = forgetting(frame, gain_lag=0)
    left, right = figure.axes
    dashed = [line for line in left.lines if line.get_linestyle() == "--"]
    drawn = [line for line in dashed if len(line.get_xdata()) == len(LAGS)]
    assert [line.get_ydata()[-1] for line in drawn] == pytest.approx([0.24, 0.24])
    assert "burst every 25" in left.get_title(loc="left")
    assert "no control" not in left.get_title(loc="left")
    assert "w64: half-life > 24" in texts(right)


def test_what_is_undefined_is_said_and_not_drawn(frame: pd.DataFrame) -> None:
    noisy = frame.copy()
    lost = (noisy.metric == "label_loss_lag") & (noisy.seed == 2) & (noisy.instances > 0)
    noisy.loc[lost, "value"] += 0.5
    right = forgetting(noisy, gain_lag=0).axes[1]
    assert "w16: undefined, gain 0.1" in texts(right)
    lines = [line for line in right.lines if line.get_marker() not in ("None", "", None)]
    assert all(np.isnan(np.asarray(line.get_ydata(), dtype=float)).all() for line in lines)


def test_a_lag_that_was_never_measured_is_refused_by_number(frame: pd.DataFrame) -> None:
    with refuses(key="records", rule="lag 7", remedy="lag 0"):
        forgetting(frame, gain_lag=7)


def test_committed_records_from_before_the_schedules_field_are_read() -> None:
    """docs/findings/controls: a gap, no schedule; its report stopped at an AttributeError."""
    frame = read_records(Path(__file__).parents[3] / "docs" / "findings" / "controls")
    assert "schedule" not in frame
    assert set(matched_frequency(frame).gap) == {1, 2, 4}
