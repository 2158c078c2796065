"""The report's HTML, from the template beside it: what a page says, as values.

render("runs/quickstart", table, runs, figures, command=None)
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pandas as pd

from eval.figures.index import Drawn
from eval.run import RUN
from eval.scores.cells import groups
from eval.scores.staircase import LearnedCounts, learned_per_rung
from eval.text import number, template


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
    """run.json as text; the page shows every key as it stands."""
    unfinished: str = ""
    """Why the run counts as unfinished, empty if it does not."""


def answer(counts: LearnedCounts) -> str:
    """Does the number of learned cells rise with size? One line, hedged as the data demands."""
    tally = ", ".join(
        f"{n} of {len(counts.rates)} at {rung}"
        for rung, n in zip(counts.rungs, counts.num_learned, strict=True)
    )
    if not counts.comparable:
        why = "one size only" if len(counts.rungs) < 2 else "no rate was measured at every size"
        return f"Cannot say: {why}. Learned: {tally}."
    if counts.rises:
        said = "Yes: more cells are learned as size grows"
    elif not counts.non_decreasing:
        said = "No: the number of learned cells falls somewhere as size grows"
    elif counts.num_learned[0] == len(counts.rates):
        said = "No: every cell is learned at every size, so rarer rates are needed to tell"
    elif counts.num_learned[-1] == 0:
        said = "No: no cell is learned at any size, so longer runs or higher rates are needed"
    else:
        said = "No: the largest size learns as many cells as the smallest"
    few = " Provisional: fewer than 3 seeds in some cells." if counts.provisional else ""
    apart = "" if counts.same_step else " Caution: not all sizes stand at the same step."
    return f"{said} ({tally}).{few}{apart}"


def render(
    source: str,
    table: pd.DataFrame,
    runs: list[Run],
    figures: Sequence[Drawn],
    command: str | None,
) -> str:
    """figures: in the order of the page; the first, the heatmap, stands under the answer."""
    page = template("eval.report", "report.html", base64=_base64, answer=answer)
    learned, said = learned_per_rung(table), [run.info for run in runs if run.info]
    shared = set.intersection(*({*info.items()} for info in said)) if said else set()
    return page.render(
        source=source,
        figures=figures,
        learned=learned,
        notes=_notes(table, runs),
        learned_rows=[
            (counts.family, counts.protocol, rung, f"{params:,}", f"{num} of {len(counts.rates)}")
            for counts in learned
            for rung, params, num in zip(
                counts.rungs, counts.params, counts.num_learned, strict=True
            )
        ],
        cells=[
            (protocol, family, [_cell_row(cell) for _, cell in group.iterrows()])
            for protocol, family, group in groups(table)
        ],
        made=(
            ("made", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
            ("from", source),
            ("command", command or f"write_report({source!r})"),
        ),
        run_rows=map(_run_row, runs),
        run_file=RUN,
        known=bool(said),
        shared=sorted(shared),
        apart=[
            (run.name, [item for item in run.info.items() if item not in shared]) for run in runs
        ],
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _notes(table: pd.DataFrame, runs: list[Run]) -> list[str]:
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


def _run_row(run: Run) -> tuple[str, ...]:
    # Twelve digits tell plans apart on a page; records.csv has the whole hash.
    hashes = ", ".join(one[:12] for one in run.plan_hash.split(", "))
    last = "none" if run.last_step is None else f"{run.last_step:,}"
    state = f"unfinished: {run.unfinished}" if run.unfinished else "finished"
    return (run.name, run.folder, run.rung, run.protocol, run.seed, hashes, last, state)
