"""Rows of a batch, edited in place: tokens written at their places, and what follows from tokens.

    write_spans({"input_ids": ids_BT}, {3: [(0, tokens)]}, range(B), eos_token_id=0)

Arrays and tensors, on any device; torch itself is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_injection.schedules.base import Geometry
from data_injection.tasks.base import IntArray


class Spans(dict[int, list[tuple[int, IntArray]]]):
    """By slot, what is written there: (offset in the row, tokens with their EOS)."""

    def __init__(self) -> None:
        self.draws: dict[int, int] = {}
        """By slot, for rows whose text decides where the first begins: the number that chooses.
        Their offsets count from there."""

    def start(self, slot: int, ids_T: Any, *, eos_token_id: int) -> int:
        """What is added to a slot's offsets in this row of the host's text, shape (seq_len,)."""
        if slot not in self.draws:
            return 0
        length = max(offset + len(tokens) for offset, tokens in self[slot])
        ids = np.asarray(ids_T.tolist())
        return document_start(ids, length, draw=self.draws[slot], eos_token_id=eos_token_id)


def document_start(ids_T: IntArray, length: int, *, draw: int, eos_token_id: int) -> int:
    """Where in a row of text so many tokens, EOS first and last, begin as a document does.

    At the row's first token or upon an EOS of it, so that the document before keeps its end. Of
    those that leave room, one that covers no other EOS but with its last token, so that it stands
    within one document; of all where there is none. Equal chances: number `draw` modulo theirs.
    """
    ends = np.flatnonzero(ids_T == eos_token_id)
    starts = np.union1d([0], ends)
    starts = starts[starts + length <= len(ids_T)]
    following = np.append(ends, len(ids_T))[np.searchsorted(ends, starts, side="right")]
    within = starts[starts + length - 1 <= following]
    chosen = within if len(within) else starts
    return int(chosen[draw % len(chosen)])


def checked_slots(
    shape: Sequence[int], slots: Sequence[int] | IntArray | None, geometry: Geometry
) -> list[int]:
    """The slot of each row of a batch of this shape; ValueError if they are not a plan's."""
    (num_rows, seq_len), batch_size = shape, geometry.batch_size
    if seq_len != geometry.seq_len:
        raise ValueError(
            f"input_ids: rows of {seq_len} tokens, but the plan is of {geometry.seq_len}; "
            "compile it for these rows"
        )
    if slots is None and num_rows != batch_size:
        raise ValueError(
            f"slots: {num_rows} rows are not the plan's batch of {batch_size}; give the slot of "
            "each row"
        )
    checked = [int(slot) for slot in (range(num_rows) if slots is None else slots)]
    if len(checked) != num_rows or len(set(checked)) != num_rows:
        raise ValueError(f"slots: {len(checked)} for {num_rows} rows; give one of its own to each")
    if outside := [slot for slot in checked if not 0 <= slot < batch_size]:
        raise ValueError(f"slots: {outside[0]} is not in [0, {batch_size}), the plan's batch")
    return checked


def write_spans(
    batch: dict[str, Any],
    spans: Spans,
    slots: Sequence[int],
    *,
    eos_token_id: int,
    pad_token_id: int | None,
) -> None:
    """Write what the slots carry into a batch whose rows they are; see `splice.splice_batch`."""
    ids_BT = batch["input_ids"]
    if "instance_mask" in batch and "label_mask" not in batch:
        batch["label_mask"] = ids_BT == ids_BT  # all true, of the ids' own kind
    for row, slot in enumerate(slots):
        if slot not in spans:
            continue
        if not batch.get("instance_mask", {row: True})[row]:
            batch["instance_mask"][row] = True
            batch["label_mask"][row] = False
        start = spans.start(slot, ids_BT[row], eos_token_id=eos_token_id)
        for offset, tokens in spans[slot]:
            where = (row, slice(start + offset, start + offset + len(tokens)))
            for key in ("input_ids", "labels"):
                if key in batch:
                    batch[key][where] = _like(batch[key], tokens)
            if "label_mask" in batch:
                batch["label_mask"][where] = True
            if "attention_mask" in batch:
                counted = tokens != (-1 if pad_token_id is None else pad_token_id)
                batch["attention_mask"][where] = _like(batch["attention_mask"], counted)
    if "doc_lens" in batch and any(slot in spans for slot in slots):
        _recount(batch, [slot in spans for slot in slots], eos_token_id)


def _recount(batch: dict[str, Any], changed: Sequence[bool], eos_token_id: int) -> None:
    """Put in the document lengths of the changed rows, and the width that the longest list has."""
    before = batch["doc_lens"]
    lengths = [
        document_lengths(batch["input_ids"][row], eos_token_id)
        if is_changed
        else [length for length in before[row].tolist() if length]
        for row, is_changed in enumerate(changed)
    ]
    after = np.zeros((len(lengths), max(map(len, lengths))), dtype=np.int32)
    for row, one in enumerate(lengths):
        after[row, : len(one)] = one
    batch["doc_lens"] = _like(before, after)
    if "max_doc_lens" in batch:
        longest = after.max(axis=1)
        as_list = isinstance(batch["max_doc_lens"], list)
        batch["max_doc_lens"] = longest.tolist() if as_list else _like(before, longest)


def _like(target: Any, values: np.ndarray) -> Any:
    """Values as the target is: a tensor of its type on its device, or an array of its type."""
    if hasattr(target, "new_tensor"):
        return target.new_tensor(values)
    return values.astype(target.dtype)


def document_lengths(input_ids: Any, eos_token_id: int) -> IntArray:
    """Lengths of the documents in a row, each up to and with its EOS; they sum to len(row).

    The engine's rule (olmo/data/util.py, get_document_lengths), applied after the splice.
    """
    ids = np.asarray(input_ids.tolist())
    ends = np.flatnonzero(ids == eos_token_id) + 1
    if len(ends) == 0 or ends[-1] != len(ids):
        ends = np.append(ends, len(ids))
    return np.diff(ends, prepend=0)
