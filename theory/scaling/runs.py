"""The runs that a scaling law is fitted to, refused where they cannot identify one.

runs = Runs.of(params, tokens, loss)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from theory.same import WITHIN, clusters
from theory.scaling.law import FLOPS, Array

NUM_CONSTANTS = 5
LEAST_SIZES = 3
"""Different N: L0 + A/N^alpha at two of them fits any L0. The same for D."""

RAY = 0.05
"""Spread of log D that log N does not explain, below which the runs lie on a line: at 5% either way
A/N^alpha and B/D^beta are the same curve within the noise of any training."""

TWICE = (1e-5, 1e-5, 1e-6)
"""Relative differences in params, tokens and loss up to which two rows are one, printed twice. Two
seeds of one size differ in loss by a thousand times that."""

WRITTEN = (
    (r"\d{1,3}([,.' ]\d{3}){2,}|\d{1,3},\d{3}", "thousands signs? write 1491037488"),
    (r"\d+,\d+", "a decimal comma? write 2.71"),
    (r"[\d.]+\s*[KMBGT]", "a suffix? write 4e9 for 4B"),
)
"""Numbers as people write them, which are none to us: patterns, and what to do."""


@dataclass(frozen=True)
class Runs:
    """Rows of (N, D, loss), in an order that does not depend on the file's."""

    params: Array
    tokens: Array
    loss: Array
    """Nats per token."""

    group: NDArray[np.int64]
    """Number of the run that a row is of; each row its own unless runs are named."""

    row: NDArray[np.int64]
    """Number of the row in the table that was given, from 1."""

    @classmethod
    def of(
        cls,
        params: ArrayLike,
        tokens: ArrayLike,
        loss: ArrayLike,
        *,
        run: Sequence[object] | None = None,
    ) -> Runs:
        """Check and sort the rows.

        run: names of the runs; rows of one name are resampled together. Default: each row is a run.

        Raises ValueError naming the column, the rows (numbered from 1) and the remedy: not numbers,
        not positive, not finite; a row twice; fewer runs than the law has constants; fewer than
        three sizes or data sizes (those within WITHIN are one); D a power of N in all runs.
        """
        columns = {
            name: positive(name, values)
            for name, values in (("params", params), ("tokens", tokens), ("loss", loss))
        }
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) != 1 or (run is not None and len(run) != lengths["loss"]):
            raise ValueError(f"params, tokens, loss and run must be of one length, got {lengths}")
        table = np.stack(list(columns.values()), axis=1)
        names = [str(one) for one in run] if run is not None else None
        order = sorted(
            range(len(table)), key=lambda row: (*table[row], names[row] if names else "")
        )
        _check_twice(table)
        table = table[order]
        group = np.arange(len(table))
        if names is not None:
            numbers: dict[str, int] = {}
            group = np.array([numbers.setdefault(names[row], len(numbers)) for row in order])
        rows = 1 + np.array(order, dtype=np.int64)
        runs = cls(table[:, 0], table[:, 1], table[:, 2], group, rows)
        _check_identified(runs)
        return runs

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def num_runs(self) -> int:
        return int(self.group.max()) + 1

    @property
    def compute(self) -> Array:
        """FLOPs of each row, 6 N D."""
        return FLOPS * self.params * self.tokens


def positive(name: str, values: ArrayLike) -> Array:
    """A column as floats. Raises ValueError unless all are numbers, positive and finite."""
    given = np.asarray(values).ravel()
    try:
        column = given.astype(float)
    except (TypeError, ValueError):
        wrong = [row for row, value in enumerate(given, start=1) if not _is_number(value)]
        value = given[wrong[0] - 1]
        hints = [hint for form, hint in WRITTEN if re.fullmatch(form, str(value).strip(), re.I)]
        raise ValueError(
            f"column {name} must be numbers, but {_rows(wrong)} is {value!r}"
            f"{f' ({hints[0]})' if hints else ''}; mend or drop such rows"
        ) from None
    for bad, what in ((~np.isfinite(column), "is missing or not finite"), (column <= 0, "is")):
        if bad.any():
            rows = (np.flatnonzero(bad) + 1).tolist()
            value = "" if "missing" in what else f" {column[rows[0] - 1]:g}"
            raise ValueError(
                f"column {name} must be positive in every row, but {_rows(rows)} {what}{value}; "
                "mend or drop such rows"
                + (" (a loss is a cross-entropy, in nats per token)" if name == "loss" else "")
            )
    return column


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True


def _rows(rows: list[int]) -> str:
    some = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    return f"in {len(rows)} row{'s' * (len(rows) > 1)} ({some}) it"


def _check_twice(table: Array) -> None:
    from scipy.spatial import KDTree

    if not len(table):
        return
    # In units of the tolerance: two rows are one if no column differs by more than 1.
    near = KDTree(np.log(table) / TWICE).query_pairs(1.0, p=np.inf, output_type="ndarray")
    if len(near):
        twice = sorted((int(a) + 1, int(b) + 1) for a, b in near)
        some = ", ".join(f"{a} and {b}" for a, b in twice[:3])
        raise ValueError(
            f"{len({b for _, b in twice})} rows stand twice, with the same params, tokens and loss "
            f"({some}): counted twice they would make the intervals too narrow; drop them (two "
            "seeds of one size are two runs, and their losses differ)"
        )


def _check_identified(runs: Runs) -> None:
    num = runs.num_runs if len(runs) else 0
    if num <= NUM_CONSTANTS:
        raise ValueError(
            f"{num} runs cannot fit the {NUM_CONSTANTS} constants of L0 + A/N^alpha + B/D^beta and "
            f"say how sure they are; give at least {NUM_CONSTANTS + 1}, better a hundred"
        )
    for column, values, terms, remedy in (
        ("params", runs.params, "A, alpha and L0", "train other sizes"),
        ("tokens", runs.tokens, "B, beta and L0", "train for other lengths (train.max_duration)"),
    ):
        sizes = np.unique(values)
        num = int(clusters(values).max()) + 1
        if num < LEAST_SIZES:
            shown = ", ".join(f"{size:.7g}" for size in sizes[:5]) + ", ..." * (len(sizes) > 5)
            as_one = f" ({num}: those within {WITHIN:.0%} count as one)" if num < len(sizes) else ""
            raise ValueError(
                f"column {column} has only the value{'s' * (len(sizes) > 1)} {shown}{as_one} in "
                f"all runs, so that {terms} are not identified; {remedy}, {LEAST_SIZES} at least"
            )
    x, y = np.log(runs.params), np.log(runs.tokens)
    slope = float(np.cov(x, y)[0, 1] / x.var(ddof=1))
    if (y - y.mean() - slope * (x - x.mean())).std() < RAY:
        ratio = np.exp((y - x).mean())
        what = (
            f"tokens = {ratio:.3g} params"
            if abs(slope - 1) < 0.02
            else f"tokens ~ params^{slope:.2f}"
        )
        raise ValueError(
            f"all runs lie on one ray, {what}: A/N^alpha and B/D^beta cannot be told apart; train "
            "some sizes for longer or shorter than others"
        )
