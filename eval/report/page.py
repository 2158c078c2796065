"""The report's HTML, from the template beside it: what a page says, as values.

render("runs/quickstart", table, runs, figures, command=None)
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import pandas as pd

from eval.figures.index import Drawn
from eval.figures.style import dark_colours, span
from eval.run import AUDIT, RUN
from eval.scores.cells import groups
from eval.scores.staircase import LearnedCounts, learned_per_rung
from eval.text import number, template


@dataclass(frozen=True)
class ReportedRun:
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
    undefined: int | None
    """The first step at which a score is null."""
    info: dict[str, str]
    """run.json as text; the page shows every key as it stands."""
    tokens: int = 0
    params: int = 0
    hours: float | None = None
    """Of the wall clock, spent on the steps that stand; None where no speeds were kept."""
    trained: dict[str, int] | str = ""
    """Instances of each task in the latest checkpoint's weights by the ledger, or why unknown."""
    audit: dict[str, Any] = field(default_factory=dict)
    """What `olmo-ext audit` wrote beside the records; empty if it was not asked to."""
    unfinished: str = ""
    """Why the run counts as unfinished, empty if it does not."""


def answer(counts: LearnedCounts) -> str:
    """Does the number of learned cells rise with size? One sentence that says how sure it is."""
    tally = ", ".join(
        f"{n} of {len(counts.rates)} at {rung}"
        for rung, n in zip(counts.rungs, counts.num_learned, strict=True)
    )
    if not counts.comparable:
        why = "one size only" if len(counts.rungs) < 2 else "no rate was measured at every size"
        sure = ", provisionally (fewer than 3 seeds)" if counts.provisional else ""
        return f"Cannot say: {why}. Learned{sure}: {tally}."
    few = ", from fewer than 3 seeds in some cells"
    yes, no = (f"Provisionally yes{few}", f"Provisionally no{few}")
    if not counts.provisional:
        yes, no = "Yes", "No"
    if counts.rises:
        said = f"{yes}: more cells are learned as size grows"
    elif not counts.non_decreasing:
        said = f"{no}: the number of learned cells falls somewhere as size grows"
    elif counts.num_learned[0] == len(counts.rates):
        said = f"{no}: every cell is learned at every size, so rarer rates are needed to tell"
    elif counts.num_learned[-1] == 0:
        said = f"{no}: no cell is learned at any size, so longer runs or higher rates are needed"
    else:
        said = f"{no}: the largest size learns as many cells as the smallest"
    apart = "" if counts.same_step else " Caution: not all sizes stand at the same step."
    return f"{said} ({tally}).{apart}"


def render(
    source: str, table: pd.DataFrame, runs: list[ReportedRun], figures: Sequence[Drawn],
    command: str | None, *, refresh: float | None = None,
) -> str:  # fmt: skip
    """figures: in the order of the page; the first, the heatmap if any, stands under the answer."""
    script = files("eval.report").joinpath("templates/sort.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = template("eval.report", "report.html", answer=answer)
    learned, said = learned_per_rung(table), [run.info for run in runs if run.info]
    shared = set.intersection(*({*info.items()} for info in said)) if said else set()
    return page.render(
        source=source,
        figures=figures,
        dark=dark_colours([figure.svg for figure in figures]),
        script=script,
        digest=digest,
        refresh=refresh,
        learned=learned,
        notes=_notes(table, runs),
        who=[row for _, _, group in groups(table) for row in _who(group)],
        cells=[
            (protocol, family, [_cell_row(cell) for _, cell in group.iterrows()])
            for protocol, family, group in groups(table)
        ],
        made=(
            ("made", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
            ("from", source),
            ("command", command or f"write_report({source!r})"),
            ("commit", ", ".join(sorted({i["commit"] for i in said if "commit" in i})) or "?"),
        ),
        run_rows=[_run_row(run) for run in runs],
        plan_rows=[row for run in runs for row in _plan_rows(run)],
        audit_rows=[row for run in runs for row in _audit_rows(run)],
        cost_rows=[_cost_row(run) for run in runs],
        run_file=RUN,
        audit_file=AUDIT,
        known=bool(said),
        shared=sorted(shared),
        apart=[
            (run.name, [item for item in run.info.items() if item not in shared]) for run in runs
        ],
    )


def _who(group: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """A row a size of one family and protocol: what it learned, what not, how sure that is."""
    for (params, rung), rows in group.groupby(["params", "rung"]):
        said = [
            ", ".join(
                f"{number(cell.rate_per_step)} (score {cell.score:.2f})"
                for cell in rows[chosen].itertuples()
            )
            for chosen in (rows.learned, ~rows.learned)
        ]
        few = rows.provisional.any()
        sure = "provisional: fewer than 3 seeds" if few else "lower 95% bound over seeds counts"
        first = rows.iloc[0]
        yield (
            *(first.family, first.protocol, str(rung), f"{params:,}"),
            f"{int(rows.learned.sum())} of {len(rows)}",
            *(one or "none" for one in said),
            f"{span(rows.n_seeds)}; {sure}",
        )


def _plan_rows(run: ReportedRun) -> Iterator[tuple[str, ...]]:
    """A row a task: what was planned for the whole run, and what the latest checkpoint has seen."""
    try:
        tasks = json.loads(run.info.get("tasks", "{}"))
    except ValueError:
        tasks = {}
    for name, told in tasks.items() if isinstance(tasks, dict) else ():
        rates = [told.get(f"per_{unit}") for unit in ("step", "sequence", "token")]
        planned = told.get("instances")
        trained = run.trained if isinstance(run.trained, str) else f"{run.trained.get(name, 0):,}"
        yield (
            run.name, name, *("?" if rate is None else number(float(rate)) for rate in rates),
            "?" if planned is None else f"{planned:,}", trained, run.plan_hash[:12],
        )  # fmt: skip


def _audit_rows(run: ReportedRun) -> Iterator[tuple[str, ...]]:
    """A row a check of the run's audit.json; with its step; of another plan it says so."""
    found = run.audit
    for one in found.get("verdicts", ()):
        stale = "" if found.get("plan_hash") == run.plan_hash else " (of another plan)"
        said = (str(one.get(key, "?")) for key in ("check", "status", "said"))
        yield (run.name, f"{found.get('step')}{stale}", *said)


def _cost_row(run: ReportedRun) -> tuple[str, ...]:
    hours, flops = run.hours, 6.0 * run.params * run.tokens
    speed = "not kept" if hours is None else f"{run.tokens / hours / 3600:,.0f}"
    return (
        *(run.name, run.rung, f"{run.params:,}", f"{run.tokens:,}", f"{flops:.2e}"),
        *("not kept" if hours is None else f"{hours:.3g}", speed, run.info.get("device", "?")),
    )


def _notes(table: pd.DataFrame, runs: list[ReportedRun]) -> list[str]:
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
    return notes


def _cell_row(cell: pd.Series) -> tuple[str, ...]:
    steps = f"{cell.step:,}" + (f" to {cell.step_max:,}" if cell.step != cell.step_max else "")
    interval = "none"
    if cell.interval != "none":
        interval = f"{cell.low:.3f} to {cell.high:.3f} ({cell.interval})"
    learned = ("provisional" if cell.provisional else "yes") if cell.learned else "no"
    losses = (cell.label_loss, cell.choice_loss, cell.format_loss, cell.label_entropy)
    return (
        cell.rung,
        *map(number, (cell.rate_per_step, cell.rate_per_sequence, cell.rate_per_token)),
        number(cell.exposures_per_example, 2),
        str(cell.n_seeds),
        _decimals(cell.score),
        interval,
        *map(_decimals, (cell.label_accuracy, cell.accuracy, *losses, cell.train_label_loss)),
        steps,
        learned,
    )


def _decimals(value: float) -> str:
    return "not measured" if pd.isna(value) else f"{value:.3f}"


def _run_row(run: ReportedRun) -> tuple[str, ...]:
    # Twelve digits tell plans apart on a page; records.csv has the whole hash.
    hashes = ", ".join(one[:12] for one in run.plan_hash.split(", "))
    last = "none" if run.last_step is None else f"{run.last_step:,}"
    state = f"unfinished: {run.unfinished}" if run.unfinished else "finished"
    return (run.name, run.folder, run.rung, run.protocol, run.seed, hashes, last, state)
