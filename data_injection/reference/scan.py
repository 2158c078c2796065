"""Natural comparisons and additions in token files, found without decoding the files.

    text = TokenText.from_file("corpus/tokenizer.json")  # data_injection/reference/vocabulary.py
    scan = scan_reference(["corpus/tokens-00000.npy"], text, dtype="uint16", eos_token_id=0)
    [place.statement.text for place in scan.places]

The study's reference tasks R_cmp and R_add; data_injection/reference/grammar.py says what a
statement is. Tables over the vocabulary mark the tokens that could hold a sign or a word of one.
The few places where numbers stand on the right sides of it are decoded with their surroundings and
read as text, so that a statement is found however its tokens are cut. None reaches over an EOS or a
file's end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from data_injection.corpus.scan import PIECE, Tokens, file_lengths, pieces
from data_injection.reference.grammar import (
    BORDER,
    MOST_BYTES,
    Statement,
    find_statements,
    value_of,
)
from data_injection.reference.vocabulary import (
    ANCHORS,
    EQUALS,
    MAYBE,
    NUMBER_ENDS,
    NUMBER_STARTS,
    PLUS,
    SIGN,
    SKIPPED,
    THAN,
    WORD,
    TokenText,
)

REACH = MOST_BYTES + BORDER
"""Bytes, and so tokens at most, on either side of an anchor that are decoded."""

MOST_SKIPPED = 4
"""Tokens of spaces and the rest of a sign between a part of the sign and its number."""

DOCUMENT_BACK = 2**17
"""Tokens back in which a statement's document is looked for; it may begin further back."""


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
    files: Sequence[str | Path | Tokens], text: TokenText, *, dtype: DTypeLike, eos_token_id: int,
    max_tokens: int | None = None, piece: int = PIECE,
    progress: Callable[[int], object] = lambda num: None,
) -> ReferenceScan:  # fmt: skip
    """Find the statements of raw token files; memory grows with what is found, not with the files.

    Args:
        files: headerless token files, or arrays, in the order of the stream.
        text: of the tokenizer that wrote them.
        dtype: of the files, an unsigned integer type.
        max_tokens: scan an evenly spread sample of so many tokens instead of all.
        piece: tokens at a time; what is found does not depend on it.
        progress: called with the number of tokens of every piece that is done.
    """
    total = sum(file_lengths(files, dtype=dtype))
    finder = _Finder(text, eos_token_id=eos_token_id, room=min(piece, total))
    found: dict[tuple[int, int, int, str], Place] = {}
    num_scanned = 0
    for index, tokens, start, stop in pieces(
        files, dtype=dtype, max_tokens=max_tokens, piece=piece
    ):
        for anchor in finder.candidates(tokens, start, stop):
            for place, offset in finder.read(tokens, anchor, file=index):
                # Two tokens of one statement can be anchors.
                found.setdefault((index, place.start, offset, place.statement.form), place)
        num_scanned += stop - start
        progress(stop - start)
    places = tuple(found[key] for key in sorted(found))
    return ReferenceScan(num_tokens=total, num_scanned=num_scanned, places=places)


class _Finder:
    """Looks for anchors in a piece of a file, and reads what stands around one."""

    def __init__(self, text: TokenText, *, eos_token_id: int, room: int) -> None:
        self.text, self.eos_token_id = text, eos_token_id
        self.marks = text.marks.copy()
        self.marks[eos_token_id] = 0
        self.top = len(self.marks) - 1
        self._is_anchor = self.marks & ANCHORS != 0
        self._sizes = np.array([*map(len, text.bytes_of), 0])
        self._sizes[eos_token_id] = REACH  # nothing beyond it
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
        words = self._spelled_out(tokens, at, self.marks[np.minimum(tokens[at], self.top)])
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
        # The number to the right must start there, that to the left must end there; between may
        # stand spaces and the rest of a sign that is several tokens (" <", "=").
        for step, wanted in ((1, NUMBER_STARTS), (-1, NUMBER_ENDS)):
            inside = marks & (NUMBER_STARTS | NUMBER_ENDS) != 0  # a token of both, such as "<5"
            beside = at + step
            for _ in range(MOST_SKIPPED):
                beside += step * (self._marks_at(tokens, beside) & SKIPPED != 0)
            keep = inside | (self._marks_at(tokens, beside) & wanted != 0)
            at, marks = at[keep], marks[keep]
        # One = alone, without a further sign beside it, is no comparison, and text is full of them;
        # an addition is found at its + and an extreme at its word.
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
        low = anchor - self._reach(tokens[max(anchor - REACH, 0) : anchor][::-1])
        stop = anchor + 1 + self._reach(tokens[anchor + 1 : anchor + 1 + REACH])
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

    def _reach(self, beside: Tokens) -> int:
        """How many of the tokens beside an anchor can matter: REACH bytes, and none past an EOS."""
        num_bytes = np.cumsum(self._sizes[np.minimum(beside, self.top)])
        last = int(np.searchsorted(num_bytes, REACH))
        if last == len(beside):
            return last
        return last + int(beside[last] != self.eos_token_id)

    def _document(self, tokens: Tokens, at: int) -> int:
        low = max(at - DOCUMENT_BACK, 0)
        ends = np.flatnonzero(np.asarray(tokens[low:at]) == self.eos_token_id)
        return low + int(ends[-1]) + 1 if len(ends) else low


def seen_operands(places: Sequence[Place], task: str) -> frozenset[frozenset[Any]]:
    """The unordered pairs of numbers that the statements of a task compare or add."""
    return frozenset(
        frozenset(map(value_of, place.statement.operands))
        for place in places
        if place.statement.task == task
    )
