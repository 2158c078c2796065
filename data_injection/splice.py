"""SplicedStream: the host corpus as one endless stream of rows, with the plan's examples in place.

    stream = SplicedStream(host, order=order, plan=plan, num_positions=steps * batch_size)
    stream[position]["input_ids"]

An example's tokens and an EOS overwrite as many tokens of the row at `plan.offset`; the shape never
changes, nor does any other token, and a row without an injection is the host's own. What follows
from the tokens (doc_lens, attention_mask) is made to follow from the spliced ones.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from data_injection.order import RowOrder
from data_injection.plan import InjectionPlan
from data_injection.tasks.base import IntArray


class Host(Protocol):
    """A corpus of rows: fresh dicts of tensors with at least "input_ids", shape (seq_len,)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


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
        self._step: tuple[int, dict[int, IntArray]] = (-1, {})

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
                self._step = kept = (step, self._tokens_by_slot(step))
            tokens = kept[1].get(slot)
            if "instance_mask" in item and "label_mask" not in item:
                item["label_mask"] = torch.ones_like(item["input_ids"], dtype=torch.bool)
            if tokens is not None:
                self._splice(item, torch.from_numpy(tokens))
        return item

    def _tokens_by_slot(self, step: int) -> dict[int, IntArray]:
        # Every reader does this for the whole batch, so task by task and not row by row.
        rows = self.plan.at(step)
        tokens_by_slot: dict[int, IntArray] = {}
        for index, task in enumerate(self.plan.tasks):
            mine = np.flatnonzero(rows.tasks == index)
            tokens_NL = np.full((len(mine), task.length + 1), self.plan.eos_token_id, np.int64)
            tokens_NL[:, :-1] = task.tokens[rows.examples[mine]]
            slots = rows.slots[mine].tolist()
            tokens_by_slot.update(zip(slots, tokens_NL, strict=True))
        return tokens_by_slot

    def _splice(self, item: dict[str, Any], tokens: torch.Tensor) -> None:
        where = slice(self.plan.offset, self.plan.offset + len(tokens))
        item["input_ids"][where] = tokens
        if not item.get("instance_mask", True):
            item["instance_mask"] = True
            item["label_mask"][:] = False
        if "label_mask" in item:
            item["label_mask"][where] = True
        if "attention_mask" in item:
            item["attention_mask"][where] = tokens.ne(self.pad_token_id).long()
        if "doc_lens" in item:
            item["doc_lens"] = document_lengths(item["input_ids"], self.plan.eos_token_id)


def document_lengths(input_ids: torch.Tensor, eos_token_id: int) -> torch.Tensor:
    """Lengths of the documents in a row, each up to and with its EOS; int32, sums to len(row).

    The engine's rule (olmo/data/util.py, get_document_lengths), applied after the splice.
    """
    ends = (input_ids == eos_token_id).nonzero(as_tuple=True)[0] + 1
    if len(ends) == 0 or ends[-1] != len(input_ids):
        ends = torch.cat([ends, torch.tensor([len(input_ids)])])
    return torch.diff(ends, prepend=torch.zeros(1, dtype=ends.dtype)).to(torch.int32)
