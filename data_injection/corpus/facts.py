"""A host of facts: (a, b) -> c over tokens of its own, drawn one by one, whose entropy is known.

    prepare_facts(2048, "runs/hosts/f2048", tokenizer="runs/corpus")
    olmo-ext prepare facts:2048 --tokenizer runs/corpus --out runs/hosts/f2048

Text has an entropy floor that nobody knows. Of `num` facts, each drawn uniformly and written as a
document a, b, c, EOS, the entropy is log(num) / 4 nats a token; `noise` adds to it, the share of
occurrences whose c is drawn anew. A row's first token, of entropy `first`, is never predicted: in
rows of T an all-knowing model has (T entropy - first) / T as ai2-olmo logs it, and what a loss has
beyond it was not learned of the host. The tokens stand in the manifest among the special ones: no
task draws them, and one that names one is refused.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from data_injection.beat import Beat
from data_injection.corpus.closed import LEAST_TOKENS
from data_injection.corpus.encoder import TOKENIZER, choose_encoder, tokenizer_path
from data_injection.corpus.folder import prepared
from data_injection.corpus.manifest import VERSION, Manifest, digest
from data_injection.corpus.shards import ShardWriter
from data_injection.errors import ConfigError
from data_injection.philox import permutation, raw_words

LENGTH = 4
"""Tokens of a fact: a, b, c and EOS."""

SEED = 0


def entropy(num: int, *, answers: int, noise: float) -> float:
    """Of a stream of facts, nats a token: of which fact, and of an answer that is noise."""
    wrong = noise / answers
    right = 1 - noise + wrong
    parts = [right, *[wrong] * (answers - 1)]
    answer = -sum(share * math.log(share) for share in parts if share > 0)
    return (math.log(num) + answer) / LENGTH


def prepare_facts(
    num: int,
    folder: str | Path,
    *,
    tokenizer: str = "dolma-v1_5",
    noise: float = 0.0,
    num_tokens: int = LEAST_TOKENS,
) -> Manifest:
    """Write `num_tokens` tokens of facts, whole ones, to `folder`.

    tokenizer: as of `prepare_corpus`, or the folder of a corpus whose ids are to be used.
    Returns at once if the folder holds it already. Raises ConfigError for counts that cannot be.
    """
    path = tokenizer_path(tokenizer)
    encoder = choose_encoder(path.read_bytes(), where=str(path))
    fields = encoder.fields
    added = fields["special_token_ids"]
    taken = [*added, *fields["byte_token_ids"], encoder.eos, encoder.pad]
    free = np.setdiff1d(np.arange(encoder.vocab_size), taken)
    side = math.isqrt(max(num, 1) - 1) + 1  # of the a's, of the b's and of the c's
    if num < 2 or 3 * side > len(free):
        most = (len(free) // 3) ** 2
        rule = f"must be between 2 and {most:,}, for which the vocabulary's {len(free):,} ids do"
        raise ConfigError(key="facts", value=num, rule=rule)
    if not 0 <= noise < 1:
        rule = "must be a share of the occurrences, 0 or more and below 1"
        raise ConfigError(key="noise", value=noise, rule=rule)
    if num_tokens < LENGTH:
        rule = f"must hold a fact, {LENGTH} tokens"
        raise ConfigError(key="max_tokens", value=num_tokens, rule=rule)
    recipe = digest([VERSION, "facts", num, noise, num_tokens, encoder.identity])
    tokens = free[permutation(len(free), seed=SEED, purpose="facts/tokens")][: 3 * side]
    origin = {"facts": num, "noise": noise, "answers": side}
    origin["entropy"] = entropy(num, answers=side, noise=noise)
    shares = np.unique(_pairs(num, side) // side, return_counts=True)[1] / num
    origin["first"] = float(-(shares * np.log(shares)).sum())

    def build(partial: Path, beat: Beat) -> Manifest:
        drawn = num_tokens // LENGTH
        beat.then(f"writing {drawn:,} facts of {num:,}")
        with ShardWriter(partial, encoder.dtype, 2**28) as writer:
            writer.write(_stream(num, drawn, tokens, encoder.eos, noise).ravel())
        (partial / TOKENIZER).write_bytes(encoder.tokenizer_json)
        return Manifest(
            **fields | {"special_token_ids": tuple(sorted({*added, *tokens.tolist()}))},
            name=f"{num} facts",
            num_tokens=writer.num_tokens,
            num_documents=drawn,
            files=tuple(writer.files),
            sources=(origin,),
            recipe=recipe,
        )

    return prepared(Path(folder), recipe, build)


def _stream(num: int, drawn: int, tokens: np.ndarray, eos: int, noise: float) -> np.ndarray:
    """Facts drawn with replacement, shape (drawn, LENGTH)."""
    side = len(tokens) // 3
    pairs = _pairs(num, side)
    answer = _draw(num, side, "facts/answers")
    which = _draw(drawn, num, "facts/order")
    given = answer[which]
    if noise:
        spoiled = raw_words(drawn, seed=SEED, purpose="facts/spoiled") < int(noise * 2**64)
        given = np.where(spoiled, _draw(drawn, side, "facts/noise"), given)
    a, b = np.divmod(pairs[which], side)
    columns = tokens[a], tokens[side + b], tokens[2 * side + given]
    return np.column_stack([*columns, np.full(drawn, eos)])


def _pairs(num: int, side: int) -> np.ndarray:
    """Of each fact a * side + b, all different."""
    return permutation(side * side, seed=SEED, purpose="facts/pairs")[:num]


def _draw(num: int, below: int, purpose: str) -> np.ndarray:
    """`num` integers below `below`; 64-bit words are uniform to within below / 2^64."""
    return (raw_words(num, seed=SEED, purpose=purpose) % np.uint64(below)).astype(np.int64)
