"""olmo-ext features: the callback's rows again, alignment with all controls, and nothing twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from refusals import refuses
from rich.console import Console
from typer.testing import CliRunner

from data_injection.errors import ConfigError
from data_injection.lock import lock_folder
from eval.alignment.controls import METRIC
from eval.checkpoints.checkpoint import find_checkpoints
from eval.features.evaluate import METRICS
from eval.records import read_records
from launch.cli import app
from launch.show.features import CONTROLS, measure_features
from olmo_ext.config import load_experiment
from olmo_ext.train import train

FEATURES = ("order", "fourier")


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, write_experiment_in: Callable[[Path], Callable]
) -> Path:
    """12 steps with the callback at the checkpoints' steps. Not to be changed: copy it."""

    def watched(config: dict) -> None:
        config["callbacks"].update(features={"every": 6, "layers": [0, 1], "permutations": 210})

    write = write_experiment_in(tmp_path_factory.mktemp("features"))
    return train(load_experiment(write(watched)))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def features(*sources: Path, **options: Any) -> str:
    console, errors = Console(width=80, record=True), Console(stderr=True, quiet=True)
    measure_features(sources, console=console, errors=errors, **options)
    return console.export_text()


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]


def write_lines(run: Path, rows: list[dict]) -> None:
    (run / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_verb_writes_the_callbacks_rows(run: Path) -> None:
    everything = lines(run)
    # The verb measures in fp32 whatever a run was trained in, and says nothing of it.
    callbacks = [
        {key: value for key, value in row.items() if key != "precision"}
        for row in everything
        if row.get("group") in FEATURES
    ]
    others = [row for row in everything if row.get("group") not in FEATURES]
    assert {row["step"] for row in callbacks} == {0, 6, 12}
    write_lines(run, others)
    features(run)
    again = lines(run)[len(others) :]
    key = ("step", "task", "group", "metric", "layer")

    def place(row: dict) -> tuple:
        return tuple(str(row.get(name)) for name in key)

    assert sorted(again, key=place) == sorted(callbacks, key=place)


def test_what_is_there_is_not_measured_again(run: Path) -> None:
    before = (run / "records.jsonl").read_bytes()
    assert "everything was already there" in features(run)
    assert (run / "records.jsonl").read_bytes() == before


def test_a_killed_command_goes_on_and_gives_what_an_uninterrupted_one_does(
    run: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"das": True, "tasks": ["cmp"], "steps": [12], "search_steps": 3}
    cut = Path(shutil.copytree(run, tmp_path / "cut"))
    shown = features(run, **options)
    assert "interchange accuracy" in shown
    assert "causal effect" in shown
    whole = lines(run)
    # A kill in the middle of a place: some of its rows are there, the last is not.
    write_lines(cut, whole[: len(whole) - 29])
    features(cut, **options)
    frames = [read_records(folder).astype(str) for folder in (run, cut)]
    one, two = (frame.sort_values(list(frame.columns), ignore_index=True) for frame in frames)
    pd.testing.assert_frame_equal(one, two)
    assert "everything was already there" in features(run, **options)


def test_every_place_has_its_controls_in_the_records_and_in_the_table(run: Path) -> None:
    table = run.parent / "features.csv"
    features(
        run / "step12-unsharded", das=True, tasks=["cmp"], search_steps=3, rank=2, export=table
    )
    rows = read_records(run)
    aligned = rows[rows.metric == METRIC]
    assert set(aligned.step) == {12}
    assert set(aligned.task) == {"cmp"}
    assert set(aligned["rank"]) == {2}
    place = ["variable", "layer", "position", "held_out"]
    controls = {*CONTROLS, "no_patch", "own_answer"}
    for _, part in aligned.groupby([*place, "subset"]):
        assert set(part.control) == controls
        assert len(part) == len(controls)
    assert len(aligned[place].drop_duplicates()) == 5 * 2  # of one block, each way of holding out
    exported = pd.read_csv(table)
    assert set(exported.metric) >= {*METRICS, "order_r2", "probe_count"}
    assert set(exported.step) == {12}
    assert len(exported[exported.metric == METRIC]) == len(aligned)


def test_the_command_shows_the_probes_and_says_what_it_wrote(run: Path) -> None:
    done = CliRunner().invoke(app, ["features", str(run), "--step", "12"])
    assert done.exit_code == 0, done.output
    assert "Probes" in done.output
    assert "everything was already there" in done.output


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        ({"tasks": ["mul"]}, "--task", ["mul"]),
        ({"export": Path("rows.xlsx")}, "--export", "rows.xlsx"),
    ],
)
def test_a_wrong_option_is_refused(run: Path, options: dict, key: str, value: object) -> None:
    with pytest.raises(ConfigError) as refused:
        features(run, **options)
    assert (refused.value.key, refused.value.value) == (key, value)


def test_a_step_without_a_checkpoint_and_a_folder_being_written_are_refused(run: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no complete checkpoint of step 5"):
        features(run, steps=[5])
    assert [checkpoint.step for checkpoint in find_checkpoints(run)] == [0, 6, 12]
    with (
        lock_folder(run),
        refuses(key=f"the run's folder {run}", rule="by another process"),
    ):
        features(run)
