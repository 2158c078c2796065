"""A run's folder: what is read, and what is said where it cannot be."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from refusals import refuses

from eval.run import (
    MARKER,
    PLAN,
    RUN,
    find_below,
    load_config,
    read_if_whole,
    read_run,
    run_folders,
)


def make(folder: Path, name: str = PLAN, text: str = "{}") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


def test_a_missing_and_a_broken_account_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run\.json in"):
        read_run(tmp_path)
    for text in ('{"torn', "[1]"):
        with refuses(key=tmp_path / RUN, rule="is not", remedy="restore"):
            read_run(make(tmp_path, RUN, text))
        assert read_if_whole(tmp_path / RUN) == {}
    assert read_if_whole(tmp_path / MARKER) == {}
    known = read_run(make(tmp_path, RUN, '{"num_steps": 8}'))
    assert known == {"num_steps": 8}
    with refuses(key=tmp_path / RUN, rule="'record_fields'", remedy="restore"):
        known["record_fields"]
    assert pickle.loads(pickle.dumps(known)) == known


@pytest.mark.parametrize(
    "text",
    [
        '{"plan_hash": null}',
        '{"plan": []}',
        '{"tasks": 3}',
        '{"corpus_hash": 1}',
        '{"starts": {}}',
        '{"step": "x"}',
    ],
)
def test_an_account_of_another_shape_is_named(text: str, tmp_path: Path) -> None:
    key = text.split('"')[1]
    with refuses(key=f"{tmp_path / RUN}: '{key}'", rule=", not ", remedy="restore it"):
        read_run(make(tmp_path, RUN, text))
    assert read_if_whole(tmp_path / RUN) == {}


@pytest.mark.parametrize("text", ["[1, 2]", "3", "2.5", "true"])
def test_a_yaml_file_without_keys_is_named(text: str, tmp_path: Path) -> None:
    make(tmp_path, "config.yaml", text)
    with refuses(key=tmp_path / "config.yaml", rule="keys with values", remedy="restore it"):
        load_config(tmp_path / "config.yaml")


def test_runs_behind_links_are_found_once_and_a_loop_ends(tmp_path: Path) -> None:
    sweep, scratch = tmp_path / "sweep", tmp_path / "scratch"
    make(sweep / "here")
    make(scratch / "moved")
    (sweep / "away").symlink_to(scratch / "moved")
    (sweep / "again").symlink_to(scratch / "moved")
    (sweep / "before").symlink_to(sweep / "here")
    (sweep / "loop").symlink_to(sweep)
    assert run_folders(sweep) == [sweep / "again", sweep / "here"]
    assert run_folders(sweep / "away") == [sweep / "away"]


def test_a_name_may_have_folders(tmp_path: Path) -> None:
    make(tmp_path / "run", "logs/events.jsonl")
    assert find_below(tmp_path, "logs/events.jsonl") == [tmp_path / "run/logs/events.jsonl"]


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run"):
        run_folders(tmp_path)
