"""The text of a tokenizer's tokens one by one, and which of them a statement can be made of.

    text = TokenText.from_file("corpus/tokenizer.json")
    text.join([17, 4, 99]), text.marks[17] & SIGN

For data_injection/reference/scan.py, which finds statements among tokens by these marks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_injection.errors import ConfigError
from data_injection.reference.grammar import EXTREMES, SWAPPED, TENS, UNITS, spelled

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NUMBER_STARTS, NUMBER_ENDS, SKIPPED, SIGN, EQUALS, PLUS, THAN, WORD, MAYBE = (
    1 << n for n in range(9)
)
"""What a token can be part of; SKIPPED may stand between a sign and its number, MAYBE ends a word
of several tokens or something else."""

ANCHORS = SIGN | EQUALS | PLUS | THAN | WORD | MAYBE

SIGN_BYTES = b"<>=!\xe2\x89\xa4\xa5"
"""Of <, >, =, !, ≤ and ≥; byte 0x89 stands in one token of any spelling of the last two."""


class TokenText:
    """The bytes of every token of a byte-level BPE, and the way back.

    Raises ConfigError for another kind of tokenizer, whose tokens are not bytes by themselves.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        from data_injection.corpus.encoder import is_byte_level

        spec = json.loads(tokenizer.to_str())
        if not is_byte_level(spec):
            rule = "are found in the text of a byte-level BPE only, which this tokenizer is not"
            raise ConfigError(key="the reference tasks", rule=rule, remedy="leave them out")
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        added = {entry["id"]: entry["content"].encode() for entry in spec["added_tokens"]}
        byte_of = _byte_of_character()
        size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.bytes_of = [b""] * size
        for token, index in tokenizer.get_vocab(with_added_tokens=False).items():
            self.bytes_of[index] = bytes(byte_of[c] for c in token if c in byte_of)
        for index, content in added.items():
            self.bytes_of[index] = content

    @classmethod
    def from_file(cls, path: str | Path) -> TokenText:
        from data_injection.corpus.encoder import parse_tokenizer

        return cls(parse_tokenizer(Path(path).read_bytes(), where=str(path)))

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def join(self, ids: Sequence[int]) -> bytes:
        """The text of some tokens; ids beyond the vocabulary are nothing."""
        return b"".join(self._parts(ids))

    def ends(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """Where each token ends in `join(ids)`."""
        return np.cumsum([len(part) for part in self._parts(ids)])

    def _parts(self, ids: Sequence[int]) -> list[bytes]:
        size = len(self.bytes_of)
        return [self.bytes_of[i] if i < size else b"" for i in ids]

    @cached_property
    def marks(self) -> NDArray[np.uint16]:
        """What each token could be part of, and nothing for ids beyond: shape (vocabulary + 1,).

        A word of several tokens marks its last one, as MAYBE; see `runs`.
        """
        marks = np.zeros(len(self.bytes_of) + 1, dtype=np.uint16)
        for index, token in enumerate(self.bytes_of):
            marks[index] = _marks_of_bytes(token)
        for ids, mark in self._spellings():
            marks[ids[-1]] |= mark if len(ids) == 1 else MAYBE
        for form in (form for word in (*UNITS, *TENS) for form in _forms(word)):
            ids = self.encode(form)
            marks[ids[0]] |= NUMBER_STARTS
            marks[ids[-1]] |= NUMBER_ENDS
        return marks

    @cached_property
    def runs(self) -> list[tuple[list[int], int]]:
        """Words that are several tokens, each with its mark."""
        return [(ids, mark) for ids, mark in self._spellings() if len(ids) > 1]

    def _spellings(self) -> Iterator[tuple[list[int], int]]:
        for words, mark in (
            (("plus",), PLUS),
            (("than", "equal"), THAN),
            ((*EXTREMES, "sum"), WORD),
        ):
            yield from ((self.encode(form), mark) for word in words for form in _forms(word))

    @cached_property
    def tokens_before(self) -> int:
        """Most tokens between a number and the last one of "than" or "equal" behind it."""
        return max(len(self.encode(f" were {word} than or equal")) for word in SWAPPED)

    @cached_property
    def distances(self) -> tuple[list[int], list[int]]:
        """Tokens from "than" or "equal" to the number behind; from "sum", "max" and the like."""
        of, between, to = (1 + len(self.encode(word)) for word in (" of", " between", " to"))
        return [1, to], sorted({2, of, between})


def _forms(word: str) -> list[str]:
    """As a word begins a document's text, a line or a bracket, or follows a space."""
    return [space + form for form in spelled(word) for space in ("", " ")]


def _byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level BPE's vocabulary stands for (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(rest)}


def _marks_of_bytes(token: bytes) -> int:
    text, marks = token.strip(b" \t"), 0
    if not token:
        return 0
    if all(byte in SIGN_BYTES for byte in text):
        marks |= SKIPPED
    if text[:1].isdigit():
        marks |= NUMBER_STARTS
    if text[-1:].isdigit():
        marks |= NUMBER_ENDS
    if any(sign in token for sign in (b"<", b">", b"==", b"!=", b"\x89")):
        marks |= SIGN
    elif b"=" in token:
        marks |= EQUALS
    return marks | (PLUS if b"+" in token else 0)
