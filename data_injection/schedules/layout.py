"""Where in its rows a step's sequences stand: which row, and at which token.

    slots, offsets = lay_out([12, 7, 30], rows, seq_len=64, seed=0, step=17)

A pure function of the arguments. So many sequences as are asked for together make a block, one by
default. Every block has a row of its own while there are rows; where there are more blocks, each
goes, longest first, where most room is left.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from data_injection.config import InjectionConfig
from data_injection.errors import ConfigError
from data_injection.philox import raw_words
from data_injection.tasks.base import IntArray, Task

ANYWHERE, DOCUMENTS = PLACES = ("anywhere", "documents")
"""Values of injection.sequences_at."""


def check_layout(config: InjectionConfig, tasks: Sequence[Task]) -> None:
    """Raise ConfigError where the settings of sequences are none, or there are no sequences."""
    place, number, default = config.sequences_at, config.sequences_per_row, InjectionConfig()
    if place not in PLACES:
        key, rule = "injection.sequences_at", f"must be one of {', '.join(PLACES)}"
        raise ConfigError(key=key, value=place, rule=rule)
    if type(number) is not int or number < 1:
        key, rule = "injection.sequences_per_row", "must be a whole number, at least 1"
        raise ConfigError(key=key, value=number, rule=rule)
    for name in ("sequences_at", "sequences_per_row"):
        if getattr(config, name) != getattr(default, name) and all(t.has_label for t in tasks):
            key, rule = f"injection.{name}", "has no effect without a task of sequences"
            raise ConfigError(key=key, value=getattr(config, name), rule=rule, remedy="remove it")


def lay_out(
    lengths: Sequence[int], rows: IntArray, *, seq_len: int, seed: int, step: int, per_row: int = 1,
    close: bool = False,
) -> tuple[IntArray, IntArray]:  # fmt: skip
    """Slot and offset of each sequence.

    Args:
        lengths: tokens that each takes, its EOS included; none above seq_len.
        rows: slots that are free, in the order in which they are taken.
        per_row: sequences of a block, in their order; one's last EOS is the next one's first.
        close: leave no room, so that offsets count from wherever the row's first block begins.

    A row's only block stands anywhere with equal chance; before several is room by sorted draws.

    Raises:
        ConfigError: this way of placing them, longest first, ran out of room; says after how many.
    """
    blocks = _blocks(lengths, per_row, seq_len)
    takes = [sum(lengths[one] - 1 for one in block) + 1 for block in blocks]
    num, done = len(blocks), 0
    words = raw_words(2 * num, seed=seed, purpose="offsets", counter=step)
    heap = [(0, index) for index in range(len(rows))]  # (tokens taken, row)
    members: dict[int, list[int]] = defaultdict(list)
    for one in np.argsort(-np.asarray(takes), kind="stable").tolist():
        if not heap or heap[0][0] + takes[one] > seq_len:
            rule = f"must fit a batch, but ask for {len(lengths)} sequences at step {step} in "
            rule += f"{len(rows)} rows of {seq_len} tokens"
            remedy = f"the most that fit there are {done}: lower the copies, or spread them over "
            remedy += "more steps"
            raise ConfigError(key="injection.tasks", rule=rule, remedy=remedy)
        used, row = heap[0]
        heapq.heapreplace(heap, (used + takes[one], row))
        members[row].append(one)
        done += len(blocks[one])
    slots, offsets = np.zeros((2, len(lengths)), dtype=np.int64)
    for row, inside in members.items():
        room = 0 if close else seq_len - sum(takes[one] for one in inside)
        gaps = np.sort(words[num + np.array(inside)] % np.uint64(room + 1)).tolist()
        taken = 0
        # In an order of its own: longest first would put the long ones in front.
        for gap, one in zip(gaps, sorted(inside, key=words.__getitem__), strict=True):
            first = gap + taken
            for member in blocks[one]:
                slots[member], offsets[member] = rows[row], first
                first += lengths[member] - 1
            taken += takes[one] - close  # one EOS serves both
    return slots, offsets


def _blocks(lengths: Sequence[int], per_row: int, seq_len: int) -> list[list[int]]:
    """Sequences by number, so many together as are asked for and as fit a row."""
    blocks: list[list[int]] = []
    taken = 0
    for one, length in enumerate(lengths):
        if not blocks or len(blocks[-1]) == per_row or taken + length - 1 > seq_len:
            blocks.append([])
            taken = 1
        blocks[-1].append(one)
        taken += length - 1
    return blocks
