"""Group composition: TOK1 .. TOKk [distractors] LABEL, where LABEL names the product in a group.

The complexity axis beyond the study. Every symbol stands for an element of a group G, a hidden and
random assignment in which each element has as many symbols as any other (to within one); the label
token names the product of the first `operands` elements; the `distractors` after them say nothing.

    params: {group: C2, operands: 1, distractors: 1}    # which of two classes is TOK1 in?
    params: {group: C2, operands: 2}                    # parity of two hidden bits
    params: {group: C2, operands: 2, distractors: 1}    # sparse parity, two bits of three
    params: {group: C10, operands: 2}                   # addition modulo 10
    params: {group: S3, operands: 2}                    # the smallest group that does not commute

Two grades, apart from each other:

- |G|, how much must be *stored*: log2 |G| bits a symbol (`Task.bits`).
- operands, how much must be *combined*: with one operand the label follows from one token and a
  lookup will do; with two or more every single token by itself says nothing of the label, since
  the other operand shifts it to every label alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import permutations
from math import factorial, log2
from typing import Any

import numpy as np

from data_injection.errors import ConfigError
from data_injection.tasks.base import FloatArray, IntArray, Task

MAX_EXAMPLES = 1_000_000
MAX_ORDER = 120


class GroupComposition(Task):
    """Product of `operands` hidden group elements; the label is one of |G| tokens of its own."""

    family = "group_composition"

    @classmethod
    def param_names(cls) -> tuple[str, ...]:
        return ("group", "operands", "distractors")

    @classmethod
    def count_labels(cls, params: Mapping[str, Any]) -> int:
        return len(cayley_table(params.get("group", "C2")))

    @classmethod
    def least_symbols(cls, params: Mapping[str, Any]) -> int:
        """Each element needs a symbol."""
        return cls.count_labels(params)

    @property
    def operands(self) -> int:
        return int(self.params.get("operands", 2))

    @property
    def distractors(self) -> int:
        return int(self.params.get("distractors", 0))

    def check(self) -> None:
        super().check()
        key = f"injection.tasks[{self.name}]"
        for name, least in (("operands", 1), ("distractors", 0)):
            value = self.params.get(name, least)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                rule = f"must be a whole number of at least {least}"
                raise ConfigError(key=f"{key}.params.{name}", value=value, rule=rule)
        num = len(self.symbols) ** (self.operands + self.distractors)
        if num > MAX_EXAMPLES:
            fits = int(MAX_EXAMPLES ** (1 / (self.operands + self.distractors)) + 1e-9)
            places = self.operands + self.distractors
            rule = f"makes {num:,} examples in {places} places, more than {MAX_EXAMPLES:,}"
            remedy, value = f"set num_symbols to {fits} or less", len(self.symbols)
            raise ConfigError(key=f"{key}.num_symbols", value=value, rule=rule, remedy=remedy)

    def elements(self) -> IntArray:
        """Hidden group element of each symbol, shape (num_symbols,)."""
        return np.arange(len(self.symbols), dtype=np.int64) % len(self.labels)

    def targets(self) -> dict[str, FloatArray]:
        """element: which group element a symbol stands for, one-hot, (n, |G|)."""
        return {"element": np.eye(len(self.labels))[self.elements()]}

    def examples(self) -> IntArray:
        places = self.operands + self.distractors
        shape = (len(self.symbols),) * places
        index = np.stack(np.unravel_index(np.arange(len(self.symbols) ** places), shape), axis=1)
        table, element = cayley_table(self.params.get("group", "C2")), self.elements()
        product = element[index[:, 0]]
        for operand in range(1, self.operands):
            product = table[product, element[index[:, operand]]]
        return np.concatenate(
            [self.symbols[index], self.labels[product][:, None]], axis=1, dtype=np.int64
        )

    def mirrors(self) -> IntArray:
        """Two operands of a commuting group may be swapped. With more, nearly every example has a
        reordering in train, so that no half without one is left to look at: -1."""
        table, num = cayley_table(self.params.get("group", "C2")), len(self.symbols)
        if self.operands != 2 or self.distractors or not np.array_equal(table, table.T):
            return super().mirrors()
        i, j = np.divmod(np.arange(num * num, dtype=np.int64), num)
        return j * num + i

    @property
    def bits(self) -> float:
        """log2 of the number of balanced assignments of symbols to elements: n! / prod(n_g!)."""
        sizes = np.bincount(self.elements(), minlength=len(self.labels))
        ways = factorial(len(self.symbols))
        for size in sizes:
            ways //= factorial(int(size))
        return log2(ways)


def cayley_table(group: Any) -> IntArray:
    """Multiplication table of C<n>, D<n>, S<n> or A<n>; table[a, b] = a b, shape (|G|, |G|).

    C<n> is cyclic (addition modulo n), D<n> the 2n symmetries of an n-gon, S<n> and A<n> all and
    the even permutations of n things. Element 0 is the identity.

    Raises:
        ConfigError: not such a group, or of more than 120 elements.
    """
    match = re.fullmatch(r"([CDSA])(\d{1,3})", str(group))
    kind, n = (match[1], int(match[2])) if match else ("", 0)
    order = {"C": n, "D": 2 * n, "S": _factorial(n), "A": _factorial(n) // 2}.get(kind, 0)
    least = {"C": 2, "D": 3, "S": 3, "A": 3}.get(kind, 0)
    if not kind or n < least or order > MAX_ORDER:
        rule = f"must be C2 to C{MAX_ORDER} (cyclic), D3 to D{MAX_ORDER // 2} (dihedral), S3 to S5 "
        raise ConfigError(key="params.group", value=group, rule=f"{rule}or A3 to A5")
    if kind == "C":
        return np.add.outer(np.arange(n), np.arange(n)) % n
    if kind == "D":
        elements = [tuple((s * i + r) % n for i in range(n)) for s in (1, -1) for r in range(n)]
    else:
        elements = [p for p in permutations(range(n)) if kind == "S" or _is_even(p)]
    index = {p: i for i, p in enumerate(elements)}
    return np.array([[index[tuple(a[i] for i in b)] for b in elements] for a in elements])


def _factorial(n: int) -> int:
    return factorial(n) if n <= 10 else MAX_ORDER + 1


def _is_even(p: tuple[int, ...]) -> bool:
    return sum(a > b for i, a in enumerate(p) for b in p[i + 1 :]) % 2 == 0
