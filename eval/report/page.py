"""The report's HTML: figures embedded, nothing fetched, light and dark.

render("runs/quickstart", table, runs, figures, command=None)
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

import pandas as pd

from eval.figures.index import Drawn
from eval.run import RUN
from eval.scores.cells import LearnedCounts, groups, learned_per_rung
from eval.text import count, number

"""Beside records.jsonl: a flat JSON object of strings. `num_steps` is the planned length of the
run; every other key (versions, corpus hash, git commit, ...) is shown as it stands."""

CAVEATS = (
    (
        "Score",
        "(label accuracy - majority) / (1 - majority): 0 is guessing the most frequent label, 1 is "
        "all correct, below 0 is worse than guessing. Label accuracy takes the largest logit among "
        "the task's labels, accuracy among the whole vocabulary: a run that has only learned to "
        "emit some label shows accuracy without score.",
    ),
    (
        "Learned",
        "the mean test score over seeds is at least 0.5 and, over at least 3 seeds, so is its "
        "lower 95% bound (Student's t over seeds). With fewer seeds a cell is provisional: one "
        "seed is one draw, and its interval (Wilson, over items) leaves the spread over seeds out.",
    ),
    (
        "Rare must not mean unseen",
        "exposures per example stand under every cell. Where a cell saw each train example less "
        "than once, failing to learn is starvation and says nothing of competition; confirm with "
        "matched exposures (longer runs at a lower rate) and with the task trained alone.",
    ),
    (
        "Protocol",
        "like tasks can transfer in a mixture, clearly so where they share label tokens: the same "
        "task at the same rate then scores higher than alone in its run. Mixture and single-task "
        "cells are never merged; confirm a mixture's finding with single-task runs.",
    ),
)


@dataclass(frozen=True)
class Run:
    """One run's folder as the report saw it."""

    folder: str
    name: str
    rung: str
    protocol: str
    seed: str
    plan_hash: str
    last_step: int | None
    """Last step with any record; None if there is none yet."""
    num_steps: int | None
    """Planned length by run.json; None where it does not say."""
    measured: bool
    """A task has been measured at least once."""
    info: dict[str, str]
    unfinished: str = ""
    """Why the run counts as unfinished, empty if it does not."""


def verdict(counts: LearnedCounts) -> str:
    """Does the number of learned cells rise with size? One line, hedged as the data demands."""
    tally = ", ".join(
        f"{n} of {len(counts.rates)} at {rung}"
        for rung, n in zip(counts.rungs, counts.num_learned, strict=True)
    )
    if not counts.comparable:
        why = "one size only" if len(counts.rungs) < 2 else "no rate was measured at every size"
        return f"Cannot say: {why}. Learned: {tally}."
    if counts.rises:
        answer = "Yes: more cells are learned as size grows"
    elif not counts.non_decreasing:
        answer = "No: the number of learned cells falls somewhere as size grows"
    elif counts.num_learned[0] == len(counts.rates):
        answer = "No: every cell is learned at every size, so rarer rates are needed to tell"
    elif counts.num_learned[-1] == 0:
        answer = "No: no cell is learned at any size, so longer runs or higher rates are needed"
    else:
        answer = "No: the largest size learns as many cells as the smallest"
    few = " Provisional: fewer than 3 seeds in some cells." if counts.provisional else ""
    apart = "" if counts.same_step else " Caution: not all sizes stand at the same step."
    return f"{answer} ({tally}).{few}{apart}"


def render(
    source: str,
    table: pd.DataFrame,
    runs: list[Run],
    figures: Sequence[Drawn],
    command: str | None,
) -> str:
    """figures: in the order of the page; the first, the heatmap, stands under the answer."""
    first, *others = figures
    caveats = "".join(f"<li><b>{escape(k)}</b>: {escape(v)}</li>" for k, v in CAVEATS)
    body = [
        "<h1>Do larger models learn rarer tasks?</h1>",
        "<p>Tasks made of novel tokens are injected into pretraining at several rates, at several "
        "model sizes. If tasks compete for capacity, a larger model learns tasks that are too rare "
        "for a smaller one to keep (Huang et al. 2026, arXiv 2605.29548, Fig. 5 and 6a).</p>",
        _answers(table),
        _notes(table, runs),
        _figure(first),
        "<h2>Learned cells per size</h2>",
        _learned_table(table),
        f"<h2>How to read this</h2><ul>{caveats}</ul>",
        *(f"<h2>{escape(figure.title)}</h2>{_figure(figure)}" for figure in others),
        "<h2>All cells</h2>",
        _all_cells(table),
        "<h2>Provenance</h2>",
        _provenance(source, runs, command),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Size x frequency: {escape(source)}</title><style>{CSS}</style></head>\n"
        "<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )


def _answers(table: pd.DataFrame) -> str:
    lines = []
    for counts in learned_per_rung(table):
        what = f"{counts.family}, {counts.protocol} protocol"
        lines.append(f"<p><b>{escape(what)}.</b> {escape(verdict(counts))}</p>")
    return f'<div class="answer">{"".join(lines)}</div>'


def _notes(table: pd.DataFrame, runs: list[Run]) -> str:
    """What stands between these numbers and a finding, for this very set of runs."""
    notes = [
        f"Run {r.name} ({r.folder}) is unfinished: {r.unfinished}." for r in runs if r.unfinished
    ]
    for protocol, family, group in groups(table):
        if group.step.min() != group.step_max.max():
            notes.append(
                f"{family}, {protocol}: sizes stand at different steps ({group.step.min():,} to "
                f"{group.step_max.max():,}); part of a difference may be training length."
            )
    starved = table[~table.learned & (table.exposures_per_example < 1)]
    if len(starved):
        notes.append(
            f"{len(starved)} of the {int((~table.learned).sum())} cells not learned saw each train "
            "example less than once: there, starvation cannot be told from competition."
        )
    for counts in learned_per_rung(table):
        if counts.rates_left_out:
            rates = ", ".join(number(r) for r in counts.rates_left_out)
            notes.append(
                f"{counts.family}, {counts.protocol}: rates {rates} per step are left out of the "
                "count, since not every size has them."
            )
    if (table.n_runs > table.n_seeds).any():
        notes.append(
            "Some cells hold several runs of one seed; these are averaged and count as one seed. "
            "If they differ in more than name (learning rate, schedule), report them apart."
        )
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if notes else ""


def _figure(figure: Drawn) -> str:
    data, caption = base64.b64encode(figure.png).decode(), escape(figure.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption} File: {escape(figure.name)}</figcaption></figure>"
    )


def _learned_table(table: pd.DataFrame) -> str:
    rows = [
        (c.family, c.protocol, rung, f"{params:,}", f"{learned} of {len(c.rates)}")
        for c in learned_per_rung(table)
        for rung, params, learned in zip(c.rungs, c.params, c.num_learned, strict=True)
    ]
    return _table(("family", "protocol", "rung", "parameters", "learned cells"), rows)


def _all_cells(table: pd.DataFrame) -> str:
    head = (
        "rung", "rate / step", "/ sequence", "/ token", "exp. / ex.", "seeds", "score",
        "95% interval", "label acc.", "accuracy", "label loss", "entropy", "train loss", "step",
        "learned",
    )  # fmt: skip
    parts = [
        "<p>Losses in nats; entropy is that of the labels alone, the loss of guessing by label "
        "frequency. Interval: over seeds where there are two or more, else over test items. "
        "The same table with every column: cells.csv; all measurements: records.csv.</p>"
    ]
    for protocol, family, group in groups(table):
        rows = [_cell_row(cell) for _, cell in group.iterrows()]
        parts.append(f"<h3>{escape(family)}, {escape(protocol)} protocol</h3>{_table(head, rows)}")
    return "".join(parts)


def _cell_row(cell: pd.Series) -> tuple[str, ...]:
    steps = f"{cell.step:,}" + (f" to {cell.step_max:,}" if cell.step != cell.step_max else "")
    interval = "none"
    if cell.interval != "none":
        interval = f"{cell.low:.3f} to {cell.high:.3f} ({cell.interval})"
    learned = ("provisional" if cell.provisional else "yes") if cell.learned else "no"
    measured = (cell.label_accuracy, cell.accuracy, cell.label_loss, cell.label_entropy)
    return (
        cell.rung,
        *map(number, (cell.rate_per_step, cell.rate_per_sequence, cell.rate_per_token)),
        number(cell.exposures_per_example, 2),
        str(cell.n_seeds),
        _decimals(cell.score),
        interval,
        *map(_decimals, (*measured, cell.train_label_loss)),
        steps,
        learned,
    )


def _decimals(value: float) -> str:
    return "not measured" if pd.isna(value) else f"{value:.3f}"


def _provenance(source: str, runs: list[Run], command: str | None) -> str:
    made = [
        ("made", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("from", source),
        ("command", command or f"write_report({source!r})"),
    ]
    said = [run.info for run in runs if run.info]
    shared = (
        {(k, v) for k, v in said[0].items() if all(i.get(k) == v for i in said)} if said else set()
    )
    head = ("run", "folder", "rung", "protocol", "seed", "plan hash", "last step", "state")
    rows = [
        (
            r.name, r.folder, r.rung, r.protocol, r.seed, _short(r.plan_hash),
            "none" if r.last_step is None else f"{r.last_step:,}",
            f"unfinished: {r.unfinished}" if r.unfinished else "finished",
        )
        for r in runs
    ]  # fmt: skip
    parts = [_table(("report", ""), made), _table(head, rows)]
    if shared:
        inner = _table(("key", "value"), sorted(shared))
        parts.append(f"<h3>{RUN}, the same in every run that has one</h3>{inner}")
    for run in runs:
        own = [(k, v) for k, v in run.info.items() if (k, v) not in shared]
        if own:
            inner = _table(("key", "value"), own)
            parts.append(f"<details><summary>{escape(run.name)}: {RUN}</summary>{inner}</details>")
    if not said:
        parts.append(f"<p>No {RUN} beside the records: versions and corpus are not known.</p>")
    return "".join(parts)


def _short(hashes: str) -> str:
    """Twelve digits tell plans apart on a page; records.csv has the whole hash."""
    return ", ".join(one[:12] for one in hashes.split(", "))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """An HTML table; every text is escaped here and nowhere else."""
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(text))}</td>" for text in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def markdown_cells(table: pd.DataFrame) -> str:
    """The heatmap as Markdown tables, for a README or a paper's appendix: one per protocol, family.

    A cell reads "score ± half its 95% interval over seeds (exposures per example)"; learned ones
    are bold, provisional ones have a question mark.
    """
    parts = []
    for protocol, family, group in groups(table):
        rates = sorted(set(group.rate_per_step), reverse=True)
        lines = [
            f"{family}, {protocol} protocol, {group.n_seeds.min()} seeds or more"
            if group.n_seeds.nunique() > 1
            else f"{family}, {protocol} protocol, seeds: {group.n_seeds.iloc[0]}",
            "",
            "| size (parameters) | " + " | ".join(f"{number(r)} / step" for r in rates) + " |",
            "|---|" + "---:|" * len(rates),
        ]
        for params, rung in sorted({*zip(group.params, group.rung, strict=True)}, reverse=True):
            row = group[(group.rung == rung) & (group.params == params)].set_index("rate_per_step")
            shown = [_markdown_cell(row.loc[rate]) if rate in row.index else "-" for rate in rates]
            lines.append(f"| {rung} ({count(params)}) | " + " | ".join(shown) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _markdown_cell(cell: pd.Series) -> str:
    value = f"{cell.value:.2f}".replace("-0.00", "0.00")
    if cell.interval == "seeds":
        value += f" ± {(cell.high - cell.low) / 2:.2f}"
    if cell.learned:
        value = f"**{value}**" + ("?" if cell.provisional else "")
    return f"{value} ({number(cell.exposures_per_example, 2)})"


def cell_text(cell: pd.Series) -> tuple[str, str, bool]:
    mark = ("(*)" if cell.provisional else "*") if cell.learned else ""
    value = f"{cell.value:.2f}".replace("-0.00", "0.00")
    return (
        f"{value}{mark}",
        f"{number(cell.exposures_per_example, 2)} {cell.protocol}",
        bool(cell.learned),
    )


CSS = """
:root{color-scheme:light dark;--ink:#1a1a1a;--paper:#fff;--soft:#f4f4f2;--line:#dcdcd8;
--mark:#2a788e}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8e6;--paper:#16181a;--soft:#212427;
--line:#3a3e42}}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:920px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:1.7rem;line-height:1.2;margin:.4em 0}
h2{font-size:1.2rem;margin:2em 0 .5em}
h3{font-size:1rem;margin:1.5em 0 .4em}
.answer{border-left:4px solid var(--mark);background:var(--soft);padding:.3em 1em;margin:1.2em 0}
.answer p{margin:.5em 0}
.notes{font-size:.92rem}
li{margin:.35em 0}
figure{margin:1.2em 0}
img{display:block;width:100%;height:auto;background:#fff;border-radius:6px}
figcaption{font-size:.85rem;opacity:.75;margin-top:.4em}
.wide{overflow-x:auto;margin:.6em 0}
table{border-collapse:collapse;font-size:.8rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.28em .6em .28em 0;white-space:nowrap;
border-bottom:1px solid var(--line)}
th{font-weight:600}
td:nth-child(2):last-child{white-space:normal;overflow-wrap:anywhere}
summary{cursor:pointer;margin:.5em 0}
"""
