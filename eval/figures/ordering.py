"""The theory's order of the cells beside that of size x frequency, from records.

    ordering_table(read_records("runs/sweep"))       # a row per set of comparable runs
    ordering(read_records("runs/sweep")).savefig("ordering.png", dpi=180)

What the theory predicts for a cell, and why it is not tuned: theory/advice/ordering.py. Sets are
runs of one protocol, length, batch and learning rate, all families together: to order them is the
claim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from data_injection.errors import ConfigError
from eval.figures import style
from eval.scores.cells import LEARNED_SCORE, run_rows
from eval.scores.rows import run_names
from eval.statistics import MIN_SEEDS
from theory.advice.ordering import Ordering, compare, utility_margins

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDY_BITS = {
    "comparison": math.lgamma(101) / math.log(2),
    "modular_addition": math.lgamma(101) / math.log(2),
}
"""Of records that name no bits: the study's 100 symbols, or the record would name a variant."""

TIMED = ("window", "burst", "trace")
"""Schedules whose timing this prediction knows nothing of."""


def ordering_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per set of comparable runs.

    Columns: protocol, setting, rows, runs, seeds, rho_theory, rho_baseline, difference, null_low,
    null_high (95% when the predictors change places at random), p_value, claim (the difference is
    above null_high, over three seeds or more). Raises ConfigError where no set has two sizes.
    """
    return pd.DataFrame(
        {"protocol": protocol, "setting": setting} | _as_row(rows, found)
        for protocol, setting, rows, found in _sets(frame)
    )


def ordering(frame: pd.DataFrame) -> Figure:
    """Score against the theory's margin (left) and log2 size x frequency (right), a row a set."""
    sets = list(_sets(frame))
    figure = style.new_figure(8.6, 3.3 * len(sets) + 0.5)
    axes = figure.subplots(len(sets), 2, sharey=True, squeeze=False)
    for (left, right), (protocol, setting, rows, found) in zip(axes, sets, strict=True):
        _draw(left, rows, "theory")
        _draw(right, rows, "baseline")
        below = f"theory: log2 N / N_crit, up to a constant (Spearman {found.rho_theory:.3f})"
        style.dress(left, f"{protocol}, {setting}", below, "test score", loc="left")
        word = "above" if _claimed(rows, found) else "not above"
        chance = f"{word} the 95% of chance [{found.null_low:.3f}, {found.null_high:.3f}]"
        below = f"log2 width x rate per step (Spearman {found.rho_baseline:.3f})"
        style.dress(right, f"difference {found.difference:+.3f}, {chance}", below, loc="left")
    axes[0, 0].legend(fontsize=7, frameon=False, ncols=2)
    return figure


def _sets(frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame, Ordering]]:
    rows = _predicted(run_rows(frame))
    found = 0
    rows["several"] = rows.groupby(["rung", "params"]).learning_rate.transform("nunique") > 1
    rows["apart"] = rows.learning_rate.where(rows.several, 0.0)
    for key, group in rows.groupby(["protocol", "step", "batch_size", "apart"], sort=True):
        protocol, step, batch, rate = key
        if group.params.nunique() < 2:
            continue
        try:
            compared = compare(group.theory, group.baseline, group.value, group.cluster)
        except ValueError:
            continue
        found += 1
        setting = f"{int(step):,} steps of {int(batch)} rows"
        setting += f", learning rate {rate:g}" if rate else ""
        yield str(protocol), setting, group, compared
    if not found:
        rule = "hold no two sizes whose cells the theory could order"
        raise ConfigError(key="records", rule=rule, remedy="train a sweep over size and frequency")


def _predicted(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with `width`, `theory`, `baseline` and `cluster`; tasks out of its reach left out.

    Left out: other schedules than a steady one, and runs whose every row carries an example, since
    without host text nothing competes.
    """
    plain = rows.family.map(STUDY_BITS).where(rows.variant.fillna("") == "")
    # Of a rung's name such as w64 where no record has d_model.
    named = pd.to_numeric(rows.rung.astype(str).str.extract(r"^w(\d+)$")[0], errors="coerce")
    rows = rows.assign(
        width=rows.d_model.astype(float).fillna(named),
        bits=rows.bits.astype(float).fillna(plain.astype(float)),
        learning_rate=rows.learning_rate.fillna(0.0),
        batch_size=rows.batch_size.fillna((rows.rate_per_step / rows.rate_per_sequence).round()),
        cluster=run_names(rows),
    )
    load = rows.rate_per_step.groupby(rows.cluster).transform("sum")
    known = rows[["width", "bits", "rate_per_token", "batch_size"]].notna().all(axis=1)
    steady = ~rows.timing.isin(TIMED) & (rows.rate_per_step > 0)
    rows = rows[known & steady & (load < rows.batch_size)].copy()
    if rows.empty:
        rule = "hold no task whose place in the theory's order is known"
        raise ConfigError(key="records", rule=rule)
    rows["theory"] = 0.0
    for _, run in rows.groupby("cluster"):
        margins = utility_margins(
            width=float(run.width.iloc[0]),
            shares=run.rate_per_token.tolist(),
            bits=run.bits.tolist(),
        )
        rows.loc[run.index, "theory"] = margins / math.log(2)
    rows["baseline"] = np.log2(rows.width * rows.rate_per_step)
    return rows


def _claimed(rows: pd.DataFrame, found: Ordering) -> bool:
    return found.claim and rows.seed.nunique() >= MIN_SEEDS


def _as_row(rows: pd.DataFrame, found: Ordering) -> dict[str, Any]:
    counts = {"rows": len(rows), "runs": found.num_runs, "seeds": int(rows.seed.nunique())}
    measured = {name: v for name, v in asdict(found).items() if not name.startswith("num_")}
    return counts | measured | {"claim": _claimed(rows, found)}


def _draw(axis: Any, rows: pd.DataFrame, column: str) -> None:
    """A mark a run and task, its colour the size and its shape the family."""
    from matplotlib import colormaps

    sizes = style.sizes(rows)
    colours = colormaps["viridis"](np.linspace(0.1, 0.9, len(sizes)))
    families = sorted(set(rows.family))
    for (_, rung), colour in zip(sizes, colours, strict=True):
        for family, marker in zip(families, style.MARKERS * len(families), strict=False):
            part = rows[(rows.rung == rung) & (rows.family == family)]
            axis.plot(part[column], part.value, marker, color=colour, markersize=4, alpha=0.8,
                      label=rung if family == families[0] else None)  # fmt: skip
    axis.axhline(LEARNED_SCORE, zorder=1, **style.THRESHOLD)
