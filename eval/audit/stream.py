"""Audit, fifth part: is the text what was trained on? The tokens read again against the digests.

    check_stream(subject, host, plan, full=True)

Rows are read again by `eval.audit.host_rows`, which shares no code with the training. Every
checkpoint holds the digest of all tokens trained on until then (data_injection/digest.py); since
that is a sum, the difference between two checkpoints judges the steps between them alone. A sample
is of such intervals as a whole: nothing that is kept tells of a single token what it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_injection.digest import rows_digest
from data_injection.plan import InjectionPlan
from eval.audit.host_rows import HostRows, natural_examples, splice
from eval.audit.ledger import SavedCheckpoint
from eval.audit.subject import NOT_CHECKED, Progress, Subject, Verdict, judge, listing, no_progress
from eval.text import plural

SAMPLE_TOKENS = 2**28
"""Read again without --full, a second or so: a small run as a whole, or 64 steps of 2,048 rows of
2,048 tokens."""


@dataclass(frozen=True)
class _Interval:
    """The steps between two digests that were kept."""

    first: int
    checkpoint: SavedCheckpoint
    """That was saved after the last of them."""

    added: int
    """What these steps added to the digest, modulo 2^64."""

    @property
    def steps(self) -> range:
        return range(self.first, self.checkpoint.step)


@dataclass
class _Seen:
    """What was seen while steps were read again."""

    digest: int = 0
    natural: dict[str, int] = field(default_factory=dict)
    unplanned_rows: int = 0


def check_stream(
    subject: Subject,
    host: HostRows | None,
    plan: InjectionPlan | None,
    *,
    full: bool = False,
    sample: int | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Verdict:
    """The tokens read now are those trained on, as the digests tell: those of all steps with
    `full`, else of whole intervals between checkpoints that hold at most `sample` steps in all.

    What is left of `sample` goes to single steps, of which only ids and order can be checked.
    """
    if host is None or plan is None:
        why = "the corpus cannot be read (see corpus)" if host is None else "no plan (see plan)"
        return Verdict("stream", NOT_CHECKED, why)
    if not subject.step:
        return Verdict("stream", NOT_CHECKED, "no step is in any saved weights yet")
    budget = sample or max(SAMPLE_TOKENS // (host.batch_size * host.seq_len), 1)
    budget = subject.step if full else min(budget, subject.step)
    intervals = _intervals(subject)
    chosen, single = _draw(intervals, subject.step, budget, seed)
    seen, problems, done = _Seen(), list[str](), 0

    def read(steps: Sequence[int]) -> int:
        nonlocal done
        seen.digest = 0
        for step in steps:
            progress("stream", done, budget)
            problems.extend(_read_step(subject, host, plan, step, seen))
            done += 1
        return seen.digest

    for interval in chosen:
        if (found := read(interval.steps)) != interval.added:
            problems.append(_bounds(interval, found))
    read(single)
    compared = sum(len(interval.steps) for interval in chosen)
    numbers = {
        "steps_read": done,
        "steps_compared": compared,
        "unplanned_rows": seen.unplanned_rows,
        "natural_examples": seen.natural,
    }
    notes = ["host tokens beneath an example were not trained on: the digest cannot know them"]
    not_all = _why_not(subject, intervals, compared, budget)
    if not_all is not None and not problems:
        said = f"{not_all}; ids and order of {plural(done, 'step')} agree"
        return Verdict("stream", NOT_CHECKED, said, notes=tuple(notes), numbers=numbers)
    if not_all is None and compared < subject.step:
        others = plural(subject.step - compared, "other step")
        notes.insert(0, f"a token changed in the {others} is not found: --full can")
    agreed = f"{_extent(subject, chosen, done, compared)}; {_natural(seen)}"
    return judge("stream", problems, agreed, notes=notes, numbers=numbers)


def _intervals(subject: Subject) -> list[_Interval]:
    """The steps before the audited checkpoint, cut at every digest that can be read."""
    found = []
    first = digest = 0
    for checkpoint in subject.checkpoints:
        if checkpoint.step <= subject.step and checkpoint.digest is not None:
            found.append(_Interval(first, checkpoint, (checkpoint.digest - digest) % 2**64))
            first, digest = checkpoint.step, checkpoint.digest
    return found


def _draw(
    intervals: list[_Interval], num_steps: int, budget: int, seed: int
) -> tuple[list[_Interval], list[int]]:
    """Intervals that hold at most `budget` steps in all, and single steps for what is left of it.

    Both ascend; the same seed draws the same.
    """
    generator = np.random.default_rng(seed)
    chosen, left = [], budget
    for index in generator.permutation(len(intervals)).tolist():
        if len(intervals[index].steps) <= left:
            chosen.append(intervals[index])
            left -= len(intervals[index].steps)
    alone = np.ones(num_steps, dtype=bool)
    for interval in chosen:
        alone[interval.first : interval.checkpoint.step] = False
    single = generator.permutation(np.flatnonzero(alone))[:left]
    return sorted(chosen, key=lambda interval: interval.checkpoint.step), sorted(single.tolist())


def _why_not(
    subject: Subject, intervals: list[_Interval], compared: int, budget: int
) -> str | None:
    """Why the digests say nothing, or with a budget of all steps not of all; None if they do."""
    if compared == subject.step or (compared and budget < subject.step):
        return None
    last = intervals[-1].checkpoint.step if intervals else 0
    if last < subject.step and (last == 0 or budget == subject.step):
        if all(checkpoint.digest_problem is None for checkpoint in subject.checkpoints):
            why = "the run began before it kept a ledger"
            if subject.origin is not None:
                why = f"the run began with another's checkpoint of step {subject.origin:,}"
            return f"no digest of all {subject.step:,} steps: {why}"
        return f"after step {last} no checkpoint holds a digest that can be read (see checkpoints)"
    least = min(len(interval.steps) for interval in intervals if interval.steps)
    return (
        f"no digest was compared: those kept are at least {plural(least, 'step')} apart, a sample "
        f"is {budget:,}; give --sample {least} or more, or --full"
    )


def _extent(subject: Subject, chosen: list[_Interval], done: int, compared: int) -> str:
    if compared == subject.step:
        digests = plural(len(chosen), "checkpoint")
        return f"all {compared:,} steps read again: the digests of {digests} agree"
    return (
        f"{done:,} steps read again: the digests hold for {plural(compared, 'step')} of "
        f"{subject.step:,}, ids and order for all that were read"
    )


def _bounds(interval: _Interval, found: int) -> str:
    first, end, name = interval.first, interval.checkpoint.step, interval.checkpoint.path.name
    if first == end:  # step 0: the sum over no rows
        return f"{name} holds a digest of {interval.added:016x} before the first step"
    steps = f"in step {first}" if first + 1 == end else f"somewhere in steps {first} to {end - 1}"
    return (
        f"the tokens read now differ from those trained on {steps}: digest {found:016x}, "
        f"{name} says {interval.added:016x}"
    )


def _read_step(
    subject: Subject, host: HostRows, plan: InjectionPlan, step: int, seen: _Seen
) -> list[str]:
    """Read a step again, add it to what was seen, return what is wrong with it."""
    problems = []
    rows = host.rows_of_step(step)
    if (kept := _kept_order(subject, host, step)) is not None and not np.array_equal(rows, kept):
        slot = int(np.flatnonzero(rows != kept)[0])
        problems.append(
            f"step {step}, slot {slot}: row {kept[slot]} of the corpus in train_data, the engine's "
            f"order has row {rows[slot]}"
        )
    ids_BT = host.tokens(rows)
    vocab_size = subject.identity["vocab_size"]
    if ids_BT.max() >= vocab_size:
        slot = int((ids_BT.max(axis=1) >= vocab_size).argmax())
        path, offset = host.place(int(rows[slot]))
        problems.append(
            f"step {step}, slot {slot}: token id {ids_BT[slot].max()} is beyond the vocabulary of "
            f"{vocab_size} ({path}, token {offset + int(ids_BT[slot].argmax())})"
        )
    planned = splice(ids_BT, plan, step)
    alone = np.ones(len(ids_BT), dtype=bool)
    alone[planned] = False
    seen.unplanned_rows += int(alone.sum())
    for name, num in natural_examples(ids_BT[alone], plan).items():
        seen.natural[name] = seen.natural.get(name, 0) + num
    positions = step * host.batch_size + np.arange(len(ids_BT))
    seen.digest = (seen.digest + rows_digest(ids_BT, positions)) % 2**64
    return problems


def _kept_order(subject: Subject, host: HostRows, step: int) -> np.ndarray | None:
    """A step's rows as the run's own files of the order have them, None if they are gone."""
    epoch, first = divmod(step * host.batch_size, host.epoch_rows)
    name = f"order-seed{host.seed}-rows{host.num_rows}-epoch{epoch}.u32"
    path = subject.folder / "train_data" / name
    if not path.is_file():
        return None
    return np.fromfile(path, dtype="<u4", count=host.batch_size, offset=4 * first).astype(np.int64)


def _natural(seen: _Seen) -> str:
    found = [f"{name} {num}" for name, num in seen.natural.items()]
    return f"natural examples in {seen.unplanned_rows:,} other rows: {listing(found) or 'none'}"
