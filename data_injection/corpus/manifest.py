"""The manifest of a corpus folder: what its token files hold, and whether they still do.

from data_injection.corpus.manifest import verify_corpus
verify_corpus("data/embedded", full=True)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_injection.errors import ConfigError
from data_injection.files import inside, read_json

VERSION = 1
"""Of the recipe: raised when the same inputs would give other tokens."""

MANIFEST = "manifest.json"

PARTIAL = ".partial"  # folder inside the corpus folder where unfinished files live

DTYPES = {"uint16": "<u2", "uint32": "<u4"}

REMEDY = "run `olmo-ext prepare`"


@dataclass(frozen=True)
class CorpusFile:
    path: str
    """Relative to the corpus folder."""
    num_tokens: int
    sha256: str

    def __post_init__(self) -> None:
        inside(self.path)


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
        return digest(identity)


def load_manifest(folder: str | Path) -> Manifest:
    """A corpus's manifest; FileNotFoundError if there is none, ConfigError if not ours."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        state = "was interrupted" if (Path(folder) / PARTIAL).exists() else "has not run"
        raise FileNotFoundError(f"{path} is missing: the preparation {state}; {REMEDY}")
    try:
        fields = read_json(path)
        fields["files"] = tuple(CorpusFile(**file) for file in fields["files"])
        for key in ("special_token_ids", "byte_token_ids", "sources"):
            fields[key] = tuple(fields[key])
        manifest = Manifest(**fields)
        inside(manifest.tokenizer)
        if manifest.dtype not in DTYPES:
            raise ValueError(f"dtype={manifest.dtype!r}")
    except (ValueError, TypeError, KeyError) as error:
        rule = f"is not the manifest of a corpus ({error!r})"
        remedy = f"{REMEDY} into another folder"
        raise ConfigError(key=str(path), rule=rule, remedy=remedy) from error
    if manifest.version != VERSION:
        rule = f"has version={manifest.version}, this release reads {VERSION}"
        raise ConfigError(key=str(path), rule=rule, remedy=f"delete {folder} and {REMEDY} again")
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
            rule = f"has {size} bytes, its manifest says {expected}"
            raise ConfigError(key=str(path), rule=rule, remedy=remedy)
    checks = [(folder / manifest.tokenizer, manifest.tokenizer_sha256)]
    if full:
        checks += [(folder / file.path, file.sha256) for file in manifest.files]
    for path, expected_sha in checks:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; {remedy}")
        digest = hashlib.sha256()
        with path.open("rb") as stream:  # hashlib.file_digest needs Python 3.11
            while block := stream.read(2**20):
                digest.update(block)
        sha = digest.hexdigest()
        if sha != expected_sha:
            rule = f"has sha256 {sha}, its manifest says {expected_sha}"
            raise ConfigError(key=str(path), rule=rule, remedy=remedy)
    return manifest


def corpus_paths(folder: str | Path, manifest: Manifest) -> list[Path]:
    """The token files, in the order of the stream."""
    return [Path(folder) / file.path for file in manifest.files]


def digest(value: Any) -> str:
    """sha256 of canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
