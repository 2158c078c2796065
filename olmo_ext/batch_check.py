"""Witness: every rank looks at what it is about to train on and compares it with the plan.

    rows = witness.see(step, batch)

The ledger would prove nothing if it were a copy of the plan. Each rank checks each of its batches
before the step: the rows of the corpus are those of the stream at these positions (`RowOrder`,
whose files are verified at every start), planned rows hold exactly the planned tokens, and no other
row holds an example that the corpus has not. A rank that finds anything else stops the run; since
no rank can finish a step without the gradients of all others, and all have one plan
(`olmo_ext.engines.ranks.check_one_run`, at the start), a step that rank 0 writes down was seen and
found right by all of them.

It also keeps the **stream digest**: the sum over all rows trained on of XXH3-64(token ids as
little-endian int64; seed = position), modulo 2^64. A sum does not depend on who adds it up: the
same stream has the same digest on any number of ranks, with any workers, and after any restart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from data_injection.digest import rows_digest
from data_injection.order import RowOrder
from data_injection.plan import InjectionPlan, StepRows
from data_injection.rows import Spans
from data_injection.splice import HostCorpus, spans_of


class StreamError(RuntimeError):
    """A batch is not what the plan says: a defect, here or in the engine; training must stop."""


class Witness:
    """Sees the batches of one rank.

    Args:
        host: the corpus, to judge a row that holds an example without being planned.
        rank, world_size: row i of this rank's batches is slot i * world_size + rank of the step (so
            the engine deals them, olmo/data/iterable_dataset.py:125).
    """

    def __init__(
        self, plan: InjectionPlan, order: RowOrder, host: HostCorpus, *, rank: int, world_size: int
    ) -> None:
        self.plan, self.order, self.host = plan, order, host
        self.rank, self.world_size = rank, world_size
        self._digest = 0

    def see(self, step: int, batch: dict[str, Any]) -> StepRows:
        """Check this rank's part of a step (counted from 0) and add it to the digest.

        Returns the injections of the whole step. Raises StreamError naming place and both sides.
        """
        ids_BT = batch["input_ids"].numpy()
        batch_size = self.order.batch_size
        slots = np.arange(len(ids_BT)) * self.world_size + self.rank
        if len(ids_BT) * self.world_size != batch_size:
            raise StreamError(
                f"step {step}: {len(ids_BT)} rows on each of {self.world_size} ranks are no batch "
                f"of {batch_size}"
            )
        host_rows = self.order.rows_of_step(step)[slots]
        self._check_host(step, slots, host_rows, batch["index"].numpy())
        rows = self.plan.at(step)
        self._check_examples(step, ids_BT, rows, host_rows)
        self._digest = (self._digest + rows_digest(ids_BT, step * batch_size + slots)) % 2**64
        return rows

    def digest(self, device: torch.device) -> int:
        """The digest of all that was seen since the start, over all ranks; all must call."""
        value = self._digest
        if self.world_size > 1:
            # Signed, since that is what the back ends add; both wrap around alike.
            total = torch.tensor(np.array([value], dtype=np.uint64).view(np.int64), device=device)
            dist.all_reduce(total)
            value = int(total.item()) % 2**64
        return value

    def _check_host(
        self, step: int, slots: NDArray, expected: NDArray, found: NDArray[np.int64]
    ) -> None:
        wrong = np.flatnonzero(expected != found)
        if len(wrong):
            i = wrong[0]
            raise StreamError(
                f"step {step}, slot {slots[i]}: row {found[i]} of the corpus, but the stream has "
                f"row {expected[i]} there ({len(wrong)} of {len(slots)} rows are wrong)"
            )

    def _check_examples(
        self, step: int, ids_BT: NDArray, rows: StepRows, host_rows: NDArray
    ) -> None:
        planned = np.zeros(len(ids_BT), dtype=bool)
        mine = np.flatnonzero(rows.slots % self.world_size == self.rank)
        planned[rows.slots[mine] // self.world_size] = True
        for index, task in enumerate(self.plan.tasks):
            chosen = mine[rows.tasks[mine] == index]
            if not task.has_label:
                self._check_sequences(step, ids_BT, rows, chosen, host_rows)
                continue
            where = slice(self.plan.offset, self.plan.offset + task.length + 1)
            local = rows.slots[chosen] // self.world_size
            found = ids_BT[local, where]
            wrong = (found[:, :-1] != task.tokens[rows.examples[chosen]]).any(axis=1)
            wrong |= found[:, -1] != self.plan.eos_token_id
            if wrong.any():
                i = int(np.flatnonzero(wrong)[0])
                raise StreamError(
                    f"step {step}, slot {rows.slots[chosen[i]]}: tokens {found[i].tolist()}, but "
                    f"the plan has example {rows.examples[chosen[i]]} of {task.name!r} there: "
                    f"{task.tokens[rows.examples[chosen[i]]].tolist()} and EOS"
                )
            # A row that ends like an example without being planned: rare, so look at it closely.
            ends = np.flatnonzero((ids_BT[:, where.stop - 1] == self.plan.eos_token_id) & ~planned)
            ends = ends[np.isin(ids_BT[ends, where.stop - 2], task.label_tokens)]
            for i in ends.tolist():
                if not np.array_equal(self.host[int(host_rows[i])]["input_ids"].numpy(), ids_BT[i]):
                    raise StreamError(
                        f"step {step}, slot {i * self.world_size + self.rank}: tokens "
                        f"{ids_BT[i, where].tolist()}, which neither the plan nor the corpus "
                        "put there"
                    )

    def _check_sequences(
        self, step: int, ids_BT: NDArray, rows: StepRows, chosen: NDArray, host_rows: NDArray
    ) -> None:
        eos = self.plan.eos_token_id
        spans = spans_of(self.plan, step) if self.plan.at_documents else Spans()
        for i in chosen.tolist():
            slot, example, offset = int(rows.slots[i]), int(rows.examples[i]), int(rows.offsets[i])
            task, local = self.plan.tasks[rows.tasks[i]], slot // self.world_size
            if slot in spans:
                host = self.host[int(host_rows[local])]["input_ids"]
                offset += spans.start(slot, host, eos_token_id=eos)
            tokens = task.written(rows.examples[i : i + 1], eos_token_id=eos)[0]
            found = ids_BT[local, offset : offset + len(tokens)]
            if not np.array_equal(found, tokens):
                raise StreamError(
                    f"step {step}, slot {slot}: tokens {found.tolist()} from token {offset}, but "
                    f"the plan has example {example} of {task.name!r} there: {tokens.tolist()}"
                )
