"""Which places hold a task's variables, drawn from records: alignment by layer, and causal effects.

    from eval.figures.alignment import alignment, causal_map
    alignment(read_records("runs/sweep")).savefig("alignment.png", dpi=180)

Both show, of each protocol, family and rung, the most frequent task at each run's last measured
step: the mean over runs, of pairs that the model answers rightly. Of a place that was searched at
several ranks the last search counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from data_injection.errors import ConfigError
from eval.alignment.controls import METRIC
from eval.alignment.interventions import COMPONENTS
from eval.figures import style
from eval.records import is_coordinate
from eval.scores.rows import task_rows
from eval.text import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES: dict[str, dict[str, Any]] = {
    "full_vector": {"label": "whole state", "color": "#1a1a1a", "linestyle": ":"},
    "das": {"label": "alignment search", "color": "#21618c", "marker": "o", "markersize": 4},
    "random_model": {"label": "the same in a random model", "color": "#c0392b"},
    "random_subspace": {"label": "random subspaces", "color": style.FAINT},
}


def alignment(frame: pd.DataFrame) -> Figure:
    """Interchange accuracy on held-out symbols by layer: a row per rung, a panel per variable and
    token. Raises ConfigError if no search was made."""
    groups = list(_groups(frame, METRIC))
    num = max(rows[["variable", "position"]].drop_duplicates().shape[0] for _, rows in groups)
    figure = style.new_figure(9.3, 2.6 * len(groups) + 0.5)
    parts = style.headed(figure, [title for title, _ in groups])
    for part, (_, rows) in zip(parts, groups, strict=True):
        held_out = "symbols" if (rows.held_out == "symbols").any() else "pairs"
        by_panel = list(rows[rows.held_out == held_out].groupby(["variable", "position"]))
        panels = style.panels(part, len(by_panel), abreast=num, sharey=True)[0]
        for axis, ((variable, position), lines) in zip(panels, by_panel, strict=False):
            for control, look in LINES.items():
                mean = lines[lines.control == control].groupby("layer").value.mean()
                axis.plot(mean.index, mean, linewidth=1.6, **look)
            axis.axhline(float(lines.majority.mean()), **style.THRESHOLD)
            style.dress(axis, f"{variable} at token {int(position)}", "layer", grid=True)
            axis.set_xticks(sorted(set(lines.layer)))
            axis.set_ylim(-0.04, 1.04)
        panels[0].set_ylabel(f"held-out {held_out}", fontsize=9)
    style.legend_below(figure, parts[0].axes[0].get_legend_handles_labels()[0], 4, fontsize=8)
    return figure


def causal_map(frame: pd.DataFrame) -> Figure:
    """Share of the logit difference that a patch brings: layer x token, a panel per variable and
    component, a row per rung. Raises ConfigError if nothing was patched."""
    groups = list(_groups(frame, "causal_recovered"))
    num = max(rows.variable.nunique() for _, rows in groups) * len(COMPONENTS)
    height = 1.2 + 0.34 * max(rows.layer.nunique() for _, rows in groups)
    figure = style.new_figure(9.3, height * len(groups) + 0.3)
    parts = style.headed(figure, [title for title, _ in groups])
    for part, (_, rows) in zip(parts, groups, strict=True):
        panels = iter(part.subplots(1, num, squeeze=False)[0])
        for variable, of_variable in rows.groupby("variable"):
            for component in COMPONENTS:
                cells = of_variable[of_variable.component == component].pivot_table(
                    index="layer", columns="position", values="value"
                )
                _draw_cells(next(panels), cells, f"{variable}, {component}")
        for axis in panels:
            axis.set_visible(False)
    return figure


def _groups(frame: pd.DataFrame, metric: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Title and rows of each protocol, family and rung: its most frequent task at the last step."""
    chosen = frame[frame.metric == metric]
    if chosen.empty:
        rule = "hold no alignment search"
        raise ConfigError(key="records", rule=rule, remedy="run `olmo-ext features RUN --das`")
    # Of the subsets of pairs, not of the task's examples, which task_rows would keep whole.
    rows = task_rows(chosen[chosen.subset == "answered"].assign(subset="all"))
    if rows.empty:
        rule, remedy = "hold no model that answers any pair rightly", "train it further"
        raise ConfigError(key="records", rule=rule, remedy=remedy)
    rows = rows[
        rows.step == rows.groupby(["run", "plan_hash", "seed", "task"]).step.transform("max")
    ]
    key = ["protocol", "family", "params", "rung"]
    rows = rows[rows.rate_per_step == rows.groupby(key).rate_per_step.transform("max")]
    # Ranks are measurements of their own: a mean over them would be of no subspace.
    search = [name for name in rows if is_coordinate(name, metric=metric) and name != "rank"]
    rows = rows.drop_duplicates(search, keep="last")
    for (protocol, family, _, rung), part in rows.groupby(key):
        runs = part[["run", "seed"]].drop_duplicates().shape[0]
        rate = number(part.rate_per_step.iloc[0])
        mean = f"mean of {runs} runs" if runs > 1 else "one run"
        title = f"{rung}, {style.plain(family)}, {protocol} protocol, {rate} per step"
        yield f"{title}: {mean}", part


def _draw_cells(axis: Any, cells: pd.DataFrame, title: str) -> None:
    if cells.empty:
        axis.set_visible(False)
        return
    axis.imshow(cells, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
    for (row, column), value in np.ndenumerate(cells.to_numpy()):
        if np.isfinite(value):
            colour = "white" if value > 0.6 else style.ON_LIGHT
            axis.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=colour
            )
    axis.set_xticks(range(cells.shape[1]), [f"{int(position)}" for position in cells.columns])
    axis.set_yticks(range(cells.shape[0]), [f"{int(layer)}" for layer in cells.index])
    style.dress(axis, title, "token", "layer")
    axis.tick_params(labelsize=7.5, length=0)
    axis.spines[:].set_visible(True)
