"""The size x frequency table: which rungs have learned a task at which rate.

    from eval.scores.cells import cells
    from eval.scores.staircase import learned_per_rung
    table = cells(read_records("runs/sweep"))      # one row per protocol, family, rung and rate

A task alone in its run and the same task in a mixture are never one cell: like tasks can transfer.
"Learned" has one meaning here and in every report (measurement rule): the mean test score over
seeds is at least .5, and with three seeds or more so is its lower 95% bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pandas as pd

from data_injection.errors import ConfigError
from eval.records import OF_THE_RUN, is_coordinate
from eval.scores.rows import once, task_rows
from eval.statistics import MIN_SEEDS, per_group, seed_fields, seed_interval

CELL = ("protocol", "family", "rung", "params", "rate_per_step")
"""What tells two cells apart; seeds, runs and tasks of one rate are averaged inside a cell."""

LEARNED_SCORE = 0.5

BESIDE = (
    *("score", "accuracy", "label_accuracy"),
    *("label_loss", "choice_loss", "format_loss", "label_entropy"),
)
"""Metrics that stand beside the chosen one: a score alone hides whether the format was learned."""


@once
def cells(
    frame: pd.DataFrame, *, metric: str = "score", split: str = "test",
    step: int | Literal["final"] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """One row per cell at one step, rungs by size, the most frequent rate first.

    step: None takes, per protocol, family and rung, the last step that all its runs measured (each
    run's own last step where they share none); "final" takes each run's own last step; a number
    takes that step. `step` and `step_max` give the range a cell was read at.

    Columns: CELL, then metric, split, n_seeds, n_runs, n_tasks, n_items, value (mean over seeds),
    low, high (95%), interval ("seeds": t over two seeds or more; "items": the record's own Wilson
    bounds, one seed; "none"), BESIDE in the same split, train_label_loss, train_choice_loss,
    majority, learned (from the test score whatever the metric), provisional (fewer than MIN_SEEDS
    seeds), exposures_per_example, rate_per_sequence, rate_per_token, step, step_max, tokens. What
    was not measured is NaN. Raises ConfigError if nothing was measured.
    """
    rows = task_rows(frame)
    rows = _at_step(rows, measured_rows(frame, metric=metric, split=split), step)
    chosen = (rows.metric == metric) & (rows.split == split)
    rows = rows[chosen.groupby([rows[name] for name in CELL]).transform("any")]
    table = pd.DataFrame(per_group(rows, CELL, lambda group: _cell(group, metric, split)))
    order = ["protocol", "family", "params", "rung", "rate_per_step"]
    return table.sort_values(order, ascending=[True, True, True, True, False], ignore_index=True)


def run_rows(
    frame: pd.DataFrame, *, metric: str = "score", split: str = "test", step: int | None = None
) -> pd.DataFrame:
    """One row per run and task, read at the step at which `cells` reads its cell.

    For what is fitted to runs and not to cells. Raises ConfigError if nothing was measured.
    """
    measured = measured_rows(frame, metric=metric, split=split)
    return _at_step(measured, measured, step).reset_index(drop=True)


def measured_rows(frame: pd.DataFrame, *, metric: str, split: str) -> pd.DataFrame:
    """The measurements of one kind. Raises ConfigError if there are none."""
    rows = task_rows(frame)
    measured = rows[(rows.metric == metric) & (rows.split == split)]
    if measured.empty:
        seen = sorted({f"{s} {m}" for s, m in zip(rows.split, rows.metric, strict=True)})
        seen = seen or sorted(set(frame.metric[frame.task != ""]))
        rule = f"hold no {split} {metric!r} of a task with labels, only {seen}"
        remedy = "run the accuracy measure, or ask for another metric or split"
        raise ConfigError(key="records", rule=rule, remedy=remedy)
    return measured


def groups(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(protocol, family, rows): what one panel may show, since nothing merges across these."""
    for (protocol, family), group in table.groupby(["protocol", "family"], sort=True):
        yield str(protocol), str(family), group


def _at_step(
    rows: pd.DataFrame, measured: pd.DataFrame, step: int | Literal["final"] | None
) -> pd.DataFrame:
    """The rows of each run at the step its rung is read at."""
    if isinstance(step, int):
        if not (measured.step == step).any():
            rule = f"must be one at which runs were measured: {_some(measured.step)}"
            raise ConfigError(key="step", value=step, rule=rule)
        return rows[rows.step == step]
    rung = ["protocol", "family", "rung", "params"]
    run = [*rung, "run", "seed"]
    final = measured.groupby(run).step.max().rename("_read_at")
    if step is None:
        for _, group in measured.groupby(rung):
            common = set.intersection(*(set(s) for _, s in group.groupby(["run", "seed"]).step))
            if common:
                of_rung = final.index.isin(pd.MultiIndex.from_frame(group[run]))
                final[of_rung] = max(common)
    return rows[rows.step == rows.join(final, on=run)["_read_at"]]


def _some(steps: pd.Series) -> str:
    known = sorted({int(s) for s in steps})
    return ", ".join(map(str, known if len(known) < 9 else [*known[:4], "...", *known[-3:]]))


def _cell(group: pd.DataFrame, metric: str, split: str) -> dict[str, object]:
    """Everything one cell says, from its rows of all metrics and splits at one step."""
    chosen = group[(group.metric == metric) & (group.split == split)]
    if several := _several(chosen, metric):
        rule = f"was measured at several values of {', '.join(several)}, which a cell would average"
        raise ConfigError(key=f"{split} {metric!r}", rule=rule, remedy="choose one of them first")
    # A seed is one draw, however many runs or like tasks of a mixture it was measured in.
    fields = seed_fields(_per_seed(group, metric, split))
    n_seeds = int(chosen.seed.nunique())
    interval = "seeds" if n_seeds > 1 else "none"
    if n_seeds == 1 and chosen[["low", "high"]].notna().any().all():
        fields |= chosen[["low", "high"]].mean().to_dict()
        interval = "items"
    scores = _per_seed(group, "score", "test")
    score, score_low, _ = seed_interval(scores)
    learned = score >= LEARNED_SCORE and (len(scores) < MIN_SEEDS or score_low >= LEARNED_SCORE)
    mean = chosen[list(MEANS)].astype(float).mean().to_dict()
    return {
        "metric": metric,
        "split": split,
        "n_seeds": n_seeds,
        "n_runs": len(chosen[["run", "seed"]].drop_duplicates()),
        "n_tasks": int(chosen.task.nunique()),
        "n_items": float(chosen.n.sum(min_count=1)),
        **fields,
        "interval": interval,
        **{name: seed_interval(_per_seed(group, name, split))[0] for name in BESIDE},
        **{
            f"train_{loss}": seed_interval(_per_seed(group, loss, "train"))[0]
            for loss in ("label_loss", "choice_loss")
        },
        "majority": mean.pop("majority"),
        "learned": bool(learned),
        "provisional": len(scores) < MIN_SEEDS,
        **mean,
        "step": int(chosen.step.min()),
        "step_max": int(chosen.step.max()),
        "tokens": float(chosen.tokens.mean()),
    }


def _several(chosen: pd.DataFrame, metric: str) -> list[str]:
    """Coordinates at several values of which one run has measured one task, whoever named them."""
    run = ["run", "seed", "task"]
    twice = chosen[chosen.duplicated(run, keep=False)]
    if twice.empty:
        return []
    names = [n for n in twice if n not in (*run, *OF_THE_RUN) and is_coordinate(n, metric=metric)]
    text = twice[names].astype(str)  # a field may hold lists
    return [n for n in names if (text.groupby([twice[k] for k in run])[n].nunique() > 1).any()]


MEANS = ("majority", "exposures_per_example", "rate_per_sequence", "rate_per_token")
"""Fields that a cell gives the mean of."""


def _per_seed(group: pd.DataFrame, metric: str, split: str) -> list[float]:
    rows = group[(group.metric == metric) & (group.split == split)]
    return [float(value) for value in rows.groupby("seed").value.mean()]
