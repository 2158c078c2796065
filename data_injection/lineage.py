"""Which rows of a ledger made a checkpoint's weights: its lineage, the *effective* ledger.

    segments = read_segments(run / "ledger")
    path = lineage(segments, position, step=12)
    segments[0].rows[is_effective(segments[0], path.stretches)]

Walking back from where a checkpoint was sealed, parent by parent, gives the stretch of every
segment that led to its weights. The other rows are abandoned: steps that were redone after a kill.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_injection.ledger import Position, Segment


@dataclass(frozen=True)
class Stretch:
    """Steps first_step .. end_step-1 as one segment of the lineage took them."""

    segment: int
    first_step: int
    end_step: int


@dataclass(frozen=True)
class Lineage:
    """Where the weights of a checkpoint come from, oldest stretch first."""

    stretches: tuple[Stretch, ...]
    problems: tuple[str, ...] = ()

    @property
    def first_step(self) -> int:
        """Steps before it are not in the ledger; 0 unless the run began without one."""
        return self.stretches[0].first_step if self.stretches else 0


def lineage(segments: Mapping[int, Segment], position: Position | None, *, step: int) -> Lineage:
    """The lineage of the weights that were saved at a position after `step` steps.

    `position` None is that of a checkpoint before the first step, or from before the ledger.
    """
    stretches: list[Stretch] = []
    problems: list[str] = []
    while position is not None:
        segment = segments.get(position.segment)
        if segment is None:
            problems.append(f"segment {position.segment} is missing")
            break
        if not segment.header:
            problems.append(f"segment {position.segment} cannot be read")
            break
        if position.records > segment.num_records:
            problems.append(
                f"segment {position.segment} is truncated: it has {segment.num_records} records, "
                f"{position.records} were sealed at step {step}"
            )
        elif position.records - 1 in segment.record:
            problems.append(
                f"segment {position.segment} has no seal at record {position.records - 1}, where "
                f"step {step} was saved"
            )
        stretches.append(Stretch(position.segment, segment.start_step, step))
        if segment.parent is not None and segment.parent.segment >= segment.number:
            problems.append(f"segment {segment.number} names a later one as its parent")
            break
        step, position = segment.start_step, segment.parent
    return Lineage(tuple(reversed(stretches)), tuple(problems))


def is_effective(segment: Segment, stretches: tuple[Stretch, ...]) -> NDArray[np.bool_]:
    """Whether each row of a segment belongs to a lineage; shape (num_rows,)."""
    steps = segment.rows["step"]
    inside = np.zeros(len(steps), dtype=bool)
    for stretch in stretches:
        if stretch.segment == segment.number:
            inside |= (steps >= stretch.first_step) & (steps < stretch.end_step)
    return inside
