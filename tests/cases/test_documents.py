"""Sources as caches, mirrors and broken downloads leave them: read whole, or refused in words."""

from __future__ import annotations

import gzip
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import zstandard
from refusals import refuses

from data_injection.corpus import lines
from data_injection.corpus.documents import iter_documents, refuse, resolve_sources
from data_injection.corpus.prepare import prepare_corpus
from data_injection.errors import ConfigError

DATA, TOKENIZERS = (Path(__file__).parent / name for name in ("data", "tokenizers"))
CLEAN = ["alpha one", "beta two", "gamma three"]

READ = {
    **dict.fromkeys(["clean.jsonl", "bom.jsonl", "bom.jsonl.gz", "crlf.jsonl"], CLEAN),
    **dict.fromkeys(
        ["no_final_newline.jsonl", "gz_members.jsonl.gz", "zst_frames.jsonl.zst"], CLEAN
    ),
    **dict.fromkeys(["UPPER.JSONL", "glob[1].jsonl", "no_id.jsonl"], CLEAN[:2]),
    **dict.fromkeys(["gz_member_mid_line.jsonl.gz", "space in naïve ünïcode.jsonl"], CLEAN[:2]),
    **dict.fromkeys(["zst_skippable.jsonl.zst", "zst_skippable_first.jsonl.zst"], CLEAN[:2]),
    **{name: [] for name in ("empty.jsonl", "empty.jsonl.gz", "only_newlines.jsonl")},
    "dup.jsonl": ["alpha one", "alpha one", "beta two"],
    "nested_meta.jsonl": ["alpha one"],
    "nul.jsonl": ["alpha one", "nul \x00 tail", "gamma three"],
    "special.jsonl": [
        "ends <|endoftext|> here",
        "<|padding|> and |||IP_ADDRESS||| or |||EMAIL_ADDRESS|||",
        "<|endoftext|>",
    ],
    "whitespace.jsonl": ["   ", "\n\n", "", "alpha one"],
}

REFUSED = {
    "bad_utf8.jsonl": (":2", ("JSON", "UTF-8"), "write the file as UTF-8"),
    "lone_surrogate.jsonl": (":2", "valid Unicode", "repair"),
    "null_text.jsonl": (":2", ("'text'", "null"), "text_field"),
    "list_text.jsonl": (":1", ("'text'", "a list"), "text_field"),
    "json_array.jsonl": (":1", ("'text'", "it has list"), "text_field"),
    "pretty.jsonl": (":1", "JSON", "repair"),
    "gz_named_plain.jsonl": (":1", ("JSON", "UTF-8"), "write the file as UTF-8"),
    "plain_named_gz.jsonl.gz": ("", ("after line 0", "Not a gzipped file"), "fetch"),
    "gz_trailing_garbage.jsonl.gz": ("", "after line 3", "fetch"),
    "zero_bytes.jsonl.gz": ("", "0 bytes", "fetch"),
}
"""The line, what is wrong there and what to do."""


@pytest.mark.parametrize("name", READ)
def test_a_file_is_read_whole(name: str) -> None:
    assert texts(DATA / name) == READ[name]


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_file_is_refused_with_its_line(name: str) -> None:
    line, rule, remedy = REFUSED[name]
    with refuses(key=f"{DATA / name}{line}", rule=rule, remedy=remedy):
        texts(DATA / name)


def test_every_case_is_expected_to_do_one_or_the_other() -> None:
    assert {path.name for path in DATA.iterdir()} == {*READ, *REFUSED}


@pytest.mark.parametrize(("document", "num"), [("doc.jsonl", (9, 3)), ("eosdoc.jsonl", (12, 1))])
@pytest.mark.parametrize("name", ["wordlevel.json", "wordlevel_lower.json"])
def test_tokenizers_of_whole_words_end_each_document_once(
    name: str, document: str, num: tuple[int, int], tmp_path: Path
) -> None:
    settings = {"name": "words", "tokenizer": str(TOKENIZERS / name)}
    manifest = prepare_corpus([TOKENIZERS / document], tmp_path, **settings)
    assert (manifest.num_tokens, manifest.num_documents) == num
    assert (manifest.eos_token_id, manifest.vocab_size) == (1, 5)


def test_an_empty_tokenizer_is_named(tmp_path: Path) -> None:
    settings = {"name": "words", "tokenizer": str(TOKENIZERS / "empty.json")}
    with refuses(key=TOKENIZERS / "empty.json", rule="no tokenizers JSON file"):
        prepare_corpus([TOKENIZERS / "doc.jsonl"], tmp_path, **settings)


@pytest.mark.parametrize(("document", "num"), [("doc.jsonl", (16, 3)), ("eosdoc.jsonl", (21, 1))])
def test_tokens_added_behind_the_vocabulary_count_to_it(
    document: str, num: tuple[int, int], tmp_path: Path
) -> None:
    settings = {"name": "added", "tokenizer": str(TOKENIZERS / "added.json")}
    manifest = prepare_corpus([TOKENIZERS / document], tmp_path, **settings)
    assert (manifest.num_tokens, manifest.num_documents) == num
    assert (manifest.eos_token_id, manifest.vocab_size) == (0, 2050)


@pytest.mark.parametrize(
    ("name", "rule", "remedy"),
    [
        ("no_eos.json", ("not known", "no_eos.json"), "set eos_token_id"),
        ("eos_not_special.json", "a document can spell", ("special token", "eos_not_special.json")),
    ],
)
def test_a_tokenizer_that_cannot_end_a_document_is_refused(
    name: str, rule: str, remedy: str, tmp_path: Path
) -> None:
    settings = {"name": "eos", "tokenizer": str(TOKENIZERS / name)}
    with refuses(key="eos_token_id", rule=rule, remedy=remedy):
        prepare_corpus([TOKENIZERS / "doc.jsonl"], tmp_path, **settings)


def texts(*sources: Path | str) -> list[str]:
    resolved = resolve_sources(sources, text_field="text")
    return [text for source in resolved for text in source.read(lambda num_bytes: None, refuse)]


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
    with refuses(key="sources", rule=str(tmp_path / "a.jsonl"), remedy="once"):
        texts(tmp_path)


def test_a_linked_subfolder_is_read_and_a_loop_of_links_ends(tmp_path: Path) -> None:
    corpus, scratch = tmp_path / "corpus", tmp_path / "scratch"
    shard(corpus / "a.jsonl", "one")
    shard(scratch / "deep" / "b.jsonl", "two")
    (corpus / "more").symlink_to(scratch)
    (scratch / "back").symlink_to(corpus)
    assert texts(corpus) == ["one", "two"]
    (scratch / "back").unlink()
    assert texts(f"{corpus}/**/*.jsonl") == ["one", "two"]


def test_a_name_in_capitals_is_read_as_what_it_is(tmp_path: Path) -> None:
    shard(tmp_path / "a.jsonl", "one")
    shard(tmp_path / "B.JSONL.GZ", "two")
    assert sorted(texts(tmp_path)) == ["one", "two"]


@pytest.mark.parametrize("name", ["b.jsonl.gz", "b.json.zst"])
def test_a_shard_of_no_bytes_among_good_ones_is_refused(tmp_path: Path, name: str) -> None:
    shard(tmp_path / "a.jsonl", "one")
    (tmp_path / name).touch()
    with refuses(key=tmp_path / name, rule="0 bytes", remedy="fetch"):
        texts(tmp_path)


@pytest.mark.parametrize(("value", "said"), [("null", "null"), ('["x"]', "a list"), ("3", "a int")])
def test_a_text_that_is_none_is_told_by_what_it_is(tmp_path: Path, value: str, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "one"}}\n{{"text": {value}}}\n')
    with refuses(key=f"{path}:2", rule=("'text'", f"but {said}"), remedy="text_field"):
        texts(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_line_beyond_the_bound_is_refused_and_read_over(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 40)
    longest = '{"text": "' + "x" * (40 - len('{"text": ""}') - 1) + '"}'
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
    rows = [longest, '{"text": "' + "y" * 200 + '"}', '{"text": "last"}']
    (tmp_path / name).write_bytes(pack("\n".join(rows).encode()))
    with refuses(key=tmp_path / f"{name}:2", rule="40 bytes", remedy="split"):
        texts(tmp_path)
    bad: list[ConfigError] = []
    found = list(iter_documents(tmp_path / name, on_bad=bad.append))
    assert [text[0] for text in found] == ["x", "l"]
    assert {error.key for error in bad} == {str(tmp_path / f"{name}:2")}


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_line_without_end_costs_no_more_memory_than_the_bound(
    suffix: str, tmp_path: Path
) -> None:
    """300 MB of one line in a few kilobytes: what is unpacked at a time is bounded."""
    code = (
        "import resource, sys\n"
        "from data_injection.corpus.documents import iter_documents\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(list(iter_documents(sys.argv[1], on_bad=print)))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    path = tmp_path / f"a.jsonl{suffix}"
    packer = zlib.compressobj(wbits=31) if suffix == ".gz" else zstandard.ZstdCompressor()
    packer = packer if suffix == ".gz" else packer.compressobj()
    parts = [packer.compress(b"x" * 10**6) for _ in range(300)]
    path.write_bytes(b"".join([*parts, packer.flush()]))
    assert path.stat().st_size < 10**6
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    said, found, kilobytes = done.stdout.splitlines()
    assert ":1 is longer than 67,108,864 bytes" in said
    assert found == "[]"
    assert int(kilobytes) < 250_000  # the line as far as it is held, and its copy


def test_json_nested_too_deeply_is_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "meta": ' + "[" * 10**5 + "]" * 10**5 + "}\n")
    with refuses(key=f"{path}:1", rule=("JSON", "nested"), remedy="repair"):
        texts(path)


def test_a_message_lists_no_more_than_a_few_of_a_records_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{" + ", ".join(f'"field{i}": {i}' for i in range(10**4)) + "}\n")
    with pytest.raises(ConfigError) as error:
        texts(path)
    assert len(str(error.value)) < 400
