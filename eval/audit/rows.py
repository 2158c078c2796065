"""Audit, third part: is what was trained what was planned? The ledger against the plan.

    rows, exposures = check_rows(subject, ledger, plan)

Rows are compared as a multiset step by step, in blocks of steps, so that memory is bounded by the
segments themselves: the order within a step says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data_injection.errors import ConfigError
from data_injection.ledger import ROW, Segment
from data_injection.lineage import Stretch, is_effective
from data_injection.plan import InjectionPlan
from eval.audit.exposures import check_exposures
from eval.audit.ledger import EFFECTIVE, STATES, RunLedger
from eval.audit.subject import NOT_CHECKED, Progress, Subject, Verdict, judge, no_progress
from eval.text import plural

BLOCK_STEPS = 256
"""Steps compared at a time."""

FAR = 16
"""A row this many times beyond the last checkpoint is damage: no plan is asked for its step (a
random schedule would be drawn up to there)."""

Decode = Callable[[list[int]], str | None]
"""Text of token ids, None without a tokenizer."""


@dataclass
class _Count:
    """What was counted while rows were compared."""

    planned: int = 0
    found: int = 0
    lacking: int = 0
    """Rows of the plan that the ledger has not."""

    surplus: int = 0
    """Rows of the ledger that the plan has not, or has once less."""

    first: str | None = None


def check_rows(
    subject: Subject,
    ledger: RunLedger | None,
    plan: InjectionPlan | None,
    *,
    decode: Decode = lambda ids: None,
    progress: Progress = no_progress,
) -> tuple[Verdict, Verdict]:
    """The effective rows against the plan for all steps of the weights, and the exposures."""
    why_not = _nothing_to_compare(subject, ledger, plan)
    if why_not is not None:
        return Verdict("ledger", NOT_CHECKED, why_not), Verdict("exposures", NOT_CHECKED, why_not)
    assert ledger is not None
    assert plan is not None
    # Only a run that began before there was a ledger may lack its first steps: its digest, too.
    audited = subject.audited
    known = audited is None or audited.digest is not None or audited.digest_problem is not None
    start = 0 if known else ledger.line.first_step
    edges = [*range(start, subject.step, BLOCK_STEPS), subject.step]
    parts = [
        _blocks(ledger.segments[stretch.segment], stretch, edges)
        for stretch in ledger.line.stretches
    ]
    total = _Count()
    exposures = [np.zeros(len(task.tokens), dtype=np.int64) for task in plan.tasks]
    for block, (first, end) in enumerate(pairwise(edges)):
        progress("ledger", first - start, subject.step - start)
        found = np.concatenate([np.zeros(0, dtype=ROW), *(part(block) for part in parts)])
        _compare(total, found, planned_rows(plan, range(first, end)), plan, decode)
        for index, seen in enumerate(exposures):
            examples = found["example"][found["task"] == index]
            seen += np.bincount(examples[examples < len(seen)], minlength=len(seen))
    states, strays = _other_rows(subject, ledger, plan, decode)
    notes = [*_account(ledger), *_before(start, subject.origin)]
    problems = []
    if total.first is not None:
        problems.append(total.first)
        problems.append(
            f"in all {plural(total.lacking, 'row')} of the plan not in the ledger, "
            f"{plural(total.surplus, 'row')} of the ledger not in the plan"
        )
        # Without a segment nothing tells where the steps before it were taken.
        problems += [f"the lineage is broken: {problem}" for problem in ledger.line.problems]
    problems += strays
    steps = plural(subject.step - start, "step")
    agreed = f"{plural(total.found, 'row')} in {steps} are the plan's, each once"
    numbers = {"planned": total.planned, "rows": states, "first_step": start}
    rows = judge("ledger", problems, agreed, notes=notes, numbers=numbers)
    if subject.audited is None and not problems:
        rows = replace(rows, status=NOT_CHECKED, said="there is no checkpoint yet")
    return rows, check_exposures(plan, exposures, start=start, step=subject.step)


def _nothing_to_compare(
    subject: Subject, ledger: RunLedger | None, plan: InjectionPlan | None
) -> str | None:
    if subject.audited is not None and subject.audited.place_problem is not None:
        return (
            f"{subject.audited.path.name} does not say where in the ledger it stands (see segments)"
        )
    if ledger is None:
        return "there is no ledger"
    if subject.audited is not None and subject.audited.position is None:
        return f"{subject.audited.path.name} is from before the run kept a ledger"
    if plan is None:
        return "the plan that the weights were trained on cannot be recompiled (see plan)"
    return None


def planned_rows(plan: InjectionPlan, steps: range | list[int]) -> NDArray[np.void]:
    """The plan's rows of some steps as the ledger has them (dtype ROW)."""
    parts = []
    for step in steps:
        try:
            rows = plan.at(step)
        except ConfigError:  # more instances than rows: such a step is never taken
            continue
        part = np.empty(len(rows), dtype=ROW)
        part["step"], part["slot"] = step, rows.slots
        part["task"], part["example"] = rows.tasks, rows.examples
        parts.append(part)
    return np.concatenate([np.zeros(0, dtype=ROW), *parts])


def _blocks(
    segment: Segment, stretch: Stretch, edges: list[int]
) -> Callable[[int], NDArray[np.void]]:
    """A function from i to the rows of a stretch in steps edges[i] .. edges[i+1]-1."""
    inside = is_effective(segment, (stretch,))
    num = int(inside.sum())
    first = int(inside.argmax()) if num else 0
    # A view where they stand together, as they do unless the segment is damaged.
    together = bool(inside[first : first + num].all())
    rows = segment.rows[first : first + num] if together else segment.rows[inside]
    steps = np.ascontiguousarray(rows["step"])
    if (steps[1:] < steps[:-1]).any():
        order = np.argsort(steps, kind="stable")
        rows, steps = rows[order], steps[order]
    bounds = np.searchsorted(steps, np.array(edges, dtype=np.uint32)).tolist()
    return lambda block: rows[bounds[block] : bounds[block + 1]]


def _compare(
    total: _Count,
    found: NDArray[np.void],
    planned: NDArray[np.void],
    plan: InjectionPlan,
    decode: Decode,
    *,
    all_planned: bool = True,
) -> None:
    """Add the differences of two multisets of rows; without `all_planned` rows may be lacking."""
    total.found += len(found)
    total.planned += len(planned)
    if found.tobytes() == planned.tobytes():  # written in the plan's order: no need to sort
        return
    ours, theirs = _sorted(found), _sorted(planned)
    if len(ours) == len(theirs) and np.array_equal(ours, theirs):
        return
    keys, inverse = np.unique(np.concatenate([ours, theirs]), return_inverse=True)
    surplus = np.bincount(inverse[: len(ours)], minlength=len(keys))
    surplus -= np.bincount(inverse[len(ours) :], minlength=len(keys))
    wrong = np.flatnonzero(surplus != 0 if all_planned else surplus > 0)
    if not len(wrong):
        return
    total.lacking += int(-surplus[surplus < 0].sum()) if all_planned else 0
    total.surplus += int(surplus[surplus > 0].sum())
    if total.first is None:
        place = keys["place"][wrong[0]]
        total.first = _difference(
            int(place),
            ours["value"][ours["place"] == place].tolist(),
            theirs["value"][theirs["place"] == place].tolist(),
            plan,
            decode,
        )


_KEY = np.dtype([("place", "<u8"), ("value", "<u8")])
"""(step, slot) and (task, example) of a row as numbers that sort alike."""


def _sorted(rows: NDArray[np.void]) -> NDArray[np.void]:
    keys = np.empty(len(rows), dtype=_KEY)
    keys["place"] = rows["step"].astype(np.uint64) << np.uint64(32) | rows["slot"]
    keys["value"] = rows["task"].astype(np.uint64) << np.uint64(32) | rows["example"]
    return keys[np.lexsort((keys["value"], keys["place"]))]


def _difference(
    place: int, found: list[int], planned: list[int], plan: InjectionPlan, decode: Decode
) -> str:
    """The first difference in words, with both sides."""

    def name(values: list[int]) -> str:
        said = [_example(plan, *divmod(value, 2**32), decode) for value in dict.fromkeys(values)]
        return " and ".join(said) if said else "nothing"

    step, slot = divmod(place, 2**32)
    where = f"step {step}, slot {slot}"
    if not found:
        return f"{where}: the plan has {name(planned)}, the ledger lacks it"
    if not planned:
        return f"{where}: the ledger has {name(found)}, the plan has nothing there"
    if set(found) == set(planned):
        times = {2: "twice"}.get(len(found), f"{len(found)} times")
        return f"{where}: the ledger has {name(found)} {times}, the plan once"
    return f"{where}: the plan has {name(planned)}, the ledger {name(found)}"


def _example(plan: InjectionPlan, task: int, example: int, decode: Decode) -> str:
    if task >= len(plan.tasks):
        return f"example {example} of task number {task}, which there is not"
    table = plan.tasks[task]
    if example >= len(table.tokens):
        return f"example {example} of {table.name!r}, which has {len(table.tokens)}"
    ids = table.tokens[example].tolist()
    text = decode(ids)
    shown = f"{ids}" if text is None else f"{ids} {text!r}"
    return f"example {example} of {table.name!r} {shown}"


def _other_rows(
    subject: Subject, ledger: RunLedger, plan: InjectionPlan, decode: Decode
) -> tuple[dict[str, int], list[str]]:
    """Number of rows by state, and what among those without effect no process of the run wrote."""
    numbers = np.zeros(len(STATES), dtype=np.int64)
    problems = []
    end = FAR * max([subject.step, *(c.step for c in subject.checkpoints)]) + 2**16
    for number, segment in ledger.segments.items():
        states = ledger.states(segment)
        numbers += np.bincount(states, minlength=len(STATES))
        rows = segment.rows[states != EFFECTIVE]
        total = _Count()
        for block in _step_blocks(rows):
            steps = [step for step in np.unique(block["step"]).tolist() if step < end]
            _compare(total, block, planned_rows(plan, steps), plan, decode, all_planned=False)
        if total.first is not None:
            problems.append(f"segment {number}, among rows without effect: {total.first}")
    return dict(zip(STATES, numbers.tolist(), strict=True)), problems


def _step_blocks(rows: NDArray[np.void]) -> Iterator[NDArray[np.void]]:
    rows = rows[np.argsort(rows["step"], kind="stable")]
    steps = np.unique(rows["step"])
    for first in range(0, len(steps), BLOCK_STEPS):
        last = int(steps[first : first + BLOCK_STEPS][-1])
        low, high = np.searchsorted(rows["step"], [steps[first], last + 1])
        yield rows[low:high]


def _account(ledger: RunLedger) -> list[str]:
    """What became of the rows without effect, segment by segment."""
    notes = []
    for number, segment in ledger.segments.items():
        states = ledger.states(segment)
        for index, name in enumerate(STATES):
            steps = segment.rows["step"][states == index]
            if index == EFFECTIVE or not len(steps):
                continue
            said = (
                f"{plural(len(steps), 'row')} of steps {steps.min()} to {steps.max()} in segment "
                f"{number} {'is' if len(steps) == 1 else 'are'} {name}: "
            )
            notes.append(said + _reason(ledger, number, name))
    return notes


def _reason(ledger: RunLedger, number: int, state: str) -> str:
    if state == "pending":
        return "trained after this checkpoint, in none that precedes it"
    line = ledger.head if ledger.head is not None else ledger.line
    later = [stretch for stretch in line.stretches if stretch.segment > number]
    if not later:
        return "the run was not continued from there"
    return f"segment {later[0].segment} went on from step {later[0].first_step}"


def _before(start: int, origin: int | None) -> list[str]:
    if not start:
        return []
    when = "in another's run" if origin == start else "before the run kept a ledger"
    return [f"steps 0 to {start - 1} were trained {when}: not checked"]
