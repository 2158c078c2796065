"""A closed host: the first tokens of a corpus, again and again, as a corpus of its own.

    prepare_closed("runs/corpus", "runs/hosts/t1024", num_tokens=1024)
    olmo-ext prepare closed:runs/corpus --max-tokens 1024 --out runs/hosts/t1024

Open text has an entropy floor that no micro model comes near, so none is ever done with its common
tasks. A text of N tokens that comes back can be learned by heart: its size sets how hard the host
is while width, task and optimizer stay. Being a corpus, it needs nothing new in a plan, a ledger or
an audit. Make N a multiple of the context, or the copies' rows begin at other tokens each time.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_injection.beat import Beat
from data_injection.corpus.encoder import TOKENIZER
from data_injection.corpus.folder import prepared
from data_injection.corpus.manifest import (
    DTYPES,
    VERSION,
    Manifest,
    corpus_paths,
    digest,
    verify_corpus,
)
from data_injection.corpus.shards import ShardWriter
from data_injection.errors import ConfigError

LEAST_TOKENS = 2**20
"""Of a closed corpus: more than a batch, so that a small text fills one."""


def prepare_closed(source: str | Path, folder: str | Path, *, num_tokens: int) -> Manifest:
    """Write the first `num_tokens` of a prepared corpus, repeated to at least LEAST_TOKENS.

    Returns at once if the folder holds it already. Raises ConfigError or FileNotFoundError for a
    corpus that is damaged or shorter.
    """
    whole = verify_corpus(source, full=True)
    if not 0 < num_tokens <= whole.num_tokens:
        rule = f"must be between 1 and the {whole.num_tokens:,} tokens of {source}"
        raise ConfigError(key="max_tokens", value=num_tokens, rule=rule)
    copies = -(-LEAST_TOKENS // num_tokens)
    recipe = digest([VERSION, "closed", whole.hash, num_tokens, copies])

    def build(partial: Path, beat: Beat) -> Manifest:
        beat.then(f"writing {num_tokens:,} tokens {copies:,} times")
        tokens = _first_tokens(Path(source), whole, num_tokens)
        with ShardWriter(partial, whole.dtype, 2**28) as writer:
            for _ in range(copies):
                writer.write(tokens)
        shutil.copyfile(Path(source) / whole.tokenizer, partial / TOKENIZER)
        origin = {"closed": whole.name, "hash": whole.hash, "tokens": num_tokens, "copies": copies}
        return replace(
            whole,
            name=f"{whole.name}, the first {num_tokens} tokens",
            tokenizer=TOKENIZER,
            num_tokens=writer.num_tokens,
            num_documents=int((tokens == whole.eos_token_id).sum()) * copies,
            files=tuple(writer.files),
            sources=(origin,),
            recipe=recipe,
        )

    return prepared(Path(folder), recipe, build)


def _first_tokens(folder: Path, manifest: Manifest, num: int) -> np.ndarray:
    parts: list[np.ndarray] = []
    for path in corpus_paths(folder, manifest):
        if (missing := num - sum(map(len, parts))) > 0:
            parts.append(np.memmap(path, dtype=DTYPES[manifest.dtype], mode="r")[:missing])
    return np.concatenate(parts)
