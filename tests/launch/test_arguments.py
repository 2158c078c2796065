"""What is typed: refused by name before any work, one meaning each, old names that still work."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from olmo_ext.config import load_experiment
from olmo_ext.train import train

Write = Callable[..., Path]
Typed = Callable[..., tuple[int, str, str]]
RECORDS = Path("docs/quickstart/records.jsonl").resolve()
MIXTURE = Path("docs/advice/quickstart_tasks.yaml").resolve()


@pytest.fixture
def typed(typed: Typed) -> Typed:
    """Of a whole line, with places by name."""

    def run(line: str, **places: Path) -> tuple[int, str, str]:
        return typed(*shlex.split(line.format(**{n: f"'{p}'" for n, p in places.items()})))

    return run


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    docs, link, file = tmp_path / "docs", tmp_path / "link", tmp_path / "file"
    docs.mkdir()
    (docs / "a.jsonl").write_text('{"text": "some words"}\n')
    link.symlink_to(tmp_path / "nowhere")
    file.write_text("")
    new = tmp_path / "new"
    return {"docs": docs, "link": link, "file": file, "records": RECORDS, "new": new}


@pytest.mark.parametrize(
    "verb",
    [
        "prepare {docs}",
        "prepare embedded",
        "report {records}",
        "scaling advise {records} --size w32",
        "theory phase",
        "sweep configs/confirm/single.yaml",
        "quickstart --smoke",
    ],
)
def test_a_folder_that_cannot_be_made_is_refused_before_any_work(
    verb: str, typed: Typed, places: dict[str, Path]
) -> None:
    status, _, said = typed(verb + " --out {link}", **places)
    assert status == 2
    assert f"{places['link']} is a link that leads nowhere" in said, said
    status, _, said = typed(verb + " --out {file}/below", **places)
    assert status == 2
    assert f"{places['file']} is a file" in said, said


LOCKED = [
    "prepare {docs} --out {locked}/new",
    "report {records} --out {locked}",
    "report {run}",
    "scaling advise {records} --size w32 --out {locked}/new",
    "scaling advise {records} --size w32 --json {locked}/new.json",
    "theory phase --out {locked}/new",
    "export {run} --to hf --no-tokenizer --out {locked}/new",
    "eval {run}",
    "eval {run} --export {locked}/new.csv",
    "audit {run} --json {locked}/new.json",
    "audit {run} --export {locked}/new.csv",
    "status {run} --json {locked}/new.json",
    "plan {experiment} --export {locked}/new.parquet",
    "train {experiment} --dry-run -o train.save_folder={locked}/new/run",
    "train {experiment} --resume --dry-run -o train.save_folder={run} -o train.max_duration=13",
]


def test_a_place_where_one_may_not_write_is_refused_before_any_work(
    typed: Typed,
    places: dict[str, Path],
    write_experiment: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder or a file of somebody else, told by a fake: root may write anywhere."""
    experiment = write_experiment()
    run = train(load_experiment(experiment))
    (run / "records.jsonl").write_text("")  # so that there is something to score
    locked = tmp_path / "locked"
    locked.mkdir()
    closed = {str(locked), str(run), str(run / "records.jsonl")}
    asks = os.W_OK  # typer asks whether what was typed can be read
    monkeypatch.setattr("os.access", lambda place, mode: not (mode & asks and str(place) in closed))
    places |= {"run": run, "locked": locked, "experiment": experiment}
    before = sorted(path for path in tmp_path.rglob("*"))
    for line in LOCKED:
        status, _, said = typed(line, **places)
        assert status == 2, (line, said)
        assert "must be where you may write" in said, (line, said)
        assert "belongs to another user, or is read-only" in said
        assert sorted(path for path in tmp_path.rglob("*")) == before, line


@pytest.mark.parametrize("line", ["prepare {docs} --out ''", "prepare '' --out {new}", "report ''"])
def test_a_variable_that_was_not_set_is_not_the_working_directory(
    line: str, typed: Typed, places: dict[str, Path]
) -> None:
    status, _, said = typed(line, **places)
    assert (status, "an empty argument" in said) == (2, True)
    assert not places["new"].exists()


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("prepare embedded --out {new} --max-tokens 10", "--max-tokens"),
        ("prepare {docs} --out {new} --vocab-size 300", "--vocab-size"),
        ("prepare closed:{docs} --out {new} --max-tokens 10 --tokenizer dolma2", "--tokenizer"),
        ("plan x.yaml --cost --scan-tokens 5", "--scan-tokens"),
        ("plan x.yaml --no-scan --scan-tokens 5", "--scan-tokens"),
        ("features {new} --rank 2", "--rank"),
        ("audit {new} --rows 3", "--rows"),
        ("audit {new} --explain 3 --json {new}", "--json"),
        ("scaling mixture x.yaml --family comparison", "--family"),
    ],
)
def test_an_option_without_effect_is_refused(
    line: str, option: str, typed: Typed, places: dict[str, Path]
) -> None:
    status, _, said = typed(line, **places)
    assert status == 2
    assert f"{option} has no effect" in said, said
    assert not places["new"].exists()


def test_torchruns_account_of_an_error_is_announced_in_a_line(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing, said = tmp_path / "none.yaml", "what torchrun prints below"
    assert said not in typed("train {missing}", missing=missing)[2]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr("olmo_ext.signals.end_after", lambda gone: None)
    lines = typed("train {missing}", missing=missing)[2].splitlines()
    assert said in lines[-1]
    assert "none.yaml" in lines[-2]
    monkeypatch.setenv("RANK", "1")  # one speaks for all
    assert typed("train {missing}", missing=missing)[2] == ""


def test_a_mixture_without_the_theorys_width_names_the_option_that_gives_it(typed: Typed) -> None:
    status, _, said = typed("scaling mixture {file}", file=MIXTURE)
    assert status == 2
    assert f"{MIXTURE} cannot be used: features_per_d_model must be given" in said
    assert "--calibrate RUNS" in said
    line = "scaling mixture {file} --calibrate {records}"
    assert typed(line, file=MIXTURE, records=RECORDS)[0] == 0


def test_old_names_of_options_still_work_unseen(
    typed: Typed, write_experiment: Write, tmp_path: Path
) -> None:
    experiment = write_experiment()
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        yaml.safe_dump(
            {"name": "s", "experiments": [str(experiment)], "axes": {"a": {"x": {"train.seed": 1}}}}
        )
    )
    line = "sweep {sweep} --out {out} "
    new = typed(line + "--dry-run", sweep=sweep, out=tmp_path / "runs")
    assert new[0] == 0
    assert new[1] == typed(line + "--plan", sweep=sweep, out=tmp_path / "runs")[1]
    assert not (tmp_path / "runs").exists()
    run = train(load_experiment(experiment))
    shutil.rmtree(run / "step6-unsharded")
    for option in ("--export", "--out"):
        table = tmp_path / f"{option}.csv"
        assert typed("eval {run} --step 12 " + option + " {table}", run=run, table=table)[0] == 0
        assert set(pd.read_csv(table).step) == {12}
    for verb in ("sweep", "eval"):
        shown = typed(f"{verb} --help")[1]
        assert "before 0.1" not in shown
    told = tmp_path / "status.json"
    assert typed("status {run} --json {told}", run=run, told=told)[0] == 0
    (one,) = json.loads(told.read_text())["runs"]
    assert one["state"] == "finished"
    assert json.loads(typed("status {run} --json -", run=run)[1])["runs"][0]["step"] == 12
