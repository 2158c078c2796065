"""Splicing: the plan's examples put in place of as many tokens of the host's rows.

    splice_batch(batch, plan, step=17)                       # any training loop that knows its step
    stream = SplicedStream(host, order=order, plan=plan, num_positions=steps * batch_size)
    stream[position]["input_ids"]                            # the corpus as one endless stream

An example's tokens and an EOS overwrite as many tokens of a row; the shape never changes, nor does
any other token, and a row without an injection is the host's own. What follows from the tokens
(doc_lens, attention_mask, labels) is made to follow from the spliced ones. Arrays and tensors, on
any device; torch itself is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from data_injection.order import RowOrder
from data_injection.plan import InjectionPlan
from data_injection.tasks.base import IntArray

Spans = dict[int, list[tuple[int, IntArray]]]
"""By slot, what is written there: (offset in the row, tokens with their EOS)."""


class Host(Protocol):
    """A corpus of rows: fresh dicts of tensors with at least "input_ids", shape (seq_len,)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


def splice_batch(
    batch: dict[str, Any],
    plan: InjectionPlan,
    *,
    step: int,
    slots: Sequence[int] | IntArray | None = None,
    pad_token_id: int | None = None,
) -> None:
    """Put the plan's examples of a step into a batch, in place.

    Args:
        batch: "input_ids" of shape (B, seq_len), tensor or array, and of these any: "labels" and
            "attention_mask" and "label_mask" (B, seq_len), "instance_mask" (B,), "doc_lens" (B, D)
            with zeros after a row's last and "max_doc_lens". Its arrays are written into; doc_lens,
            whose width may change, and a label_mask that a filtered batch lacks are put in anew.
        step: optimizer step, counted from 0.
        slots: which row of the global batch each row is, shape (B,): rank r of W that takes every
            W-th row has range(r, batch_size, W). By default the rows are the whole batch.
        pad_token_id: an attention mask is 0 where a spliced token is this one; None: 1 throughout.

    "labels" are as Hugging Face has them, unshifted: of a spliced token its own id.

    Raises:
        ValueError: rows or slots that are not of the plan's batch.
        ConfigError: the step's examples do not fit it.
    """
    num_rows, seq_len = batch["input_ids"].shape
    batch_size = plan.geometry.batch_size
    if slots is None and num_rows != batch_size:
        raise ValueError(
            f"slots: {num_rows} rows are not the plan's batch of {batch_size}; give the slot of "
            "each row"
        )
    slots = range(num_rows) if slots is None else [int(slot) for slot in slots]
    if seq_len != plan.geometry.seq_len:
        raise ValueError(
            f"input_ids: rows of {seq_len} tokens, but the plan is of {plan.geometry.seq_len}; "
            "compile it for these rows"
        )
    if len(slots) != num_rows or len(set(slots)) != num_rows:
        raise ValueError(f"slots: {len(slots)} for {num_rows} rows; give one of its own to each")
    if outside := [slot for slot in slots if not 0 <= slot < batch_size]:
        raise ValueError(f"slots: {outside[0]} is not in [0, {batch_size}), the plan's batch")
    if plan.tasks:
        _splice(batch, spans_of(plan, step), slots, plan, pad_token_id=pad_token_id)


class SplicedStream:
    """Rows by stream position: host row, spliced where the plan says so.

    Args:
        host: the corpus. Its rows may be changed in place, so it must not hand out its own memory.
        order: which host row stands at a position.
        plan: which positions carry which example.
        num_positions: length of the stream: steps x global batch size.
        pad_token_id: where rows carry an attention mask, spliced positions follow the engine's rule
            (olmo/data/memmap_dataset.py:213): masked exactly where the token is the padding token.

    The engine's instance filter judges the host text, but an injected example is always trained
    on: a filtered row with an injection keeps that example's labels alone. For this every row of a
    filtered stream carries a label mask (the collator drops a key that only some rows have).
    """

    def __init__(
        self,
        host: Host,
        *,
        order: RowOrder,
        plan: InjectionPlan,
        num_positions: int,
        pad_token_id: int,
    ) -> None:
        self.host, self.order, self.plan = host, order, plan
        self.num_positions, self.pad_token_id = num_positions, pad_token_id
        self._step: tuple[int, Spans] = (-1, {})

    def __len__(self) -> int:
        return self.num_positions

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The row at a position, with the host row's number under "index"."""
        if not 0 <= position < self.num_positions:
            raise IndexError(f"position {position} is not in [0, {self.num_positions})")
        row = self.order.row(position)
        item = self.host[row]
        item["index"] = row
        if self.plan.tasks:
            step, slot = divmod(position, self.plan.geometry.batch_size)
            kept = self._step  # one pair throughout: another thread may store another step's
            if kept[0] != step:
                self._step = kept = (step, spans_of(self.plan, step))
            if slot in kept[1] or "instance_mask" in item:
                # As a batch of one row: views of the tensors, which are written into.
                rows = {k: v[None] if hasattr(v, "shape") else [v] for k, v in item.items()}
                _splice(rows, kept[1], [slot], self.plan, pad_token_id=self.pad_token_id)
                item |= {key: value[0] for key, value in rows.items()}
        return item


def spans_of(plan: InjectionPlan, step: int) -> Spans:
    """What a step's rows carry; ConfigError if its examples do not fit."""
    # Every reader does this for the whole batch, so task by task and not row by row.
    rows, spans = plan.at(step), Spans()
    for index, task in enumerate(plan.tasks):
        mine = np.flatnonzero(rows.tasks == index)
        written = task.written(rows.examples[mine], eos_token_id=plan.eos_token_id)
        places = zip(rows.slots[mine].tolist(), rows.offsets[mine].tolist(), written, strict=True)
        for slot, offset, tokens in places:
            spans.setdefault(slot, []).append((offset, tokens))
    return spans


def _splice(
    batch: dict[str, Any],
    spans: Spans,
    slots: Sequence[int],
    plan: InjectionPlan,
    *,
    pad_token_id: int | None,
) -> None:
    ids_BT = batch["input_ids"]
    if "instance_mask" in batch and "label_mask" not in batch:
        batch["label_mask"] = ids_BT == ids_BT  # all true, of the ids' own kind
    for row, slot in enumerate(slots):
        if slot not in spans:
            continue
        if not batch.get("instance_mask", {row: True})[row]:
            batch["instance_mask"][row] = True
            batch["label_mask"][row] = False
        for offset, tokens in spans[slot]:
            where = (row, slice(offset, offset + len(tokens)))
            for key in ("input_ids", "labels"):
                if key in batch:
                    batch[key][where] = _like(batch[key], tokens)
            if "label_mask" in batch:
                batch["label_mask"][where] = True
            if "attention_mask" in batch:
                counted = tokens != (-1 if pad_token_id is None else pad_token_id)
                batch["attention_mask"][where] = _like(batch["attention_mask"], counted)
    if "doc_lens" in batch and any(slot in spans for slot in slots):
        _recount(batch, [slot in spans for slot in slots], plan.eos_token_id)


def _recount(batch: dict[str, Any], changed: Sequence[bool], eos_token_id: int) -> None:
    """Put in the document lengths of the changed rows, and the width that the longest list has."""
    before = batch["doc_lens"]
    lengths = [
        document_lengths(batch["input_ids"][row], eos_token_id)
        if is_changed
        else _trimmed(before[row])
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


def _trimmed(doc_lens: Any) -> IntArray:
    return np.array([length for length in doc_lens.tolist() if length], dtype=np.int64)


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
