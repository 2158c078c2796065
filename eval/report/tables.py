"""The size x frequency table as text: in Markdown, and in a terminal.

markdown_cells(cells(read_records("runs/sweep")))
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd

from eval.report.page import answer
from eval.scores.cells import groups
from eval.scores.staircase import learned_per_rung
from eval.text import count, new_table, number, print_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def markdown_cells(table: pd.DataFrame) -> str:
    """The heatmap as Markdown tables, for a README or a paper's appendix: one per protocol, family.

    A cell reads "score ± half its 95% interval over seeds (exposures per example)"; learned ones
    are bold, provisional ones have a question mark.
    """
    parts = []
    for protocol, family, group in groups(table):
        rates = _rates(group)
        lines = [
            f"{family}, {protocol} protocol, {group.n_seeds.min()} seeds or more"
            if group.n_seeds.nunique() > 1
            else f"{family}, {protocol} protocol, seeds: {group.n_seeds.iloc[0]}",
            "",
            "| size (parameters) | " + " | ".join(f"{number(r)} / step" for r in rates) + " |",
            "|---|" + "---:|" * len(rates),
        ]
        for rung, params, row in _rows(group):
            shown = ["-" if cell is None else _markdown_cell(cell) for cell in row]
            lines.append(f"| {rung} ({count(params)}) | " + " | ".join(shown) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def print_cells(table: pd.DataFrame, console: Console | None = None) -> None:
    """The heatmap in a terminal: rungs by rates, learned cells marked, exposures under each."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    for protocol, family, group in groups(table):
        metric, split = group.metric.iloc[0], group.split.iloc[0]
        title = f"{family}, {protocol} protocol: {split} {metric}"
        rates = [f"{number(rate)}/step" for rate in _rates(group)]
        grid = new_table("rung", numbers=rates, title=title)
        for rung, params, row in _rows(group):
            grid.add_row(Text(f"{rung}\n{count(params)} par."), *map(_rich_cell, row))
        print_table(grid, console)
    few = "; (*) provisional, fewer than 3 seeds" if table.provisional.any() else ""
    note = f"* learned{few}; below: exposures per train example and protocol"
    console.print(Text(note, style="dim"))
    for counts in learned_per_rung(table):
        console.print(Text(f"{counts.family}, {counts.protocol}: {answer(counts)}"))


def _rates(group: pd.DataFrame) -> list[float]:
    """The columns, the most frequent first."""
    return sorted(set(group.rate_per_step), reverse=True)


def _rows(group: pd.DataFrame) -> Iterator[tuple[str, float, list[pd.Series | None]]]:
    """(rung, parameters, its cell at each rate or None), the largest rung first."""
    for params, rung in sorted({*zip(group.params, group.rung, strict=True)}, reverse=True):
        row = group[(group.rung == rung) & (group.params == params)].set_index("rate_per_step")
        yield rung, params, [row.loc[r] if r in row.index else None for r in _rates(group)]


def _value(cell: pd.Series) -> str:
    return f"{cell.value:.2f}".replace("-0.00", "0.00")


def _markdown_cell(cell: pd.Series) -> str:
    value = _value(cell)
    if cell.interval == "seeds":
        value += f" ± {(cell.high - cell.low) / 2:.2f}"
    if cell.learned:
        value = f"**{value}**" + ("?" if cell.provisional else "")
    return f"{value} ({number(cell.exposures_per_example, 2)})"


def _rich_cell(cell: pd.Series | None) -> Text:
    from rich.text import Text

    if cell is None:
        return Text("-", style="dim")
    mark = ("(*)" if cell.provisional else "*") if cell.learned else ""
    text = Text(_value(cell) + mark, style="bold green" if cell.learned else "")
    below = f"\n{number(cell.exposures_per_example, 2)} {cell.protocol}"
    return text.append(below, style="not bold dim default")
