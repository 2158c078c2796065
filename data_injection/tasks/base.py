"""What a task is: a finite list of examples over its own tokens, split once into train and test.

A family is a subclass, found by its import path (`family: mypkg.tasks:Parity`), as an entry point
of its package, or, if it is ours, by a line in `TASKS` (data_injection/tasks/build.py):

    class Parity(Task):
        num_labels = 2
        def examples(self): ...   # (n, length) token ids, the label last

`length` is the number of tokens of one example, the label's included.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data_injection.errors import ConfigError
from data_injection.extensions import import_path
from data_injection.philox import permutation

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

SHUFFLE = "shuffle_labels"
"""The parameter that every family has."""


class Task(ABC):
    """A named, finite task: every example is `length` tokens, the last of which is the label.

    Args:
        name: unique in the run.
        symbols: token ids of the operands, shape (num_symbols,); their order carries the task's
            structure (rank in comparison, residue in modular addition) and is itself random.
        labels: token ids of the family's own labels, shape (num_labels,); empty if the labels are
            symbols.
        seed: of the train/test split.
        train_fraction: share of the examples in the train split; exact, rounded down.
        params: the family's parameters, and of any family `shuffle_labels: true`: the same examples
            with the labels dealt out anew, the control that has tokens, frequencies and labels of
            the task and nothing to learn but the train examples by heart.

    Raises:
        ConfigError: a value the family cannot use.
    """

    family: str
    """The name by which an experiment asks for it; of a class that states none, its import path."""

    num_labels: ClassVar[int] = 0
    """Label tokens the family needs besides its symbols."""

    min_symbols: ClassVar[int] = 2
    """Fewest symbols that make a task of it."""

    has_label: ClassVar[bool] = True
    """Whether an example ends in a label that can be asked for; a sequence of text has none."""

    def __init_subclass__(cls) -> None:
        # Not inherited: a stranger's variant of a family of ours must not go under its name.
        cls.family = cls.__dict__.get("family", import_path(cls))

    def __init__(
        self, name: str, *, symbols: IntArray, labels: IntArray, seed: int,
        train_fraction: float = 0.5, params: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.symbols = np.asarray(symbols, dtype=np.int64)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.params = dict(params or {})
        self.check()
        self.tokens = self.examples()
        """Token ids of all examples, label last, shape (n, length)."""
        if not is_whole(rows := self.tokens, ndim=2) or rows.shape[1] < 2:
            key = f"injection.tasks[{name}]: {self.family}.examples"
            rule = "must give a 2-D array of integers: a row an example, tokens and then the label"
            value = f"{type(rows).__name__} {getattr(rows, 'dtype', '')}".strip()
            raise ConfigError(key=key, value=value, rule=rule)
        self.mirror = self.mirrors()
        """Index of each example's mirror image, or -1; shape (n,)."""
        if self.shuffled:
            dealt = permutation(len(self.tokens), seed=seed, purpose=f"labels/{name}")
            # Copies: what a family returned may be its own. What a pair says follows from nothing.
            self.tokens = np.array(self.tokens)
            self.tokens[:, -1] = self.tokens[dealt, -1]
            self.mirror = np.full(len(self.tokens), -1, dtype=np.int64)
        # The decimal as written: int(100 * 0.57) is 56.
        exact = Fraction(str(train_fraction)) if 0 < train_fraction < 1 else 0
        num_train = int(exact * len(self.tokens))
        if not 0 < num_train < len(self.tokens):
            key, remedy = f"injection.tasks[{name}].train_fraction", "the study uses 0.5"
            rule = f"must leave some of {len(self.tokens)} examples on both sides"
            raise ConfigError(key=key, value=train_fraction, rule=rule, remedy=remedy)
        order = permutation(len(self.tokens), seed=seed, purpose=f"split/{name}")
        self.train = np.sort(order[:num_train])
        """Indices of the train examples, ascending."""
        self.test = np.sort(order[num_train:])
        """Indices of the test examples, ascending."""

    # -- what a family defines -------------------------------------------------------------------

    @abstractmethod
    def examples(self) -> IntArray:
        """Token ids of every example, shape (n, length), the label in the last column."""

    def mirrors(self) -> IntArray:
        """For each example the index of the one that says the same by symmetry, or -1.

        A test example whose mirror is in the train split can be answered by that symmetry alone, so
        accuracies are reported for both kinds. The default is: no symmetry.
        """
        return np.full(len(self.tokens), -1, dtype=np.int64)

    def targets(self) -> dict[str, FloatArray]:
        """What a linear probe may look for in a symbol's representation, by name.

        Each is an array with a row per symbol, in the order of `symbols`, and a column per unit,
        shape (num_symbols, units), or (num_symbols, units, columns) where one unit has several
        columns that count only together (the cosine and sine of a frequency). The default is: the
        family declares none, so it cannot be probed. See `eval.features.probes`.
        """
        return {}

    def check(self) -> None:
        """Raise ConfigError where symbols, labels or parameters do not fit the family."""
        key, known = f"injection.tasks[{self.name}]", sorted({*self.param_names(), SHUFFLE})
        if unknown := sorted(set(self.params) - set(known)):
            rule = f"must be of those that {self.family} has, {known}"
            raise ConfigError(key=f"{key}.params", value=unknown, rule=rule)
        if not isinstance(self.params.get(SHUFFLE, False), bool):
            rule = "must be true or false"
            raise ConfigError(key=f"{key}.params.{SHUFFLE}", value=self.params[SHUFFLE], rule=rule)
        least, num_labels = self.least_symbols(self.params), self.count_labels(self.params)
        if (num := len(self.symbols)) < least:
            rule = f"must be at least {least} for {self.family}"
            raise ConfigError(key=f"{key}.num_symbols", value=num, rule=rule)
        if (num := len(self.labels)) != num_labels:
            rule = f"must hold {num_labels} token ids for {self.family}"
            raise ConfigError(key=f"{key}.labels", value=num, rule=rule)
        own, counts = np.unique(np.concatenate([self.symbols, self.labels]), return_counts=True)
        if repeated := own[counts > 1].tolist():
            rule = "must have distinct tokens as symbols and labels"
            raise ConfigError(key=key, value=repeated, rule=rule, remedy="remove the repeated ids")

    @classmethod
    def param_names(cls) -> tuple[str, ...]:
        """Names of the parameters the family understands."""
        return ()

    @classmethod
    def count_labels(cls, params: Mapping[str, Any]) -> int:
        """Label tokens the family needs with these parameters; ConfigError if they are wrong."""
        return cls.num_labels

    @classmethod
    def least_symbols(cls, params: Mapping[str, Any]) -> int:
        """Fewest symbols the family can use with these parameters."""
        return cls.min_symbols

    @property
    def bits(self) -> float:
        """Information in the hidden structure, bits: log2 of the number of ways in which the family
        can assign meanings to the symbols. The task's grade of complexity as far as *storage* goes;
        not-a-number if the family does not state it."""
        return float("nan")

    # -- what every task offers ------------------------------------------------------------------

    @property
    def shuffled(self) -> bool:
        """Whether its labels were dealt out anew, so that no test example can be answered."""
        return bool(self.params.get(SHUFFLE))

    @property
    def length(self) -> int:
        """Tokens of one example, the label's included (the EOS that follows is not)."""
        return int(self.tokens.shape[1])

    @cached_property  # asked for at every step of a run
    def label_tokens(self) -> IntArray:
        """Token ids that can be labels, ascending."""
        return np.unique(self.tokens[:, -1])

    @property
    def pool(self) -> IntArray:
        """The examples of an epoch over the task: every train example once."""
        return self.train

    @property
    def tokens_per_instance(self) -> int | Fraction:
        """Tokens that an instance overwrites, on average over them, EOS included."""
        return self.length + 1

    def written(self, examples: IntArray, *, eos_token_id: int) -> Sequence[IntArray]:
        """What is written into a row for each of some examples: its tokens and an EOS."""
        tokens_NL = np.full((len(examples), self.length + 1), eos_token_id, dtype=np.int64)
        tokens_NL[:, :-1] = self.tokens[examples]
        return list(tokens_NL)

    def split(self, name: str) -> IntArray:
        """Example indices of "train", "test" or "all", ascending."""
        splits = {"train": self.train, "test": self.test, "all": np.arange(len(self.tokens))}
        if name not in splits:
            raise ValueError(f"split must be 'train', 'test' or 'all', got {name!r}")
        return splits[name]

    def mirror_in_train(self) -> NDArray[np.bool_]:
        """Whether each example's mirror image (another example) is in the train split; (n,)."""
        in_train = np.zeros(len(self.tokens), dtype=bool)
        in_train[self.train] = True
        has = (self.mirror >= 0) & (self.mirror != np.arange(len(self.tokens)))
        return has & in_train[np.where(has, self.mirror, 0)]

    def digest(self) -> str:
        """SHA-256 of the example table and the split: what the plan's hash stands on."""
        sha = hashlib.sha256()
        for array in (self.tokens, self.train):
            sha.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
            sha.update(b"|")
        return sha.hexdigest()


def is_whole(values: Any, *, ndim: int = 1) -> bool:
    """Whether it is an array of whole numbers with so many axes."""
    return isinstance(values, np.ndarray) and values.ndim == ndim and values.dtype.kind in "iu"


def all_pairs(num: int) -> tuple[IntArray, IntArray]:
    """Indices (i, j) of all num x num ordered pairs, row by row; two arrays of shape (num^2,)."""
    i, j = np.divmod(np.arange(num * num, dtype=np.int64), num)
    return i, j
