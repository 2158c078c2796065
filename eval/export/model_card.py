"""The model card (README.md) of an exported checkpoint, from what is known of it.

    text = model_card(find_provenance("runs/w32"), num_params=98_464, dtype="fp32", tokenizer=True)

What is not known is said to be unknown, never guessed. Names of runs and tasks are any text: none
of them can become markup of the page that shows the card.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data_injection.plan import InjectionPlan
from eval.export.harness import choice_items, words
from eval.export.provenance import METRICS, Provenance
from eval.text import markdown_table, template, with_interval

if TYPE_CHECKING:
    from markupsafe import Markup

PRECISION = {
    "fp32": "fp32, the checkpoint's own numbers, none rounded",
    "bf16": "rounded to bf16: logits no longer agree with the original's, and scores can differ "
    "from those below",
}


def model_card(provenance: Provenance, *, num_params: int, dtype: str, tokenizer: bool) -> str:
    """The card as Markdown; `tokenizer` says whether there is one of text."""
    card = template("eval.export", "model_card.md", code=_code, line=_line, words=words)
    plan, step = provenance.plan, provenance.step
    tasks = plan.labelled if plan is not None else None
    example = tasks[0].tokens[tasks[0].test[0]] if tasks else None
    chosen = [(task, len(choice_items(task))) for task in tasks or ()]
    return card.render(
        run=provenance.run.get("run", "checkpoint"),
        step=step,
        origin=_origin(provenance, num_params=num_params, dtype=dtype),
        tasks=tasks,
        sequences=[task.name for task in plan.tasks if not task.has_label] if plan else [],
        frequencies=_frequencies(plan, step) if plan is not None and step is not None else None,
        scores=_scores(provenance.scores) if provenance.scores else None,
        prompt=example[:-1] if example is not None else None,
        right=example[-1] if example is not None else None,
        subsets=[(task, num) for task, num in chosen if num < len(task.test)],
        model=provenance.model,
        dtype=dtype,
        tokenizer=tokenizer,
    )


def _origin(provenance: Provenance, *, num_params: int, dtype: str) -> Markup:
    known = provenance.summary()
    fields = provenance.run.get("record_fields", {})
    without = f" ({fields['params']:,} without the input embedding)" if fields else ""
    versions = ", ".join(f"{name} {number}" for name, number in known["versions"].items())
    corpus = " ".join(_code(part) for part in (known["corpus"], known["corpus_hash"]) if part)
    steps, tokens = provenance.step, known["training_tokens"]
    rows = (
        ("run", _code(known["run"])),
        ("rung", _code(known["rung"])),
        ("seed", _code(known["seed"])),
        ("parameters", f"{num_params:,}{without}"),
        ("steps", f"{steps:,}" if steps is not None else ""),
        ("training tokens", f"{tokens:,}" if tokens is not None else ""),
        ("plan hash", _code(known["plan_hash"])),
        ("corpus", corpus),
        ("stream digest", _code(known["stream_digest"])),
        ("commit of olmo-ext", ", ".join(_code(commit) for commit in known["commits"])),
        ("versions", _line(versions)),
        ("weights", PRECISION[dtype]),
    )
    return _table(("", ""), [(name, value or "unknown") for name, value in rows])


def _frequencies(plan: InjectionPlan, step: int) -> Markup:
    units = ("per_step", "per_sequence", "per_token", "task_tokens_per_token")
    rows = []
    for index, task in enumerate(plan.tasks):
        rates = plan.rates(index)
        rows.append(
            (
                *(_code(task.name), _line(task.family), _line(plan.schedules[index].label)),
                *(f"{rates[unit]:.4g}" for unit in units),
                f"{plan.exposures_per_example(index, step):.4g}",
                *(f"{len(task.train):,}", f"{len(task.test):,}"),
            )
        )
    head = (
        *("task", "family", "schedule", "per step", "per row", "per token"),
        *("task tokens / token", "exposures / example", "train", "test"),
    )
    return _table(head, rows)


def _scores(scores: list[dict[str, Any]]) -> Markup:
    by_task: dict[str, dict[str, dict]] = {}
    for row in scores:
        by_task.setdefault(row["task"], {})[row["metric"]] = row
    rows = [
        (
            _code(task),
            *(_interval(found.get(metric)) for metric in METRICS),
            f"{found['score']['majority']:.3f}" if "score" in found else "",
            f"{int(next(iter(found.values()))['n']):,}",
        )
        for task, found in by_task.items()
    ]
    return _table(("task", *METRICS, "majority", "n"), rows)


def _interval(row: dict | None) -> str:
    if row is None or math.isnan(row["value"]):
        return ""
    return with_interval(row["value"], row["low"], row["high"], digits=3)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table whose texts are safe already: numbers, `_code` or `_line`."""
    from markupsafe import Markup

    return Markup(markdown_table(head, rows))


def _line(text: object) -> Markup:
    """Text as one line without HTML; brackets and bars would begin a link or another column."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([\\`\[\]|])", r"\\\1", escape(" ".join(str(text).split()))))


def _code(value: object) -> Markup:
    """A code span, which shows any text as it stands; its fence is longer than any fence inside."""
    from markupsafe import Markup

    if value is None:
        return Markup("")
    text = " ".join(str(value).split()).replace("|", r"\|")
    inside = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, room = "`" * (inside + 1), " " if inside else ""
    return Markup(f"{fence}{room}{text}{room}{fence}")
