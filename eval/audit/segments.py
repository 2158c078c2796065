"""Audit, second part: is the ledger whole? Every segment there, of this run, unharmed and sealed.

    check_segments(subject)

What is damaged is told, and the rest is read all the same. A torn end is no damage: the process
was killed there, or is writing at this moment.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from data_injection.ledger import Position, Segment
from eval.audit.subject import DIFFERS, NOT_CHECKED, Subject, Verdict, judge, listing
from eval.text import plural


def check_segments(subject: Subject) -> Verdict:
    """Every segment can be read, none is missing, all are of this run, and every place that a
    checkpoint or a later segment names is there and sealed."""
    segments = subject.segments
    if not segments:
        if any(checkpoint.in_ledger for checkpoint in subject.checkpoints):
            said = f"{subject.folder}/ledger has no segment, but checkpoints name places in it"
            return Verdict("segments", DIFFERS, said)
        said = "the run has no ledger: it is from before there was one, or took no step"
        return Verdict("segments", NOT_CHECKED, said)
    missing = sorted(set(range(max(segments) + 1)) - set(segments))
    named = [
        (checkpoint.path.name, checkpoint.step, checkpoint.position)
        for checkpoint in subject.checkpoints
    ]
    named += [
        (f"the parent of segment {number}", segment.start_step, segment.parent)
        for number, segment in segments.items()
        if segment.header
    ]
    needed = {position.segment for _, _, position in named if position is not None}
    problems = [c.place_problem for c in subject.checkpoints if c.place_problem is not None]
    problems += [f"segment {number} is missing" for number in missing]
    notes: list[str] = []
    for number, segment in segments.items():
        if not segment.header and number not in needed and not segment.path.stat().st_size:
            notes.append(f"segment {number} is empty: its process was killed as it began")
            continue
        wrong = [*segment.problems, *_foreign(subject, segment)]
        problems += [f"segment {number}: {problem}" for problem in wrong]
        if segment.torn:
            torn = f"a torn record of {segment.torn} bytes (a killed writer, or truncated)"
            notes.append(f"segment {number} ends in {torn}")
    for name, step, position in named:
        if position is not None:
            problems += [f"{name}: {said}" for said in _unsealed(segments, position, step=step)]
    told = dict.fromkeys(problems)  # a broken place is named by more than one
    readable = [segment for segment in segments.values() if segment.header]
    sizes = [int(segment.header.get("world_size", 0)) for segment in readable]
    agreed = (
        f"{plural(len(segments), 'segment')} whole, {plural(len(segments) - 1, 'restart')}, "
        f"world size {listing([str(size) for size in dict.fromkeys(sizes)])}"
    )
    numbers = {
        "restarts": len(segments) - 1,
        "segments": [
            {
                "segment": segment.number,
                "start_step": segment.header.get("start_step"),
                "world_size": segment.header.get("world_size"),
                "checkpoint": segment.header.get("checkpoint"),
                "rows": len(segment.rows),
                "unsealed_rows": segment.num_unsealed,
                "torn_bytes": segment.torn,
                "problems": list(segment.problems),
            }
            for segment in segments.values()
        ],
    }
    return judge("segments", list(told), agreed, notes=notes, numbers=numbers)


def _foreign(subject: Subject, segment: Segment) -> list[str]:
    """What in a segment is not of this run, or in no order that a run writes."""
    if not segment.header:
        return []
    problems = []
    ours, theirs = subject.identity.get("train", {}).get("run_name"), segment.header.get("run")
    if ours is not None and theirs != ours:
        problems.append(f"it is of the run {theirs!r}, this is {ours!r}")
    if segment.header.get("tasks") != subject.tasks:
        problems.append(f"its tasks are {segment.header.get('tasks')}, the run's {subject.tasks}")
    steps = segment.rows["step"]
    back = np.flatnonzero(steps[1:] < steps[:-1])
    if len(back):
        at = int(back[0])
        problems.append(f"step {steps[at + 1]} stands after step {steps[at]}")
    if len(steps) and int(steps[0]) < segment.start_step:
        problems.append(f"step {steps[0]}, but it started at step {segment.start_step}")
    return problems


def _unsealed(segments: Mapping[int, Segment], position: Position, *, step: int) -> list[str]:
    """Why a place in the ledger is not the end of what `step` steps have trained."""
    segment = segments.get(position.segment)
    if segment is None:
        return [f"segment {position.segment} is missing"]
    if not segment.header:
        return []  # said of the segment itself
    if position.records > segment.num_records:
        return [
            f"segment {position.segment} is truncated: it has {segment.num_records} records, "
            f"{position.records} were sealed at step {step}"
        ]
    if position.records > segment.num_records - segment.num_unsealed:
        return [
            f"segment {position.segment} has no seal at record {position.records - 1}, where step "
            f"{step} was sealed"
        ]
    early = segment.rows["step"] < step
    wrong = np.flatnonzero(early != (segment.record < position.records))
    if len(wrong):
        row = int(wrong[0])
        return [
            f"segment {position.segment}: record {segment.record[row]} is of step "
            f"{segment.rows['step'][row]}, but the end of step {step - 1} was sealed at record "
            f"{position.records - 1}"
        ]
    return []
