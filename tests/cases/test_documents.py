"""Sources as caches, mirrors and broken downloads leave them: read whole, or refused in words."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from data_injection.corpus.documents import resolve_sources
from data_injection.errors import ConfigError


def texts(*sources: Path | str) -> list[str]:
    resolved = resolve_sources(sources, text_field="text")
    return [text for source in resolved for text in source.read(lambda num_bytes: None)]


def shard(path: Path, *words: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(f'{{"text": "{word}"}}\n' for word in words).encode()
    path.write_bytes(gzip.compress(data) if path.suffix.lower() == ".gz" else data)
    return path


def test_a_link_is_read_by_its_own_name_in_the_order_of_the_names(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    shard(blobs / "x.gz", "second").rename(blobs / "0aaa")
    shard(blobs / "y.gz", "first").rename(blobs / "9bbb")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "b.json.gz").symlink_to(blobs / "0aaa")
    (snapshot / "a.json.gz").symlink_to(blobs / "9bbb")
    assert texts(snapshot) == texts(f"{snapshot}/*.json.gz") == ["first", "second"]


def test_two_links_to_one_file_are_one_file_twice(tmp_path: Path) -> None:
    shard(tmp_path / "a.jsonl", "one")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match=r"a\.jsonl more than once"):
        texts(tmp_path)


def test_a_linked_subfolder_is_read_and_a_loop_of_links_ends(tmp_path: Path) -> None:
    corpus, scratch = tmp_path / "corpus", tmp_path / "scratch"
    shard(corpus / "a.jsonl", "one")
    shard(scratch / "deep" / "b.jsonl", "two")
    (corpus / "more").symlink_to(scratch)
    (scratch / "back").symlink_to(corpus)
    assert texts(corpus) == ["one", "two"]


def test_a_name_in_capitals_is_read_as_what_it_is(tmp_path: Path) -> None:
    shard(tmp_path / "a.jsonl", "one")
    shard(tmp_path / "B.JSONL.GZ", "two")
    assert sorted(texts(tmp_path)) == ["one", "two"]


@pytest.mark.parametrize("name", ["b.jsonl.gz", "b.json.zst"])
def test_a_shard_of_no_bytes_among_good_ones_is_refused(tmp_path: Path, name: str) -> None:
    shard(tmp_path / "a.jsonl", "one")
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=rf"{name} has 0 bytes"):
        texts(tmp_path)


@pytest.mark.parametrize(("value", "said"), [("null", "null"), ('["x"]', "a list"), ("3", "a int")])
def test_a_text_that_is_none_is_told_by_what_it_is(tmp_path: Path, value: str, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "one"}}\n{{"text": {value}}}\n')
    with pytest.raises(ConfigError, match=rf"a\.jsonl:2 has no text in field 'text' but {said}"):
        texts(path)
