"""What `olmo-ext init` writes holds as it stands, for every size, and says no more than is so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from data_injection.corpus.prepare import prepare_corpus
from data_injection.errors import ConfigError
from launch.grid import load_sweep
from launch.plan.init import FAMILIES, LADDER, init
from launch.runs import plan_sweeps
from olmo_ext.config import load_experiment


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("init")
    text = " ".join(f"word {num}" for num in range(4000))
    (folder / "docs.jsonl").write_text(json.dumps({"text": text}) + "\n")
    source = [folder / "docs.jsonl"]
    prepare_corpus(source, folder / "corpus", name="words", tokenizer="dolma-v1_5")
    return folder / "corpus"


def raw(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", ["w16", "w64", *LADDER])
def test_the_files_validate_for_every_size(
    tmp_path: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch, size: str, family: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a mine: #1"
    init(folder, size=size, corpus=corpus_folder, family=family)
    written = load_experiment(folder / "experiment.yaml")
    assert written.rung == size
    assert written.train.run_name == f"a-mine-1-{size}"
    (task,) = written.injection.tasks
    assert (task.name, task.family) == ("rare", family)
    assert len(load_sweep(folder / "sweep.yaml").axes["rate"]) == 3


def test_every_run_of_the_sweep_is_one_that_can_be_trained(
    tmp_path: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    init(tmp_path / "mine", size="w16", corpus=corpus_folder, family="comparison")
    path = tmp_path / "mine" / "sweep.yaml"
    runs = plan_sweeps([load_sweep(path)], tmp_path / "runs")
    assert {run.name for run in runs} >= {"mine-r16-s1", "mine-r1-s3"}


def test_without_a_corpus_the_sizes_of_the_shipped_file_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init(tmp_path / "mine", size="20M", corpus=tmp_path / "a b", family="comparison")
    assert raw(tmp_path / "mine" / "experiment.yaml")["train"]["model"]["vocab_size"] == 50280
    assert f"next: olmo-ext prepare FILES... --out '{tmp_path / 'a b'}'" in capsys.readouterr().out


def test_nothing_is_written_over_and_what_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("mine")
    for size, family, key in (
        ("w32", "comparison", "FOLDER"),
        ("w10", "comparison", "--size"),
        ("5M", "comparison", "--size"),
        ("w32", "canary", "--family"),
    ):
        folder = tmp_path if key == "FOLDER" else tmp_path / "new"
        with pytest.raises(ConfigError) as error:
            init(folder, size=size, corpus=tmp_path / "corpus", family=family)
        assert error.value.key == key
        assert not (folder / "experiment.yaml").exists()
    assert (tmp_path / "sweep.yaml").read_text() == "mine"
