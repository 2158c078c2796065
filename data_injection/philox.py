"""Counter-based random numbers: the same (seed, purpose, counter) gives the same bits anywhere.

    permutation(100, seed=0, purpose="examples/cmp", counter=3)

Only Philox's raw 64-bit words are used: NumPy guarantees the bit generators' streams across
versions and platforms, but not those of `Generator.permutation` and friends (NEP 19).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def word_stream(*, seed: int, purpose: str, counter: int = 0) -> np.random.Philox:
    """The bit generator of the arguments; read it with `random_raw`, in pieces if there are many.

    Args:
        seed: the plan's seed, any non-negative integer.
        purpose: keeps unlike uses apart, e.g. "slots" or "examples/<task>".
        counter: step or epoch number; streams of different counters never overlap.
    """
    digest = hashlib.sha256(f"olmo-ext/1|{seed}|{purpose}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8")
    # The counter's low words count blocks of four words; the step sits above them.
    return np.random.Philox(key=key, counter=[0, 0, counter, 0])


def raw_words(num: int, *, seed: int, purpose: str, counter: int = 0) -> NDArray[np.uint64]:
    """The first `num` 64-bit words of a stream, a pure function of the arguments. Shape (num,)."""
    return word_stream(seed=seed, purpose=purpose, counter=counter).random_raw(num)


def permutation(num: int, *, seed: int, purpose: str, counter: int = 0) -> NDArray[np.int64]:
    """A uniform permutation of range(num), a pure function of the arguments. Shape (num,)."""
    words = raw_words(num, seed=seed, purpose=purpose, counter=counter)
    # Ties have probability num^2 / 2^65; the stable sort makes even those reproducible.
    return np.argsort(words, kind="stable")
