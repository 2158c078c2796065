"""The loss budget over training: who moved a task's choice loss, in nats, from record to record.

from eval.figures.budget import budget
budget(read_records("runs/chain")).savefig("budget.png", dpi=180)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from data_injection.errors import ConfigError
from eval.figures import style
from eval.interference.budget import DECAY, HOST, OWN
from eval.scores.cells import CELL
from eval.scores.rows import task_rows
from eval.text import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES: dict[str, tuple[str, dict[str, Any]]] = {
    HOST: ("forgotten: the host's data", {"color": style.COLOURS[0]}),
    OWN: ("gained: the task's own rows", {"color": style.COLOURS[1]}),
    DECAY: ("faded: weight decay", {"color": style.COLOURS[2]}),
    "others": ("other tasks' rows", {"color": style.COLOURS[3]}),
    "actual": ("their sum, as measured", {"color": style.INK, "linestyle": "--"}),
}


def budget(frame: pd.DataFrame) -> Figure:
    """A panel per cell (protocol, family, size, rate), a line per source, a band over seeds.

    Raises ConfigError if no loss budget was recorded.
    """
    rows = frame[frame.metric.isin(["budget", "budget_actual"])]
    if rows.empty:
        rule = "hold no loss budget"
        raise ConfigError(key="records", rule=rule, remedy="add `loss_budget: {}` to the callbacks")
    rows = task_rows(rows)
    rows = rows[rows.layer.isna()]
    line = rows.source.where(rows.source.isin([HOST, OWN, DECAY]), "others")
    rows = rows.assign(line=line.where(rows.metric == "budget", "actual"))
    cells = list(rows.groupby(list(CELL), sort=True))
    abreast = style.abreast(len(cells))
    height = 2.7 * -(-len(cells) // abreast) + 0.8
    figure = style.new_figure(style.WIDTHS[abreast - 1], height)
    grid = style.panels(figure, len(cells), abreast=abreast)
    for axis, (_, cell) in zip(grid.ravel(), cells, strict=False):
        for name, one in cell.groupby("line"):
            # Of one seed's step the sources of a line add up; its like tasks and runs are averaged.
            of_run = one.groupby(["step", "seed", "run", "task"]).value.sum().reset_index()
            style.mean_over_seeds(axis, style.by_seed(of_run), **LINES[str(name)][1])
        axis.axhline(0, **style.THRESHOLD)
        first = cell.iloc[0]
        title = style.size_title(first.params, first.rung)
        family = style.plain(first.family).replace(", ", "\n", 1)
        title += f"\n{family}, {number(first.rate_per_step)} a step"
        style.dress(axis, title, below="step", left="nats since the last record")
    shown = [LINES[name] for name in LINES if (rows.line == name).any()]
    style.legend_below(figure, [style.handle(text, **look) for text, look in shown], 3)
    return figure
