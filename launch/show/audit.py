"""How `olmo-ext audit` shows what it found; the checks themselves are in eval/audit/audit.py.

show_audit(audit_run("runs/w32"), console)
"""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from eval.audit.explain import Explanation, Text
from eval.audit.subject import DIFFERS, NOT_CHECKED, OK, Audit
from launch.terminal import say

MOST = 10
"""Differences shown of one check; --json has all."""

COLOURS = {OK: "green", DIFFERS: "bold red", NOT_CHECKED: "yellow"}


def show_audit(audit: Audit, console: Console) -> None:
    """A line for each verdict, further differences and notes below it, and the conclusion."""
    step = "no checkpoint yet" if audit.step is None else f"the weights of step {audit.step:,}"
    say(console, f"{audit.run}: {step}, plan {audit.plan_hash[:12]}")
    for verdict in audit.verdicts:
        mark = f"[{COLOURS[verdict.status]}]{verdict.status:<11}[/]"
        line = f"{mark} {verdict.check:<11} {escape(verdict.said)}"
        console.print(line, highlight=False, soft_wrap=True)
        for line in verdict.details[:MOST]:
            say(console, f"{'':<24} {line}")
        if len(verdict.details) > MOST:
            say(console, f"{'':<24} and {len(verdict.details) - MOST:,} more (--json FILE)")
        for line in verdict.notes:
            say(console, f"{'':<24} ({line})")
    differ = [verdict.check for verdict in audit.verdicts if verdict.status == DIFFERS]
    skipped = [verdict.check for verdict in audit.verdicts if verdict.status == NOT_CHECKED]
    said = f"differs: {', '.join(differ)}" if differ else "all that was checked agrees"
    say(console, said + (f"; not checked: {', '.join(skipped)}" if skipped else ""))


def show_explanation(explained: Explanation, console: Console) -> None:
    """A paragraph for each injected row of a step."""
    if explained.corpus is not None:
        shown = any(row.replaced is not None for row in explained.rows)
        said = "may be another than was replaced" if shown else "is not shown"
        say(console, f"the host text {said}: {explained.corpus}")
    say(
        console,
        f"step {explained.step} (counted from 0): {explained.num_rows} of {explained.batch_size} "
        "rows carry an example",
    )
    for row in explained.rows:
        say(
            console,
            f"slot {row.slot} (position {row.position}): example {row.example} of {row.task}, "
            f"{row.split} split, exposure {row.time}; ledger: "
            f"{', '.join(row.ledger) or 'not there'}",
        )
        texts = {"injected": row.tokens, "replaced": row.replaced, "followed by": row.following}
        for name, text in texts.items():
            if text is not None:
                say(console, f"  {name:<11} {_text(text)}")
        if row.file is not None:
            say(console, f"  {'host row':<11} {row.file}, from token {row.offset}")
    if explained.num_rows > len(explained.rows):
        say(console, f"and {explained.num_rows - len(explained.rows)} more; see --rows")
    if explained.unplanned:
        say(console, f"the ledger has {explained.unplanned} rows there that the plan has not")


def _text(text: Text) -> str:
    ids = " ".join(str(token) for token in text.ids)
    return ids if text.text is None else f"{ids}  {text.text!r}"
