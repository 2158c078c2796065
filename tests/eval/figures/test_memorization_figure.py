"""The figure of what was learned by heart: its panels, levels and nulls, from a few records."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from refusals import refuses

from eval.figures.memorization import TITLES, memorization
from eval.figures.style import BLUE, RED


def records(num_seeds: int, **fields: Any) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for seed in range(num_seeds):
        run = {"run": f"r{seed}", "seed": seed, "rung": "w32", "params": 1000, "task": "seq"}
        run |= {"protocol": "single", "variant": "random 0-200"} | fields
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


@pytest.mark.filterwarnings("error")
def test_one_level_is_drawn_without_a_warning():
    one = records(1)
    figure = memorization(one[one.copies == 64])
    assert len([axis for axis in figure.axes if axis.get_visible()]) == len(TITLES)


def of_run(add: float, **fields: Any) -> pd.DataFrame:
    """Records of a run, all whose values are higher by so much."""
    frame = records(1, **fields)
    return frame.assign(**{name: frame[name] + add for name in ("value", "low", "high")})


def drawn(*frames: pd.DataFrame) -> dict[str, list[tuple[float, str]]]:
    """By block's title the loss at 64 copies, or of twins (0.25 of such a run), and its colour."""
    figure = memorization(pd.concat(frames, ignore_index=True))
    return {
        part.get_suptitle(): [
            (round(float(line.get_ydata()[-1]), 3), line.get_color()) for line in part.axes[0].lines
        ]
        for part in figure.subfigs
    }


def test_each_size_has_its_own_twins_in_its_colour():
    [lines] = drawn(of_run(0), of_run(2, rung="w64", params=4000)).values()
    assert lines == [(0.94, RED), (0.25, RED), (2.94, BLUE), (2.25, BLUE)]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"task": "other"}, ["other, random 0%-100%", "seq, random 0%-100%"]),
        ({"variant": "9 in steps 0-100"}, ["seq, 9 in steps 0%-50%", "seq, random 0%-100%"]),
        ({"protocol": "mixture"}, ["seq, random 0%-100%"]),
        (
            {"learning_rate": 0.01},
            ["seq, random 0%-100%, learning rate 0.001", "seq, random 0%-100%, learning rate 0.01"],
        ),
        (
            {"corpus_hash": "bbbbbbbbbb"},
            ["seq, random 0%-100%, corpus aaaaaaaa", "seq, random 0%-100%, corpus bbbbbbbb"],
        ),
    ],
)
def test_runs_that_differ_in_more_than_seed_are_never_averaged(
    fields: dict[str, Any], names: list[str]
):
    one = {"learning_rate": 0.001, "corpus_hash": "aaaaaaaaaa"}
    found = drawn(of_run(0, **one), of_run(2, **one | fields))
    assert len(found) == 2
    assert {title.split(", single")[0].split(", mixture")[0] for title in found} == set(names)
    assert sorted(found.values()) == [
        [(0.94, RED), (0.25, RED)],
        [(2.94, RED), (2.25, RED)],
    ]


def test_of_one_size_a_run_that_ended_earlier_stands_alone_and_no_name_hides_it():
    """Two folders may hold runs of one name, each with a last step of its own."""
    short = of_run(2, folder="b", variant="random 0-100")
    found = drawn(of_run(0, folder="a"), short[short.step == 100])
    assert found == {
        "seq, random 0%-100%, to step 100, single protocol, 1 seed": [(2.84, RED), (2.25, RED)],
        "seq, random 0%-100%, to step 200, single protocol, 1 seed": [(0.94, RED), (0.25, RED)],
    }


def test_sizes_that_train_for_other_lengths_stand_in_one_block():
    short = of_run(2, rung="w64", params=4000, variant="random 0-100")
    assert list(drawn(of_run(0), short[short.step == 100])) == [
        "seq, random 0%-100%, single protocol, 1 seed"
    ]


def test_extractions_from_other_prefixes_stand_apart():
    frames = [of_run(n).assign(run=str(n)) for n in (0, 2)]
    for frame, prefix in zip(frames, (8, 16), strict=True):
        frame.loc[frame.metric == "extraction", "prefix"] = prefix
    assert [title.split(", ")[2] for title in drawn(*frames)] == ["prefix 16", "prefix 8"]


def test_records_without_sequences_are_refused():
    with refuses(key="records", rule="no memorization", remedy="a task of family sequences"):
        memorization(records(1).drop(columns="copies"))
