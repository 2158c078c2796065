"""Running the lab: settings refused by name, predictions first, finished cells kept."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import warm
import yaml
from refusals import refuses

from data_injection.errors import NO_VALUE
from eval.statistics import seed_interval
from launch.lab.cells import run_cells
from launch.lab.run import CONFIGS, EXPERIMENTS, load_settings, run_experiment
from theory.lab.cells import Cell, Row
from theory.lab.phase import PhaseSettings, Trainer, agreement, predictions
from theory.settings import PowerLaw

TINY: dict[str, Any] = {
    "seeds": [1, 2],
    "widths": [2, 4],
    "batch_size": 16,
    "mixtures": {"T": {"num_tasks": 4, "rank": 3, "a": 1.2, "b": 0.9, "nuisance": 4}},
    "trainers": {
        "joint": {"mode": "exact", "rate": 0.5, "steps": 300, "mixtures": ["T"]},
        "orthogonal": {"mode": "orthogonal", "rate": 0.5, "steps": 300, "mixtures": ["T"]},
    },
}


def write(folder: Path, settings: dict[str, Any]) -> Path:
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_committed_settings_are_the_defaults_in_the_code(name: str) -> None:
    loaded, default = load_settings(name, None, seeds=None), EXPERIMENTS[name].settings()
    if name == "phase":  # C, the mixture that was not chosen, is in the file alone
        assert set(loaded.mixtures) == {*default.mixtures, "C"}
        assert loaded.mixtures["B"] == default.mixtures["B"]
    else:
        assert loaded == default
    assert (CONFIGS / f"{name}.yaml").is_file()


@pytest.mark.parametrize(
    ("change", "key", "value", "rule", "remedy"),
    [
        ({"width": [8]}, "width", NO_VALUE, "no setting", "did you mean widths?"),
        (
            {"mixtures": {"A": {"ranks": 4}}},
            "mixtures.A.ranks",
            NO_VALUE,
            "no setting",
            "did you mean rank?",
        ),
        ({"widths": 8}, "widths", 8, "a list", ""),
        ({"widths": [2.5]}, "widths[0]", 2.5, "type int", ""),
    ],
)
def test_bad_settings_name_file_key_and_remedy(
    tmp_path: Path, change: dict[str, Any], key: str, value: object, rule: str, remedy: str
) -> None:
    path = write(tmp_path, {**TINY, **change})
    with refuses(key=key, value=value, rule=rule, remedy=remedy, of=path):
        load_settings("phase", path, seeds=None)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"seeds": [3, 3]}, ("seeds must be different", "[3, 3]")),
        ({"widths": [512]}, ("widths must be at most mixture T's 16 inputs", "512")),
        ({"trainers": {"x": {"mode": "adam"}}}, ("exact, sampled or orthogonal", "'adam'")),
        ({"trainers": {"x": {"mixtures": ["Z"]}}}, ("trainers.x.mixtures", "['Z']")),
    ],
)
def test_what_the_theory_refuses_is_told_of_the_file(
    tmp_path: Path, change: dict[str, Any], rule: tuple[str, ...]
) -> None:
    path = write(tmp_path, {**TINY, **change})
    with refuses(key=path, rule=rule):
        load_settings("phase", path, seeds=None)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    none = tmp_path / "none.yaml"
    with refuses(key="--config", value=none, rule="a file", remedy="the defaults are in"):
        load_settings("phase", none, seeds=None)
    twice = tmp_path / "twice.yaml"
    twice.write_text("seeds: [0]\nseeds: [1]\n")
    with refuses(key="line 2: the key 'seeds'", rule="line 1", of=twice):
        load_settings("phase", twice, seeds=None)


def test_seeds_of_the_command_line_win(tmp_path: Path) -> None:
    assert load_settings("phase", write(tmp_path, TINY), seeds=[9]).seeds == (9,)


CALLS: list[int] = []


def one_cell(*, number: int) -> list[Row]:
    CALLS.append(number)
    if number == 3:
        raise RuntimeError("killed here")
    return [{"metric": "number", "value": number}]


def test_finished_cells_are_not_run_again(tmp_path: Path) -> None:
    CALLS.clear()
    cells = [Cell(one_cell, {"number": i}, cost=10 - i) for i in (0, 1, 3)]
    with pytest.raises(RuntimeError, match="killed here"):
        run_cells(cells, tmp_path)
    assert CALLS == [0, 1, 3]
    CALLS.clear()
    rows = run_cells([*cells[:2], Cell(one_cell, {"number": 2})], tmp_path)
    assert CALLS == [2]
    assert [row["value"] for row in rows] == [0, 1, 2]


def test_a_torn_file_of_a_cell_is_made_anew(tmp_path: Path) -> None:
    cell = Cell(one_cell, {"number": 5})
    (tmp_path / cell.name).write_text('[{"metric": "num')
    assert run_cells([cell], tmp_path) == [{"metric": "number", "value": 5}]


def test_processes_side_by_side_give_the_same_rows(tmp_path: Path) -> None:
    settings = PhaseSettings(
        seeds=(1,), widths=(2, 4), mixtures={"T": PowerLaw(4, 3, nuisance=4)},
        trainers={"joint": Trainer("exact", 0.5, 100, {}, ("T",))},
    )  # fmt: skip
    cells = EXPERIMENTS["phase"].lab.cells(settings)
    seen: list[int] = []
    both = run_cells(cells, tmp_path / "two", jobs=2, progress=lambda c, d, t: seen.append(d))
    assert both == run_cells(cells, tmp_path / "one")
    assert len(seen) == 2


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """`olmo-ext theory phase` on a tiny mixture, as a user calls it."""
    folder = tmp_path_factory.mktemp("lab")
    settings = ["--config", write(folder, TINY), "--out", folder / "out"]
    done = warm.run("theory", "phase", "--jobs", 1, *settings, env={"COLUMNS": "100"})
    return folder / "out" / "phase", done


def test_the_verb_writes_records_tables_and_figures(
    tiny_run: tuple[Path, subprocess.CompletedProcess],
) -> None:
    folder, done = tiny_run
    assert done.returncode == 0, done.stderr
    assert "genuine test" in done.stdout
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    # 2 trainers x 2 widths x 2 seeds x (4 tasks x 2 metrics + the loss)
    assert len(rows) == 2 * 2 * 2 * 9 == len(pd.read_csv(folder / "records.csv"))
    table = agreement(pd.DataFrame(rows), pd.DataFrame(saved(folder)["rows"]))
    written = pd.read_csv(folder / "agreement.csv")
    assert table.agreement.tolist() == written.agreement.tolist()


def test_a_figure_carries_what_it_was_made_from(
    tiny_run: tuple[Path, subprocess.CompletedProcess],
) -> None:
    from PIL import Image

    with Image.open(tiny_run[0] / "phase_T.png") as image:
        assert image.text["Seeds"] == "1, 2"
        assert image.text["Command"].startswith("olmo-ext theory phase")
        assert json.loads(image.text["Settings"])["widths"] == [2, 4]
        assert "Commit" in image.text


def test_predictions_are_written_before_anything_is_trained(
    tiny_run: tuple[Path, subprocess.CompletedProcess],
) -> None:
    folder, _ = tiny_run
    first = min(path.stat().st_mtime_ns for path in (folder / "cells").iterdir())
    assert (folder / "predictions.json").stat().st_mtime_ns < first
    assert saved(folder)["rows"] == predictions(
        load_settings("phase", folder.parent.parent / "settings.yaml", seeds=None)
    )


def test_the_same_command_keeps_predictions_and_cells(
    tiny_run: tuple[Path, subprocess.CompletedProcess],
) -> None:
    from rich.console import Console

    folder, _ = tiny_run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    settings = load_settings("phase", folder.parent.parent / "settings.yaml", seeds=None)
    run_experiment("phase", settings, folder, jobs=1, console=Console(quiet=True))
    del before[folder / "settings.json"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_unknown_key_ends_the_verb_with_status_2(tmp_path: Path) -> None:
    path = write(tmp_path, {**TINY, "wdths": [8]})
    done = warm.run("theory", "phase", "--config", path)
    assert done.returncode == 2
    assert "did you mean widths?" in done.stderr.replace("\n", " ")


def test_an_interval_of_one_seed_is_not_known() -> None:
    mean, low, high = seed_interval([0.5])
    assert mean == 0.5
    assert low != low
    assert high != high


def saved(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "predictions.json").read_text())
    assert isinstance(found, dict)
    return found
