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
from eval.statistics import MIN_SEEDS, per_group, seed_fields, seed_interval

CELL = ("protocol", "family", "rung", "params", "rate_per_step")
"""What tells two cells apart; seeds, runs and tasks of one rate are averaged inside a cell."""

LEARNED_SCORE = 0.5

BESIDE = (
    *("score", "accuracy", "label_accuracy"),
    *("label_loss", "choice_loss", "format_loss", "label_entropy"),
)
"""Metrics that stand beside the chosen one: a score alone hides whether the format was learned."""

FOUND = (
    *("subset", "variant", "schedule", "timing", "gap", "bits", "learning_rate", "d_model"),
    *("batch_size", "rate_per_sequence", "rate_per_token", "low", "high", "n", "majority"),
)
"""Columns that `task_rows` has whether a record said them or not."""


def cells(
    frame: pd.DataFrame,
    *,
    metric: str = "score",
    split: str = "test",
    step: int | Literal["final"] | None = None,
) -> pd.DataFrame:
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
    measured = rows[(rows.metric == metric) & (rows.split == split)]
    if measured.empty:
        seen = sorted({f"{s} {m}" for s, m in zip(rows.split, rows.metric, strict=True)})
        raise ConfigError(
            f"records hold no {split} {metric!r} of a task, only {seen or 'no task rows at all'}; "
            "run the accuracy measure, or ask for another metric or split"
        )
    rows = _at_step(rows, measured, step)
    chosen = (rows.metric == metric) & (rows.split == split)
    rows = rows[chosen.groupby([rows[name] for name in CELL]).transform("any")]
    table = pd.DataFrame(per_group(rows, CELL, lambda group: _cell(group, metric, split)))
    order = ["protocol", "family", "params", "rung", "rate_per_step"]
    ascending = [True, True, True, True, False]
    return table.sort_values(order, ascending=ascending, ignore_index=True)


def task_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The defined measurements of tasks over all their pairs: no step losses, no mirror subsets.

    Rates are rounded to four digits, so that a schedule that rounds its total over the run's steps
    still falls in its own column. Where a record has a variant (another schedule, offset, number of
    symbols or parameter than the study's), it joins the family's name, as does the learning rate
    where a rung has several: such cells never merge. Columns of FOUND that no record has are NaN;
    rates in the other units, and the timing, are worked out where older records do not say them.
    """
    rows = frame[(frame.task != "") & (frame.family != "") & frame.value.notna()]
    rows = rows.reindex(columns=[*rows, *(name for name in FOUND if name not in rows)])
    rows = rows[rows.subset.fillna("all") == "all"]
    rate = pd.Series([float(f"{value:.4g}") for value in rows.rate_per_step], index=rows.index)
    variant = rows.variant.fillna("")
    family = rows.family.where(variant == "", rows.family + ", " + variant)
    # Along the ladder it goes with the size; where one size has several, they are a control.
    several = rows.groupby(["family", "rung", "params"]).learning_rate.transform("nunique") > 1
    # As text even where there is no row to map.
    text = ", learning rate " + rows.learning_rate.map("{:g}".format).astype(str)
    tokens_per_step = rows.tokens / rows.step.where(rows.step > 0)
    return rows.assign(
        rate_per_step=rate,
        rate_per_sequence=rows.rate_per_sequence.astype(float).fillna(rate / rows.batch_size),
        rate_per_token=rows.rate_per_token.astype(float).fillna(rate / tokens_per_step),
        timing=timing(rows),
        family=family.where(~several, family + text),
    )


def timing(rows: pd.DataFrame) -> pd.Series:
    """The kind of schedule of each row: even, burst, window, ...

    Records of before say it in words alone: their schedule, or variant, begins with it.
    """
    words = rows.schedule.fillna(rows.variant).fillna("").astype(str)
    known = words.str.extract(r"^(burst|window|trace|random|bernoulli)\b")[0].fillna("even")
    return rows.timing.fillna(known)


def setting(rows: pd.DataFrame) -> pd.Series:
    """What sets a task apart from the study's besides its schedule: "40 symbols", or nothing."""
    said = rows[["variant", "schedule"]].fillna("").astype(str).itertuples(index=False)
    text = [one.variant.removeprefix(one.schedule).removeprefix(", ") for one in said]
    return pd.Series(text, index=rows.index, dtype=object)


def run_rows(
    frame: pd.DataFrame, *, metric: str = "score", split: str = "test", step: int | None = None
) -> pd.DataFrame:
    """One row per run and task, read at the step at which `cells` reads its cell.

    For what is fitted to runs and not to cells. Raises ConfigError if nothing was measured.
    """
    rows = task_rows(frame)
    measured = rows[(rows.metric == metric) & (rows.split == split)]
    if measured.empty:
        raise ConfigError(f"records hold no {split} {metric!r} of a task; run the accuracy measure")
    return _at_step(measured, measured, step).reset_index(drop=True)


def run_names(rows: pd.DataFrame) -> pd.Series:
    """A name for each run: two folders may hold one of the same name, and a name several seeds."""
    told = [name for name in ("folder", "run", "rung", "seed") if name in rows]
    return rows[told].astype(str).agg(" ".join, axis=1)


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
            raise ConfigError(f"no run was measured at step {step}, only at {_some(measured.step)}")
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
    read_at = rows.join(final, on=run)["_read_at"]
    return rows[rows.step == read_at]


def _some(steps: pd.Series) -> str:
    known = sorted({int(s) for s in steps})
    return ", ".join(map(str, known if len(known) < 9 else [*known[:4], "...", *known[-3:]]))


def _cell(group: pd.DataFrame, metric: str, split: str) -> dict[str, object]:
    """Everything one cell says, from its rows of all metrics and splits at one step."""
    chosen = group[(group.metric == metric) & (group.split == split)]
    if several := _several(chosen, metric):
        raise ConfigError(
            f"{split} {metric!r} was measured at several values of {', '.join(several)}, which a "
            "cell would average; choose one of them first"
        )
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
