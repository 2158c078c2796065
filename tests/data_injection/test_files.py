"""Files are whole or not there, whatever fails while they are written."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from refusals import refuses

from data_injection.errors import ConfigError
from data_injection.files import read_json, replace_file, replaced


def test_a_file_is_replaced_by_text_or_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    assert replace_file(path, "ä") == path
    assert path.read_bytes() == "ä".encode()
    replace_file(path, b"\x00", sync=True)
    assert path.read_bytes() == b"\x00"
    assert list(tmp_path.iterdir()) == [path]


def _write_half(path: Path, folder: bool) -> None:
    if folder:
        path.mkdir()
    (path / "half" if folder else path).write_text("new")
    raise FileNotFoundError


@pytest.mark.parametrize("folder", [False, True])
def test_a_writer_that_fails_leaves_what_was_there_and_nothing_else(
    folder: bool, tmp_path: Path
) -> None:
    path = replace_file(tmp_path / "kept", "old")
    with pytest.raises(FileNotFoundError), replaced(path) as temporary:
        _write_half(temporary, folder)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_wrote_nothing_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replaced(tmp_path / "a"):
        pass


def test_a_folder_is_renamed_whole_onto_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with replaced(tmp_path / "out") as temporary:
        temporary.mkdir()
        (temporary / "file").write_text("x")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]


def test_writers_of_one_file_at_once_do_not_mix(tmp_path: Path) -> None:
    path, texts = tmp_path / "a", [str(i) * 100_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: replace_file(path, text), texts))
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("data", [b"{", b"\xff"])
def test_a_file_that_is_no_json_is_named(data: bytes, tmp_path: Path) -> None:
    path = replace_file(tmp_path / "a.json", data)
    with refuses(key=path, rule="JSON", remedy="restore"):
        read_json(path)
    assert read_json(replace_file(path, "[1]")) == [1]


def test_an_error_carries_key_value_rule_and_remedy() -> None:
    error = ConfigError(key="k", value=1.5, rule="must be below 1", remedy="the study uses 0.5")
    assert str(error) == "k must be below 1, got 1.5; the study uses 0.5"
    assert str(ConfigError(key="k", rule="excludes j")) == "k excludes j"
    assert str(ConfigError("as it stands")) == "as it stands"
    for one in (error, ConfigError(key="k", rule="excludes j")):
        again = pickle.loads(pickle.dumps(one))
        assert (str(again), vars(again)) == (str(one), vars(one))
        assert str(again.under("tasks[0]")) == f"tasks[0].{one}"


def test_an_error_of_a_part_is_told_by_the_whole() -> None:
    error = ConfigError(key="params.k", value=0, rule="must be 1").under("tasks[0]")
    assert (error.key, error.value, error.rule) == ("tasks[0].params.k", 0, "must be 1")
