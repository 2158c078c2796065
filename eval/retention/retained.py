"""How much of a burst's gain is left after a lag, from the records of the retention callback.

    table = retention(read_records("runs/matched_frequency"))      # a row per cell, kind and lag
    half_lives(table)

    gain_0 = L(before) - L(right after)        retained(lag) = (L(before) - L(lag)) / gain_0

L is the choice loss (content), or the label loss where records have no other: there a burst may
have taught no more than that some label comes. Drift moves it too, and what earlier bursts taught
is still being forgotten. A control run is the same run whose schedule leaves that burst out: bit
for bit the same until there, which its loss before the burst proves. With it, kind "net" is
(L_control(lag) - L(lag)) / (L_control(0) - L(0)), and kind "control" what the run without the burst
would seem to have kept of gain_0: the null.

Under Adam a burst's gradient enters the weights with 1 - beta1 of its weight in the burst's own
step and with 1 - beta1^(k+1) by lag k: a tenth at once, 89% by lag 20 for .9. So net shares of
gain_0 rise to 9 before they can fall, and tell momentum from memory badly; `gain_lag=20` takes the
gain, and shares from there on, when it has nearly all arrived.

Shares are ratios of means over seeds with Fieller's 95% interval. That interval exists if the
gain's own 95% interval leaves 0 out; where it does not, the share is undefined (NaN), not 0.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from data_injection.errors import ConfigError
from eval.scores.cells import CELL
from eval.scores.rows import once, told_apart
from eval.statistics import MIN_SEEDS, per_group, seed_fields, share

log = logging.getLogger(__name__)

RUN = (
    *("folder", "run", "rung", "params", "seed", "learning_rate", "plan_hash", "protocol"),
    *("task", "family", "variant", "rate_per_step", "gap", "split", "subset"),
)
"""The columns (where a frame has them) of which a burst has one value."""

TWIN = ("rung", "params", "seed", "learning_rate", "task", "split", "subset", "burst_step", "lag")
"""What a burst and its control share, besides the loss before it."""

SINCE = 0.5
"""Share of a run after which its bursts count where they have no controls."""

SPLITS = {"test": "generalised", "train": "memorised"}
"""The test split, and the very instances of each burst."""


def half_life(lags: Sequence[float], retained: Sequence[float], *, gain_lag: int = 0) -> float:
    """The lag at which the retained share first falls to 1/2, by interpolation on log lag.

    gain_lag: the lag at which the gain was read, where the share is 1; it must be the first of
    `lags`. Between lag 0 and the next the interpolation is linear. inf if the share stays above 1/2
    at all lags; NaN if it is undefined or if `gain_lag` is missing.
    """
    order = np.argsort(np.asarray(lags, dtype=float))
    lag = np.asarray(lags, dtype=float)[order]
    kept = np.asarray(retained, dtype=float)[order]
    if len(lag) == 0 or lag[0] != gain_lag or np.isnan(kept).any():
        return math.nan
    below = np.flatnonzero(kept <= 0.5)
    if len(below) == 0:
        return math.inf
    i = int(below[0])
    if i == 0:
        return float(gain_lag)
    fraction = float((kept[i - 1] - 0.5) / (kept[i - 1] - kept[i]))
    if lag[i - 1] == 0:
        return fraction * float(lag[i])
    return float(lag[i - 1] * (lag[i] / lag[i - 1]) ** fraction)


SLACK = 0.05
"""Nats beyond the host losses measured that still count as their end: noise of a few batches."""


def share_at_loss(loss: float, losses: ArrayLike, shares: ArrayLike) -> float:
    """What a narrow model keeps at a host loss, linear between its hosts; NaN outside of them."""
    order = np.argsort(losses)
    known = np.asarray(losses, dtype=float)[order]
    if not known[0] - SLACK <= loss <= known[-1] + SLACK:
        return math.nan
    return float(np.interp(loss, known, np.asarray(shares, dtype=float)[order]))


def loss_metric(frame: pd.DataFrame) -> str:
    """choice_loss; label_loss if some records are from before it was measured apart, so that no run
    falls out, or loses its first part, beside newer ones."""
    choice, label = (
        frame.metric.str.startswith(name).sum() for name in ("choice_loss", "label_loss")
    )
    return "choice_loss" if choice >= max(label, 1) else "label_loss"


@once
def bursts(frame: pd.DataFrame, *, metric: str | None = None, gain_lag: int = 0) -> pd.DataFrame:
    """One row per run, task, split, burst and lag, with the losses of the control run if there is.

    Columns: RUN, burst, burst_step, instances, lag, before, after (at gain_lag), value, and
    value_control, after_control (NaN without a control). Only bursts that were measured at gain_lag
    and lags from there on. Runs that leave a burst out have no rows of their own. Raises
    ConfigError if the retention callback measured nothing. `metric` None is `loss_metric`'s.
    """
    metric = metric or loss_metric(frame)
    if "burst" not in frame or frame[frame.metric == f"{metric}_before"].empty:
        rule = f"hold no {metric} around bursts"
        remedy = "add `retention: {}` to the callbacks of a run whose task comes in bursts"
        raise ConfigError(key="records", rule=rule, remedy=remedy)
    frame = frame.assign(family=frame.family + told_apart(frame))
    key = [name for name in RUN if name in frame] + ["burst", "burst_step", "instances"]
    lags = frame[frame.metric == f"{metric}_lag"][[*key, "lag", "value"]]
    before = frame[frame.metric == f"{metric}_before"][[*key, "value"]]
    lags = lags[lags.lag >= gain_lag]
    after = lags[lags.lag == gain_lag].drop(columns="lag")
    # The merges keep rows with missing columns: pandas takes NaN for equal to NaN.
    table = lags.merge(before.rename(columns={"value": "before"}), on=key)
    table = table.merge(after.rename(columns={"value": "after"}), on=key)
    controls = table[table.instances == 0]
    full = table.merge(controls[["run", "plan_hash"]].drop_duplicates(), how="left", indicator=True)
    return _with_controls(full[full._merge == "left_only"].drop(columns="_merge"), controls)


def _with_controls(table: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """The bursts, each with the losses of the run that left it out."""
    twin = [name for name in TWIN if name in table]
    measured = ["before", "after", "value"]
    paired = table.reset_index(names="_row").merge(
        controls[[*twin, *measured]], on=twin, suffixes=("", "_control")
    )
    # Until the burst the runs are one: the same loss, to the last bit on one machine.
    same = np.isclose(paired.before, paired.before_control, rtol=1e-6, atol=0)
    used = set(zip(*(paired[same][name] for name in twin), strict=True))
    if alone := len(set(zip(*(controls[name] for name in twin), strict=True)) - used):
        log.warning("%d control measurements belong to no run with that burst; left out", alone)
    columns = ["after_control", "value_control"]
    return table.join(paired[same].drop_duplicates("_row").set_index("_row")[columns])


@once
def retention(
    frame: pd.DataFrame, *, metric: str | None = None, split: str = "test", gain_lag: int = 0
) -> pd.DataFrame:
    """Retained shares: one row per cell, kind and lag.

    A cell whose bursts have controls is read at those bursts, all kinds alike; another at its
    bursts in the part of the run after SINCE, where it has no "net" and no "control".

    gain_lag: 0 is the definition above; a later lag waits for Adam (see there).

    Columns: CELL, variant, gap, subset, split, gain_lag, kind ("retained", "net", "control"), lag,
    value, low, high (95%; NaN: undefined), effect, effect_low, effect_high (the numerator in nats:
    how far the loss lies below the one before the burst or, net, the control's), gain, gain_low,
    gain_high (the denominator), n_seeds, n_bursts (over all seeds), controlled, provisional.
    Raises ConfigError if nothing was measured there.
    """
    table = bursts(frame, metric=metric, gain_lag=gain_lag)
    last = frame.groupby("run").step.max()
    table = table[table.split == split].assign(last=table.run.map(last))
    if table.empty:
        rule = f"hold no bursts of the {split!r} split with lag {gain_lag}"
        remedy = "the split is test or train, and lag 0 is always there"
        raise ConfigError(key="records", rule=rule, remedy=remedy)
    cell = [name for name in (*CELL, "variant", "gap", "subset") if name in table]
    rows: list[dict[str, object]] = []
    for key, group in table.groupby(cell, sort=True, dropna=False):
        controlled = bool(group.value_control.notna().any())
        late = group.burst_step >= SINCE * group["last"]
        chosen = group[group.value_control.notna()] if controlled else group[late]
        common = dict(zip(cell, key, strict=True)) | {"split": split, "gain_lag": gain_lag}
        common |= {"controlled": controlled}
        rows += [common | row for row in _shares(chosen, controlled)]
    if not rows:
        rule = f"hold no burst after {SINCE:g} of a run's steps, and no control"
        remedy = "let the runs go on, or ask for earlier bursts"
        raise ConfigError(key="records", rule=rule, remedy=remedy)
    return pd.DataFrame(rows)


def _shares(group: pd.DataFrame, controlled: bool) -> Iterator[dict[str, object]]:
    """The rows of one cell."""
    gain = group.before - group.after
    kinds = {"retained": (group.before - group.value, gain)}
    if controlled:
        kinds["net"] = (group.value_control - group.value, group.after_control - group.after)
        kinds["control"] = (group.before - group.value_control, gain)
    for kind, (part, whole) in kinds.items():
        # A seed is one draw, however many bursts it was measured at.
        sums = group.assign(part=part, whole=whole).groupby(["lag", "seed"])[["part", "whole"]]
        for lag, seeds in sums.mean().groupby("lag"):
            yield {
                "kind": kind,
                "lag": int(lag),
                **asdict(share(seeds.part.tolist(), seeds.whole.tolist())),
                **seed_fields(seeds.part.tolist(), "effect"),
                **seed_fields(seeds.whole.tolist(), "gain"),
                "n_seeds": len(seeds),
                "n_bursts": int((group.lag == lag).sum()),
                "provisional": len(seeds) < MIN_SEEDS,
            }


def half_lives(table: pd.DataFrame) -> pd.DataFrame:
    """The half-life of each cell and kind of a `retention` table, the control apart.

    Columns: the cell's, kind, half_life (steps; inf: longer than max_lag; NaN: undefined), low and
    high (where the shares' bounds cross 1/2), max_lag, text.
    """
    cell = [name for name in (*CELL, "variant", "gap", "subset", "split") if name in table]
    return pd.DataFrame(per_group(table[table.kind != "control"], [*cell, "kind"], _half_life))


def _half_life(line: pd.DataFrame) -> dict[str, object]:
    lags, longest = line.lag.tolist(), int(line.lag.max())
    found = {
        name: half_life(lags, line[column].tolist(), gain_lag=int(line.gain_lag.iloc[0]))
        for name, column in (("half_life", "value"), ("low", "low"), ("high", "high"))
    }
    return found | {"max_lag": longest, "text": half_life_text(found["half_life"], max_lag=longest)}


def half_life_text(value: float, *, max_lag: int) -> str:
    """A half-life in words: "12.3", "> 24" or "undefined"."""
    if math.isnan(value):
        return "undefined"
    return f"> {max_lag}" if math.isinf(value) else f"{value:.3g}"
