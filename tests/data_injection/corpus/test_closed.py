"""Closed hosts: a corpus' first tokens again and again, a corpus like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from refusals import refuses

from data_injection.corpus import closed
from data_injection.corpus.closed import prepare_closed
from data_injection.corpus.manifest import Manifest, corpus_paths, verify_corpus
from data_injection.corpus.prepare import prepare_corpus
from data_injection.errors import ConfigError


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus of two small shards."""
    monkeypatch.setattr(closed, "LEAST_TOKENS", 1000)
    text = tmp_path / "text.jsonl"
    text.write_text('{"id": "1", "text": "the order of filling"}\n' * 30)
    folder = tmp_path / "corpus"
    prepare_corpus([text], folder, name="text", tokenizer="dolma-v1_5", max_shard_tokens=64)
    return folder


def tokens(folder: Path, manifest: Manifest) -> np.ndarray:
    return np.concatenate([np.fromfile(p, np.uint16) for p in corpus_paths(folder, manifest)])


def test_the_first_tokens_come_again_and_again(source: Path, tmp_path: Path) -> None:
    whole = tokens(source, verify_corpus(source))
    made = prepare_closed(source, tmp_path / "closed", num_tokens=70)  # into the second shard
    found = tokens(tmp_path / "closed", verify_corpus(tmp_path / "closed", full=True))
    assert len(found) == made.num_tokens == 70 * 15
    assert (found.reshape(15, 70) == whole[:70]).all()
    assert made.num_documents == (found == made.eos_token_id).sum()
    assert made.sources[0]["tokens"] == 70


def test_the_same_is_not_made_twice_and_another_not_over_it(source: Path, tmp_path: Path) -> None:
    made = prepare_closed(source, tmp_path / "closed", num_tokens=70)
    path = corpus_paths(tmp_path / "closed", made)[0]
    before = path.stat().st_mtime_ns
    assert prepare_closed(source, tmp_path / "closed", num_tokens=70).hash == made.hash
    assert path.stat().st_mtime_ns == before
    with pytest.raises(ConfigError):
        prepare_closed(source, tmp_path / "closed", num_tokens=64)


@pytest.mark.parametrize("num", [0, -1, 10**6])
def test_as_many_tokens_as_there_are(num: int, source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare_closed(source, tmp_path / "closed", num_tokens=num)
    assert caught.value.key == "max_tokens"
    assert not (tmp_path / "closed").exists()


def test_a_damaged_corpus_is_not_copied(source: Path, tmp_path: Path) -> None:
    path = corpus_paths(source, verify_corpus(source))[0]
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with refuses(key=path, rule="sha256", remedy=str(source)):
        prepare_closed(source, tmp_path / "closed", num_tokens=70)
