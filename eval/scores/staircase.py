"""The study's staircase: how many frequencies each size has learned, and whether it rises.

    for counts in learned_per_rung(cells(read_records("runs/quickstart"))):
        print(counts.rungs, counts.num_learned, counts.rises)

What counts as learned is `eval.scores.cells`'; here it is only counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from eval.scores.cells import groups


@dataclass(frozen=True)
class LearnedCounts:
    """Learned cells per rung for one protocol and family, smallest rung first.

    Only rates that every rung has measured count, or a sweep half done would look like a finding.
    """

    protocol: str
    family: str
    rungs: tuple[str, ...]
    params: tuple[int, ...]
    num_learned: tuple[int, ...]
    rates: tuple[float, ...]
    """Rates compared (instances per step), most frequent first."""
    rates_left_out: tuple[float, ...]
    """Rates that at least one rung has not measured."""
    provisional: bool
    """Some compared cell has fewer than MIN_SEEDS seeds."""
    same_step: bool
    """All compared cells were read at one step."""

    @property
    def comparable(self) -> bool:
        return len(self.rungs) > 1 and bool(self.rates)

    @property
    def non_decreasing(self) -> bool | None:
        """Never fewer learned cells at a larger rung; None if there is nothing to compare."""
        if not self.comparable:
            return None
        return all(b >= a for a, b in zip(self.num_learned, self.num_learned[1:], strict=False))

    @property
    def strictly_larger(self) -> bool | None:
        """More learned cells at the largest rung than at the smallest."""
        return self.num_learned[-1] > self.num_learned[0] if self.comparable else None

    @property
    def rises(self) -> bool | None:
        """The study's staircase: never falls with size, and is higher at the end."""
        return (self.non_decreasing and self.strictly_larger) if self.comparable else None


def learned_per_rung(table: pd.DataFrame) -> list[LearnedCounts]:
    """Count the learned cells of each rung, for each protocol and family in a table of `cells`."""
    counts = []
    for protocol, family, group in groups(table):
        # A row a rung, the smallest first; a column a rate, the most frequent first.
        learned = group.pivot(index=["params", "rung"], columns="rate_per_step", values="learned")
        learned = learned.sort_index(axis=1, ascending=False)
        everywhere = learned.dropna(axis=1)
        shared = group[group.rate_per_step.isin(everywhere.columns)]
        params, rungs = zip(*learned.index, strict=True)
        counts.append(
            LearnedCounts(
                protocol=protocol,
                family=family,
                rungs=tuple(map(str, rungs)),
                params=tuple(map(int, params)),
                num_learned=tuple(int(num) for num in everywhere.sum(axis=1)),
                rates=tuple(everywhere),
                rates_left_out=tuple(learned.columns.difference(everywhere.columns)[::-1]),
                provisional=bool(shared.provisional.any()),
                same_step=len({*shared.step, *shared.step_max}) <= 1,
            )
        )
    return counts
