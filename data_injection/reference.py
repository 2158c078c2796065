"""Natural comparisons and additions in token files, found without decoding the files.

    text = TokenText.from_file("corpus/tokenizer.json")
    scan = scan_reference(["corpus/tokens-00000.npy"], text, dtype="uint16", eos_token_id=0)
    [place.statement.text for place in scan.places]

The study's reference tasks R_cmp and R_add; data_injection/statements.py says what a statement is.
Tables over the vocabulary mark the tokens that could hold a sign or a word of one. The few places
where numbers stand on the right sides of it are decoded with their surroundings and read as text,
so that a statement is found however its tokens are cut. None reaches over an EOS or a file's end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from data_injection.config import ConfigError
from data_injection.scan import PIECE, Tokens, pieces
from data_injection.statements import (
    BORDER,
    EXTREMES,
    MOST_BYTES,
    SWAPPED,
    TENS,
    UNITS,
    Statement,
    find_statements,
    spelled,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REACH = MOST_BYTES + BORDER
"""Bytes, and so tokens at most, on either side of an anchor that are decoded."""

NUMBER_STARTS, NUMBER_ENDS, SKIPPED, SIGN, EQUALS, PLUS, THAN, WORD, MAYBE = (
    1 << n for n in range(9)
)
"""What a token can be part of; SKIPPED may stand between a sign and its number, MAYBE ends a word
of several tokens or something else."""

ANCHORS = SIGN | EQUALS | PLUS | THAN | WORD | MAYBE

SIGN_BYTES = b"<>=!\xe2\x89\xa4\xa5"
"""Of <, >, =, !, ≤ and ≥; byte 0x89 stands in one token of any spelling of the last two."""

MOST_SKIPPED = 4
"""Tokens of spaces and the rest of a sign between a part of the sign and its number."""

DOCUMENT_BACK = 2**17
"""Tokens back in which a statement's document is looked for; it may begin further back."""


class TokenText:
    """The bytes of every token of a byte-level BPE, and the way back.

    Raises ConfigError for another kind of tokenizer, whose tokens are not bytes by themselves.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        from data_injection.encoder import is_byte_level

        spec = json.loads(tokenizer.to_str())
        if not is_byte_level(spec):
            raise ConfigError(
                "the reference tasks are found in the text of a byte-level BPE only, which this "
                "tokenizer is not; leave them out"
            )
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
        from data_injection.encoder import parse_tokenizer

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


@dataclass(frozen=True)
class Place:
    """A statement where it stands in the token files; token numbers count from the file's start."""

    statement: Statement
    file: int
    start: int
    choice: int
    """First token of what its foil says differently."""

    answer: int
    """First token of the answer."""

    stop: int
    """After its last token, which is the answer's last too."""

    document: int
    """First token of its document, or the earliest that was looked at."""


@dataclass(frozen=True)
class ReferenceScan:
    """All statements of a corpus, or of the evenly spread sample that was scanned."""

    num_tokens: int
    num_scanned: int
    places: tuple[Place, ...]
    """In the order of the stream; a statement counts where its sign or word stands."""


def scan_reference(
    files: Sequence[str | Path | Tokens],
    text: TokenText,
    *,
    dtype: DTypeLike,
    eos_token_id: int,
    max_tokens: int | None = None,
    piece: int = PIECE,
    progress: Callable[[int], object] = lambda num: None,
) -> ReferenceScan:
    """Find the statements of raw token files; memory grows with what is found, not with the files.

    Args:
        files: headerless token files, or arrays, in the order of the stream.
        text: of the tokenizer that wrote them.
        dtype: of the files, an unsigned integer type.
        max_tokens: scan an evenly spread sample of so many tokens instead of all.
        piece: tokens at a time; what is found does not depend on it.
        progress: called with the number of tokens of every piece that is done.
    """
    size = np.dtype(dtype).itemsize
    lengths = [
        len(f) if isinstance(f, np.ndarray) else Path(f).stat().st_size // size for f in files
    ]
    finder = _Finder(text, eos_token_id=eos_token_id, room=min(piece, sum(lengths)))
    found: dict[tuple[int, int, int, str], Place] = {}
    num_scanned, opened = 0, -1
    for index, start, stop in pieces(lengths, max_tokens=max_tokens, piece=piece):
        if index != opened:
            file, opened = files[index], index
            tokens = (
                file if isinstance(file, np.ndarray) else np.memmap(file, dtype=dtype, mode="r")
            )
        for anchor in finder.candidates(tokens, start, stop):
            for place, offset in finder.read(tokens, anchor, file=index):
                # Two tokens of one statement can be anchors.
                found.setdefault((index, place.start, offset, place.statement.form), place)
        num_scanned += stop - start
        progress(stop - start)
    places = tuple(found[key] for key in sorted(found))
    return ReferenceScan(num_tokens=sum(lengths), num_scanned=num_scanned, places=places)


class _Finder:
    """Looks for anchors in a piece of a file, and reads what stands around one."""

    def __init__(self, text: TokenText, *, eos_token_id: int, room: int) -> None:
        self.text, self.eos_token_id = text, eos_token_id
        self.marks = text.marks.copy()
        self.marks[eos_token_id] = 0
        self.top = len(self.marks) - 1
        self._is_anchor = self.marks & ANCHORS != 0
        self._ids, self._mask = np.empty(room, dtype=np.intp), np.empty(room, dtype=bool)

    def candidates(self, tokens: Tokens, start: int, stop: int) -> list[int]:
        """Tokens of the stretch that have numbers where a statement needs them."""
        ids, mask = self._ids[: stop - start], self._mask[: stop - start]
        if tokens.dtype.itemsize > 2:  # a wild id must not ask for a table of its size
            np.minimum(tokens[start:stop], self.top, out=ids, casting="unsafe")
        else:
            np.copyto(ids, tokens[start:stop], casting="unsafe")
        np.take(self._is_anchor, ids, out=mask, mode="clip")
        at = np.flatnonzero(mask) + start
        if not len(at):
            return []
        # What an anchor needs is looked up around it: anchors are few.
        marks = self.marks[np.minimum(tokens[at], self.top)]
        words = self._spelled_out(tokens, at, marks)
        to_number = self.text.distances
        than = self._near(tokens, at[words & THAN != 0], to_number[0], NUMBER_STARTS)
        before = [-distance for distance in range(1, self.text.tokens_before + 1)]
        kept = [
            self._signs(tokens, at, words),
            self._near(tokens, than, before, NUMBER_ENDS),
            self._near(tokens, at[words & WORD != 0], to_number[1], NUMBER_STARTS),
        ]
        return np.unique(np.concatenate(kept)).tolist()

    def _spelled_out(
        self, tokens: Tokens, at: NDArray[np.int64], marks: NDArray[np.uint16]
    ) -> NDArray[np.uint16]:
        """The marks with those of words of several tokens, where all of these stand there."""
        marks = marks.copy()
        maybe = np.flatnonzero(marks & MAYBE)
        last = tokens[at[maybe]]
        for ids, mark in self.text.runs:
            ends = maybe[(last == ids[-1]) & (at[maybe] >= len(ids) - 1)]
            for back, token in enumerate(reversed(ids)):
                ends = ends[tokens[at[ends] - back] == token]
            marks[ends] |= mark
        return marks

    def _signs(
        self, tokens: Tokens, at: NDArray[np.int64], marks: NDArray[np.uint16]
    ) -> NDArray[np.int64]:
        """Signs and pluses with a number on either side; a lone = is no comparison."""
        keep = marks & (SIGN | EQUALS | PLUS) != 0
        at, marks = at[keep], marks[keep]
        for step, wanted in ((1, NUMBER_STARTS), (-1, NUMBER_ENDS)):
            inside = marks & (NUMBER_STARTS | NUMBER_ENDS) != 0  # a token of both, such as "<5"
            beside = at + step
            for _ in range(MOST_SKIPPED):
                beside += step * (self._marks_at(tokens, beside) & SKIPPED != 0)
            keep = inside | (self._marks_at(tokens, beside) & wanted != 0)
            at, marks = at[keep], marks[keep]
        lone = (marks & EQUALS != 0) & (marks & (SIGN | PLUS) == 0)
        for step in (-1, 1):
            lone &= self._marks_at(tokens, at + step) & (EQUALS | SIGN | SKIPPED) == 0
        return at[~lone]

    def _near(
        self, tokens: Tokens, at: NDArray[np.int64], distances: Sequence[int], wanted: int
    ) -> NDArray[np.int64]:
        """Words that have the wanted mark at one of the distances."""
        near = np.zeros(len(at), dtype=bool)
        for distance in distances:
            near |= self._marks_at(tokens, at + distance) & wanted != 0
        return at[near]

    def _marks_at(self, tokens: Tokens, at: NDArray[np.int64]) -> NDArray[np.uint16]:
        inside = (at >= 0) & (at < len(tokens))
        marks = self.marks[np.minimum(tokens[np.clip(at, 0, len(tokens) - 1)], self.top)]
        return np.where(inside, marks, 0)

    def read(self, tokens: Tokens, anchor: int, *, file: int) -> Iterator[tuple[Place, int]]:
        """The statements that an anchor is part of, each with its byte in its first token."""
        low = anchor - self._reach(tokens[max(anchor - REACH, 0) : anchor][::-1].tolist())
        stop = anchor + 1 + self._reach(tokens[anchor + 1 : anchor + 1 + REACH].tolist())
        ids = tokens[low:stop].tolist()
        ends_of = self.text.ends(ids)

        def token_at(byte: int) -> int:
            return low + int(np.searchsorted(ends_of, byte, side="right"))

        for statement in find_statements(self.text.join(ids)):
            start, after = token_at(statement.start), token_at(statement.stop - 1) + 1
            if start <= anchor < after:
                place = Place(
                    statement=statement,
                    file=file,
                    start=start,
                    choice=token_at(statement.choice),
                    answer=token_at(statement.answer_start),
                    stop=after,
                    document=self._document(tokens, start),
                )
                first_byte = int(ends_of[start - low]) - len(self.text.bytes_of[ids[start - low]])
                yield place, statement.start - first_byte

    def _reach(self, ids: Sequence[int]) -> int:
        """How many of the tokens beside an anchor can matter: REACH bytes, and none past an EOS."""
        num_bytes, size = 0, len(self.text.bytes_of)
        for num, token in enumerate(ids):
            if token == self.eos_token_id or num_bytes >= REACH:
                return num
            num_bytes += len(self.text.bytes_of[token]) if token < size else 0
        return len(ids)

    def _document(self, tokens: Tokens, at: int) -> int:
        low = max(at - DOCUMENT_BACK, 0)
        ends = np.flatnonzero(np.asarray(tokens[low:at]) == self.eos_token_id)
        return low + int(ends[-1]) + 1 if len(ends) else low


def seen_operands(places: Sequence[Place], task: str) -> frozenset[frozenset[Any]]:
    """The unordered pairs of numbers that the statements of a task compare or add."""
    from data_injection.statements import value_of

    return frozenset(
        frozenset(map(value_of, place.statement.operands))
        for place in places
        if place.statement.task == task
    )
