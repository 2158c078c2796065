"""What the feature figure shows is what the records say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from refusals import refuses

from eval.figures.features import features, presence
from eval.records import RecordWriter, read_records

STEPS = (0, 100, 200)
R2 = {0: -0.06, 100: 0.5, 200: 0.9}


def records(rung: str, seed: int, *, family: str = "comparison") -> Iterator[dict]:
    group, count, units = ("order", "probe_count", 1)
    if family == "modular_addition":
        group, count, units = ("fourier", "fourier_modes", 50)
    for step in STEPS:
        shared = {
            "run": f"{rung}-s{seed}", "rung": rung, "params": int(rung[1:]) * 1000, "seed": seed,
            "plan_hash": "h", "protocol": "single", "step": step, "tokens": step * 100,
            "task": family, "family": family, "rate_per_step": 4.0, "exposures_per_example": 1.0,
        }  # fmt: skip
        score = {"split": "test", "metric": "score", "value": step / 250, "subset": "all"}
        yield shared | score
        feature = shared | {"split": "", "group": group}
        for layer in (0, 1):
            value = R2[step] + 0.01 * seed - layer * 0.05
            yield feature | {"metric": f"{group}_r2", "value": value, "layer": layer}
            yield feature | {"metric": f"{group}_r2_null_mean", "value": -0.03, "layer": layer}
            yield feature | {"metric": f"{group}_r2_null99", "value": 0.2, "layer": layer}
            yield feature | {"metric": count, "value": 1, "layer": layer, "units": units}
        total = step // 20 if units > 1 else int(step > 0)
        yield feature | {"metric": count, "value": total, "units": units, "present": [1]}


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    for rung in ("w16", "w64"):
        for seed in range(3):
            for family in ("comparison", "modular_addition"):
                with RecordWriter(tmp_path / f"{rung}{seed}{family}" / "records.jsonl") as writer:
                    writer.write(records(rung, seed, family=family))
    return read_records(tmp_path)


def test_presence_is_r2_at_the_layer_for_one_unit_and_a_count_for_many(frame: pd.DataFrame) -> None:
    table = presence(frame)
    assert len(table) == 2 * 3 * 2 * len(STEPS)
    order = table[(table.group == "order") & (table.seed == 2)].groupby("step")
    np.testing.assert_allclose(order.value.mean(), [-0.09, 0.47, 0.87])
    assert set(table[table.group == "order"].null99) == {0.2}
    modes = table[table.group == "fourier"].groupby("step")
    assert modes.value.unique().tolist() == [[0], [5], [10]]
    assert modes.null99.count().tolist() == [0, 0, 0]
    np.testing.assert_allclose(table.groupby("step").score.mean(), [0, 0.4, 0.8])


def test_the_figure_clips_draws_the_null_and_a_band_over_seeds(frame: pd.DataFrame) -> None:
    figure = features(frame[frame.family == "comparison"])
    w16, w64, against = figure.axes[:3]
    assert [w16.get_title()[:3], w64.get_title()[:3]] == ["w16", "w64"]
    mean, null = w16.lines
    np.testing.assert_allclose(mean.get_ydata(), [0, 0.46, 0.86])
    np.testing.assert_allclose(null.get_ydata(), 0.2)
    assert null.is_dashed()
    assert len(w16.collections) == 1  # the band
    points = np.concatenate([c.get_offsets() for c in against.collections])
    assert len(points) == 2 * 3 * len(STEPS)
    assert points[:, 1].min() == 0


def test_each_family_has_a_block_of_its_own(frame: pd.DataFrame) -> None:
    figure = features(frame)
    assert isinstance(figure, Figure)
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles == [
        "comparison, single protocol: 3 seeds",
        "modular addition, single protocol: 3 seeds",
    ]
    labels = {axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()}
    assert labels == {"R² of the hidden order, layer 1", "Fourier modes of 50"}


def test_one_seed_is_called_provisional_and_has_no_band(frame: pd.DataFrame) -> None:
    figure = features(frame[(frame.family == "comparison") & (frame.seed == 0)])
    assert figure.subfigs[0].get_suptitle().endswith("1 seed, provisional")
    assert len(figure.axes[0].collections) == 0


def test_a_feature_without_scores_says_so(frame: pd.DataFrame) -> None:
    figure = features(frame[frame.metric != "score"])
    assert any("not measured" in text.get_text() for text in figure.axes[2].texts)


def test_groups_and_layers_of_other_measures_are_no_features(frame: pd.DataFrame) -> None:
    other = frame[frame.metric == "score"].assign(metric="cosine", group="mlp", layer=1)
    pd.testing.assert_frame_equal(presence(pd.concat([frame, other])), presence(frame))
    with refuses(key="records", rule="hold no features", remedy="`callbacks.features`"):
        features(other)


def test_what_was_not_measured_is_refused(frame: pd.DataFrame) -> None:
    with refuses(key="records", rule="hold no features", remedy="`callbacks.features`"):
        features(frame[frame.metric == "score"].drop(columns=["group", "layer"]))
    with refuses(key="records", rule="no features at layer 7"):
        features(frame[frame.family == "comparison"], layer=7)


def test_the_planted_order_stands_beside_the_measured_one_at_each_width(
    frame: pd.DataFrame,
) -> None:
    """R^2 at equal signal falls with width: without the line amounts would be compared."""
    from eval.features.probes import planted_r2

    order = frame[(frame.group.isna()) | (frame.group == "order")].copy()
    order["d_model"] = order.rung.map(
        {rung: 16 * 4**i for i, rung in enumerate(sorted(set(order.rung)))}
    )
    dotted = {
        line.get_ydata()[0]
        for axis in features(order).axes
        for line in axis.lines
        if line.get_linestyle() == ":"
    }
    widths = sorted(set(order.d_model))
    assert {round(planted_r2(int(width)), 6) for width in widths} <= {round(y, 6) for y in dotted}
