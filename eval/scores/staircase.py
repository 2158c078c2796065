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
        rungs = [(str(r), int(p)) for p, r in sorted({*zip(group.params, group.rung, strict=True)})]
        per_rung = [group[(group.rung == r) & (group.params == p)] for r, p in rungs]
        everywhere = set.intersection(*(set(cells_.rate_per_step) for cells_ in per_rung))
        shared = group[group.rate_per_step.isin(everywhere)]
        counts.append(
            LearnedCounts(
                protocol=protocol,
                family=family,
                rungs=tuple(r for r, _ in rungs),
                params=tuple(p for _, p in rungs),
                num_learned=tuple(
                    int(cells_.learned[cells_.rate_per_step.isin(everywhere)].sum())
                    for cells_ in per_rung
                ),
                rates=tuple(sorted(everywhere, reverse=True)),
                rates_left_out=tuple(sorted(set(group.rate_per_step) - everywhere, reverse=True)),
                provisional=bool(shared.provisional.any()),
                same_step=len({*shared.step, *shared.step_max}) <= 1,
            )
        )
    return counts
