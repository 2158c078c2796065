"""Where in its rows a step's sequences stand: which row, and at which token.

    slots, offsets = lay_out([12, 7, 30], rows, seq_len=64, seed=0, step=17)

A pure function of the arguments. Every sequence has a row of its own while there are rows; where
there are more sequences, each goes, longest first, where most room is left.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from data_injection.errors import ConfigError
from data_injection.philox import raw_words
from data_injection.tasks.base import IntArray


def lay_out(
    lengths: Sequence[int], rows: IntArray, *, seq_len: int, seed: int, step: int
) -> tuple[IntArray, IntArray]:
    """Slot and offset of each sequence.

    Args:
        lengths: tokens that each takes, its EOS included; none above seq_len.
        rows: slots that are free, in the order in which they are taken.

    A row's only sequence stands anywhere with equal chance; before several is room by sorted draws.

    Raises:
        ConfigError: this way of placing them, longest first, ran out of room; says after how many.
    """
    num = len(lengths)
    words = raw_words(2 * num, seed=seed, purpose="offsets", counter=step)
    heap = [(0, index) for index in range(len(rows))]  # (tokens taken, row)
    members: dict[int, list[int]] = defaultdict(list)
    for placed, one in enumerate(np.argsort(-np.asarray(lengths), kind="stable").tolist()):
        if not heap or heap[0][0] + lengths[one] > seq_len:
            rule = f"must fit a batch, but ask for {num} sequences at step {step} in {len(rows)} "
            rule += f"rows of {seq_len} tokens"
            remedy = f"the most that fit there are {placed}: lower the copies, or spread them over "
            remedy += "more steps"
            raise ConfigError(key="injection.tasks", rule=rule, remedy=remedy)
        used, row = heap[0]
        heapq.heapreplace(heap, (used + lengths[one], row))
        members[row].append(one)
    slots, offsets = np.zeros(num, dtype=np.int64), np.zeros(num, dtype=np.int64)
    for row, inside in members.items():
        room = seq_len - sum(lengths[one] for one in inside)
        gaps = np.sort(words[num + np.array(inside)] % np.uint64(room + 1)).tolist()
        taken = 0
        # In an order of its own: longest first would put the long ones in front.
        for gap, one in zip(gaps, sorted(inside, key=words.__getitem__), strict=True):
            slots[one], offsets[one] = rows[row], gap + taken
            taken += lengths[one]
    return slots, offsets
