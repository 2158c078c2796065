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
from data_injection.philox import raw_words
from data_injection.plan import InjectionPlan
from data_injection.rows import Spans, checked_slots, write_spans
from data_injection.tasks.base import IntArray


class HostCorpus(Protocol):
    """A corpus of rows: fresh dicts of tensors with at least "input_ids", shape (seq_len,)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


def splice_batch(
    batch: dict[str, Any], plan: InjectionPlan, *, step: int,
    slots: Sequence[int] | IntArray | None = None, pad_token_id: int | None = None,
) -> None:  # fmt: skip
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
    rows = checked_slots(batch["input_ids"].shape, slots, plan.geometry)
    if plan.tasks:
        eos = plan.eos_token_id
        write_spans(batch, spans_of(plan, step), rows, eos_token_id=eos, pad_token_id=pad_token_id)


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
        self, host: HostCorpus, *, order: RowOrder, plan: InjectionPlan, num_positions: int,
        pad_token_id: int,
    ) -> None:  # fmt: skip
        self.host, self.order, self.plan = host, order, plan
        self.num_positions, self.pad_token_id = num_positions, pad_token_id
        self._step: tuple[int, Spans] = (-1, Spans())

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
                eos, pad = self.plan.eos_token_id, self.pad_token_id
                write_spans(rows, kept[1], [slot], eos_token_id=eos, pad_token_id=pad)
                item |= {key: value[0] for key, value in rows.items()}
        return item


def spans_of(plan: InjectionPlan, step: int) -> Spans:
    """What a step's rows carry; ConfigError if its examples do not fit."""
    # Every reader does this for the whole batch, so task by task and not row by row.
    rows, spans = plan.at(step), Spans()
    num = plan.geometry.batch_size if plan.at_documents else 0
    words = raw_words(num, seed=plan.seed, purpose="documents", counter=step).tolist()
    for index, task in enumerate(plan.tasks):
        mine = np.flatnonzero(rows.tasks == index)
        written = task.written(rows.examples[mine], eos_token_id=plan.eos_token_id)
        places = zip(rows.slots[mine].tolist(), rows.offsets[mine].tolist(), written, strict=True)
        for slot, offset, tokens in places:
            spans.setdefault(slot, []).append((offset, tokens))
            if plan.at_documents and not task.has_label:
                spans.draws[slot] = words[slot]
    return spans
