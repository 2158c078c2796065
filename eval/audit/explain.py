"""One step of a run in detail: which example stood where, over which text, and how often before.

    explain_step("runs/w32", 17).rows[0]

The plan says what was to be injected, the corpus what it replaced, the ledger what was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_injection.errors import ConfigError
from data_injection.plan import InjectionPlan
from eval.audit.corpus import check_corpus, load_decoder
from eval.audit.host_rows import places
from eval.audit.ledger import STATES, RunLedger, trace_ledger
from eval.audit.rows import planned_rows
from eval.audit.subject import OK, open_run

CONTEXT = 12
"""Tokens shown after an example."""


@dataclass(frozen=True)
class Text:
    """Token ids and what they say."""

    ids: list[int]
    text: str | None
    """None without a tokenizer."""


@dataclass(frozen=True)
class ExplainedRow:
    """One injected row of a step."""

    slot: int
    position: int
    task: str
    example: int
    split: str
    time: int
    """This is the example's so many-th exposure, counted from 1."""

    tokens: Text
    """The example and EOS."""

    replaced: Text | None
    """The host's tokens in their place; None without the corpus, as the next three."""

    following: Text | None
    file: str | None
    offset: int | None
    """Token of the file at which the row begins."""

    ledger: tuple[str, ...]
    """Where the ledger has it: "effective in segment 0"; empty if nowhere."""


@dataclass(frozen=True)
class Explanation:
    """The injected rows of one step."""

    step: int
    batch_size: int
    rows: tuple[ExplainedRow, ...]
    num_rows: int
    """Of the plan, shown or not."""

    unplanned: int
    """Rows of the ledger at this step that the plan has not."""

    corpus: str | None
    """Why the host's tokens are not shown, or may be others than those replaced; else None."""


def explain_step(
    run: str | Path,
    step: int,
    *,
    checkpoint: int | None = None,
    corpus: Path | None = None,
    most: int = 10,
) -> Explanation:
    """Explain a step (counted from 0, as in the ledger); at most so many of its rows.

    Raises:
        FileNotFoundError: no run there.
        ConfigError: the plan does not compile any more, or there is no such step.
    """
    subject = open_run(Path(run), step=checkpoint)
    plan = subject.trained_plan()
    if plan is None:
        rule = "cannot be recompiled to the plan that it was trained on"
        raise ConfigError(key=run, rule=rule, remedy="see `olmo-ext audit`")
    ledger = trace_ledger(subject.segments, subject.audited) if subject.segments else None
    kept = [segment.rows["step"] for segment in subject.segments.values()]
    last = max([subject.step - 1, *(int(steps.max()) for steps in kept if len(steps))])
    if not 0 <= step <= last:
        rule = f"must be a step that was taken, in [0, {last}] (counted from 0)"
        raise ConfigError(key="--explain", value=step, rule=rule)
    verdict, host = check_corpus(subject, folder=corpus)
    decode = load_decoder(subject, corpus)

    def text(ids: list[int]) -> Text:
        return Text(ids, decode(ids))

    entries = _entries(ledger, step)
    planned = planned_rows(plan, [step])
    times = _times(plan, step)
    ids_BT = None if host is None else host.tokens(host.rows_of_step(step))
    offsets = [] if ids_BT is None else places(ids_BT, plan, step).tolist()
    rows = []
    for number, (_, slot, example, index) in enumerate(planned[:most].tolist()):
        task = plan.tasks[index]
        tokens = task.written(np.array([example]), eos_token_id=plan.eos_token_id)[0].tolist()
        replaced = following = file = offset = None
        if host is not None and ids_BT is not None:
            ids, first = ids_BT[slot].tolist(), offsets[number]
            end = first + len(tokens)
            replaced, following = text(ids[first:end]), text(ids[end : end + CONTEXT])
            path, offset = host.place(int(host.rows_of_step(step)[slot]))
            file = str(path)
        rows.append(
            ExplainedRow(
                slot=slot,
                position=step * plan.geometry.batch_size + slot,
                task=task.name,
                example=example,
                split="train" if example in task.train else "test",
                time=times[number],
                tokens=text(tokens),
                replaced=replaced,
                following=following,
                file=file,
                offset=offset,
                ledger=tuple(entries.get((slot, index, example), ())),
            )
        )
    known = {(slot, index, example) for _, slot, example, index in planned.tolist()}
    return Explanation(
        step=step,
        batch_size=plan.geometry.batch_size,
        rows=tuple(rows),
        num_rows=len(planned),
        unplanned=sum(len(where) for key, where in entries.items() if key not in known),
        corpus=None if verdict.status == OK else verdict.said,
    )


def _times(plan: InjectionPlan, step: int) -> list[int]:
    """For each instance of a step in plan order: which exposure of its example it is, from 1."""
    times = []
    for index, (task, schedule) in enumerate(zip(plan.tasks, plan.schedules, strict=True)):
        first = schedule.before(step)
        if not task.has_label:
            before = plan.instance_examples(index, 0, first + schedule.count(step)).tolist()
            times += [before[: k + 1].count(before[k]) for k in range(first, len(before))]
            continue
        # Every example comes once in each epoch over the train split.
        instances = range(first, first + schedule.count(step))
        times += [instance // len(task.train) + 1 for instance in instances]
    return times


def _entries(ledger: RunLedger | None, step: int) -> dict[tuple[int, int, int], list[str]]:
    """Where the ledger has rows of a step, by (slot, task, example)."""
    entries: dict[tuple[int, int, int], list[str]] = {}
    if ledger is None:
        return entries
    for number, segment in ledger.segments.items():
        mine = np.flatnonzero(segment.rows["step"] == step)
        states = ledger.states(segment)[mine].tolist()
        for (_, slot, example, index), state in zip(
            segment.rows[mine].tolist(), states, strict=True
        ):
            said = f"{STATES[state]} in segment {number}"
            entries.setdefault((slot, index, example), []).append(said)
    return entries
