"""How `olmo-ext audit` shows what it found; the checks themselves are in eval/audit/audit.py.

show_audit(audit_run("runs/w32"), console)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from eval.audit.explain import Explanation, Text
from eval.audit.subject import DIFFERS, NOT_CHECKED, OK, Audit, Progress

PATIENCE = 1.0
"""Seconds before a bar is shown."""

MOST = 10
"""Differences shown of one check; --json has all."""

COLOURS = {OK: "green", DIFFERS: "bold red", NOT_CHECKED: "yellow"}


def show_audit(audit: Audit, console: Console) -> None:
    """A line for each verdict, further differences and notes below it, and the conclusion."""
    step = "no checkpoint yet" if audit.step is None else f"the weights of step {audit.step:,}"
    _say(console, f"{audit.run}: {step}, plan {audit.plan_hash[:12]}")
    for verdict in audit.verdicts:
        mark = f"[{COLOURS[verdict.status]}]{verdict.status:<11}[/]"
        _say(console, f"{mark} {verdict.check:<11} {escape(verdict.said)}", markup=True)
        for line in verdict.details[:MOST]:
            _say(console, f"{'':<24} {line}")
        if len(verdict.details) > MOST:
            _say(console, f"{'':<24} and {len(verdict.details) - MOST:,} more (--json FILE)")
        for line in verdict.notes:
            _say(console, f"{'':<24} ({line})")
    differ = [verdict.check for verdict in audit.verdicts if verdict.status == DIFFERS]
    skipped = [verdict.check for verdict in audit.verdicts if verdict.status == NOT_CHECKED]
    said = f"differs: {', '.join(differ)}" if differ else "all that was checked agrees"
    _say(console, said + (f"; not checked: {', '.join(skipped)}" if skipped else ""))


def show_explanation(explained: Explanation, console: Console) -> None:
    """A paragraph for each injected row of a step."""
    if explained.corpus is not None:
        shown = any(row.replaced is not None for row in explained.rows)
        said = "may be another than was replaced" if shown else "is not shown"
        _say(console, f"the host text {said}: {explained.corpus}")
    _say(
        console,
        f"step {explained.step} (counted from 0): {explained.num_rows} of {explained.batch_size} "
        "rows carry an example",
    )
    for row in explained.rows:
        _say(
            console,
            f"slot {row.slot} (position {row.position}): example {row.example} of {row.task}, "
            f"{row.split} split, exposure {row.time}; ledger: "
            f"{', '.join(row.ledger) or 'not there'}",
        )
        for name, text in (
            ("injected", row.tokens),
            ("replaced", row.replaced),
            ("followed by", row.following),
        ):
            if text is not None:
                _say(console, f"  {name:<11} {_text(text)}")
        if row.file is not None:
            _say(console, f"  {'host row':<11} {row.file}, from token {row.offset}")
    if explained.num_rows > len(explained.rows):
        _say(console, f"and {explained.num_rows - len(explained.rows)} more; see --rows")
    if explained.unplanned:
        _say(console, f"the ledger has {explained.unplanned} rows there that the plan has not")


@contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    """A bar on `console` for what takes longer than PATIENCE; removed at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bars = Bars(*columns, TimeRemainingColumn(), console=console, transient=True)
    began: dict[str, float] = {}
    shown: dict[str, object] = {}

    def progress(what: str, done: int, total: int) -> None:
        start = began.setdefault(what, time.monotonic())
        if what not in shown and time.monotonic() - start < PATIENCE:
            return
        if what not in shown:
            bars.start()
            shown[what] = bars.add_task(what, total=total)
        bars.update(shown[what], completed=done, total=total)  # type: ignore[arg-type]

    try:
        yield progress
    finally:
        if shown:  # stopped unstarted, it prints an empty line
            bars.stop()


def _text(text: Text) -> str:
    ids = " ".join(str(token) for token in text.ids)
    return ids if text.text is None else f"{ids}  {text.text!r}"


def _say(console: Console, line: str, *, markup: bool = False) -> None:
    # A pipe gets whole lines: they are searched.
    console.print(line, markup=markup, highlight=False, soft_wrap=not console.is_terminal)
