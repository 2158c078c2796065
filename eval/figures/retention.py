"""The study's Figs. 6b and 8 from records: equal frequency at unequal gaps, and what bursts leave.

    gaps(read_records("runs/matched_frequency")).savefig("gaps.png", dpi=180)
    forgetting(read_records("runs/matched_frequency")).savefig("forgetting.png", dpi=180)

As in eval/figures/heatmap.py every function returns a Figure and touches no global state. Bars and
bands are 95% intervals over seeds; nulls are drawn; what is undefined is said, not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from data_injection.errors import ConfigError
from eval.figures import style
from eval.retention.matched_frequency import GROUP, matched_frequency
from eval.retention.retained import SPLITS, half_life_text, half_lives, loss_metric, retention
from eval.scores.cells import LEARNED_SCORE
from eval.text import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAIN_LAG = 20
"""When Adam (beta1 .9) has put in 89% of a burst's gradient; see eval.retention.retained."""

NULL: dict[str, Any] = {"color": style.INK, "linewidth": 0.9, "linestyle": ":"}

PANEL = ("protocol", "family", "variant", "rate_per_step", "gap")


def gaps(frame: pd.DataFrame, *, split: str = "test") -> Figure:
    """Fig. 6b: loss and score against the gap at equal frequency, a line per rung.

    Filled: at the end of the run. Hollow: right after the last burst, where it was measured.
    """
    loss = loss_metric(frame)
    metrics = (loss, "score")
    ends = {metric: matched_frequency(frame, metric=metric, split=split) for metric in metrics}
    shown = [key for key, _ in ends[loss].groupby(list(GROUP))]
    looks = style.rung_looks(ends[loss])
    figure = style.new_figure(8.6, 3.4 * len(shown) + 0.5)
    for axes, key in zip(figure.subplots(len(shown), 2, squeeze=False), shown, strict=True):
        for axis, metric in zip(axes, metrics, strict=True):
            _draw_gaps(axis, style.panel_rows(ends[metric], GROUP, key), looks)
            after = _after(frame, metric, split, key)
            for rung, line in after.groupby("rung"):
                hollow = looks[rung] | {"markerfacecolor": style.PAPER, "linestyle": "none"}
                axis.plot(line.gap, line.value, markersize=5, **hollow)
            title = _group_title(dict(zip(GROUP, key, strict=True))) if axis is axes[0] else ""
            _dress_gaps(axis, style.panel_rows(ends[metric], GROUP, key), metric, split, title)
    _legend_of_gaps(figure, ends[loss], looks, hollow=not after.empty)
    return figure


def forgetting(frame: pd.DataFrame, *, split: str = "test", gain_lag: int = GAIN_LAG) -> Figure:
    """Fig. 8: what a burst did to the loss, in nats, and the share of it that is kept; by lag.

    A row per task and rate: of schedules with a control, or else of all, the one measured longest.
    Left, a colour per rung: the loss against the one before the burst, and dashed the control's.
    Right: the share kept of the gain at `gain_lag`, net of the control where there is one.
    """
    loss = style.plain(loss_metric(frame))
    course = _longest(retention(frame, split=split))
    shares = retention(frame, split=split, gain_lag=gain_lag)
    rows = [key for key, _ in course.groupby(list(PANEL), dropna=False)]
    looks = style.rung_looks(course)
    figure = style.new_figure(8.6, 3.3 * len(rows) + 0.8)
    for (left, right), key in zip(figure.subplots(len(rows), 2, squeeze=False), rows, strict=True):
        panel = style.panel_rows(course, PANEL, key)
        _draw_course(left, panel, looks)
        _draw_shares(right, style.panel_rows(shares, PANEL, key), looks)
        net = "net of the control: " if panel.controlled.any() else ""
        share = f"{SPLITS[split]}, {net}share of the gain at lag {gain_lag}"
        fallen = f"{split} {loss} - before the burst, nats"
        for axis, title, label in ((left, _panel_title(panel), fallen), (right, share, "")):
            _lag_axis(axis, sorted(set(panel.lag)))
            style.dress(axis, title, "steps since the burst", label, loc="left")
    _legend_of_forgetting(figure, course, looks)
    return figure


def _longest(table: pd.DataFrame) -> pd.DataFrame:
    """Of each task and rate the schedule with the longest course: shorter ones show its start."""
    kept = []
    for _, group in table.groupby(["protocol", "family", "rate_per_step"]):
        some = group[group.controlled] if group.controlled.any() else group
        longest = some[some.lag == some.lag.max()].iloc[0]
        kept.append(style.panel_rows(some, PANEL, longest[list(PANEL)].tolist()))
    return pd.concat(kept)


def _after(frame: pd.DataFrame, metric: str, split: str, key: Sequence[Any]) -> pd.DataFrame:
    try:
        table = matched_frequency(frame, metric=metric, split=split, when="after")
    except ConfigError:
        return pd.DataFrame(columns=["rung", "gap", "value"])
    return style.panel_rows(table, GROUP, key)


def _draw_gaps(axis: Any, table: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> None:
    for i, (rung, line) in enumerate(table.groupby("rung")):
        spread = np.array([line.value - line.low, line.high - line.value])
        shifted = line.gap * 1.03**i  # so that bars do not cover one another
        axis.errorbar(
            shifted, line.value, yerr=np.nan_to_num(spread), capsize=2.5, linewidth=1.6,
            markersize=5, **looks[str(rung)],
        )  # fmt: skip


def _dress_gaps(axis: Any, table: pd.DataFrame, metric: str, split: str, title: str) -> None:
    axis.axhline(float(table.null.iloc[0]), zorder=1, **NULL)
    if metric == "score":
        axis.axhline(LEARNED_SCORE, **style.THRESHOLD)
        axis.set_ylim(-0.4, 1.1)
    else:
        axis.set_ylim(bottom=0)
    every = sorted(set(table.gap))
    axis.set_xscale("log")
    style.place_ticks(axis.xaxis, every, [str(gap) for gap in every])
    axis.set_xlim(every[0] / 1.3, every[-1] * 1.3)
    label = f"{split} {style.plain(metric)}"
    style.dress(axis, title, "gap: steps from burst to burst", label, loc="left")


def _draw_course(axis: Any, panel: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> None:
    kinds = (("retained", "-", 1.8), ("control", (0, (4, 2)), 1.2))
    for (rung, look), (kind, dashes, width) in product(looks.items(), kinds):
        line = panel[(panel.rung == rung) & (panel.kind == kind)]
        axis.plot(
            line.lag, -line.effect, linewidth=width, markersize=4, zorder=3,
            **look | {"linestyle": dashes},
        )  # fmt: skip
        axis.fill_between(
            line.lag, -line.effect_high, -line.effect_low, color=look["color"], alpha=0.13, lw=0
        )
    axis.axhline(0, zorder=1, **style.THRESHOLD)


def _draw_shares(axis: Any, panel: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> None:
    said = []
    main = panel[panel.kind == "net"] if panel.controlled.any() else panel
    lives = half_lives(main) if len(main) else main
    for rung, look in looks.items():
        line = main[main.rung == rung]
        if line.empty:
            said.append((f"{rung}: not measured at that lag", look["color"]))
            continue
        said.append((_life_text(rung, line, lives), look["color"]))
        axis.plot(line.lag, line.value, linewidth=1.8, markersize=4, zorder=3, **look)
        axis.fill_between(line.lag, line.low, line.high, color=look["color"], alpha=0.15, lw=0)
    for i, (text, colour) in enumerate(reversed(said)):
        axis.text(
            0.03, 0.04 + 0.07 * i, text, transform=axis.transAxes, fontsize=8, color=colour
        )  # fmt: skip
    for height in (0.0, 0.5, 1.0):
        axis.axhline(height, zorder=1, **style.THRESHOLD | {"linewidth": 0.6})
    axis.set_ylim(-0.75, 1.75)


def _lag_axis(axis: Any, lags: Sequence[int]) -> None:
    axis.set_xscale("symlog", linthresh=1, linscale=0.5)
    # Labels that would touch are left out: of lags closer than a quarter only the first is named.
    named = [lags[0]]
    for lag in lags[1:]:
        if lag >= 1.25 * named[-1] + 0.5:
            named.append(lag)
    style.place_ticks(axis.xaxis, named, [str(lag) for lag in named])
    axis.set_xlim(-0.2, lags[-1] * 1.2)


def _life_text(rung: str, line: pd.DataFrame, lives: pd.DataFrame) -> str:
    """ "w64: half-life 8.1 (5 to 13)", or why there is none."""
    gain = line.iloc[0]
    if line.value.isna().all():
        half = (gain.gain_high - gain.gain_low) / 2
        spread = f" ± {half:.2f}" if math.isfinite(half) else ""
        return f"{rung}: undefined, gain {gain.gain:.2f}{spread}"
    life = lives[lives.rung == rung].iloc[0]
    ends = [half_life_text(value, max_lag=life.max_lag) for value in (life.low, life.high)]
    between = "" if "undefined" in ends else f" ({ends[0]} to {ends[1]})"
    return f"{rung}: half-life {life.text}{between}, gain {gain.gain:.2f}"


def _panel_title(panel: pd.DataFrame) -> str:
    one = panel.iloc[0]
    what = f"{style.plain(one.family)}, {one.protocol}, rate {number(one.rate_per_step)}"
    return f"{what}\n{one.variant}{'' if one.controlled else '; no control'}"


def _group_title(key: dict[str, Any]) -> str:
    setting = f", {key['setting']}" if key["setting"] else ""
    rate = f"{number(key['rate_per_step'])} a step, {key['end']:,.0f} steps"
    return f"{style.plain(key['family'])}, {key['protocol']}{setting}: {rate}"


def _legend_of_gaps(
    figure: Any, table: pd.DataFrame, looks: dict[str, dict[str, Any]], *, hollow: bool
) -> None:
    seeds = int(table.n_seeds.min())
    bars = f"bars: 95% over {seeds} seeds" if seeds > 1 else "one seed"
    mark: dict[str, Any] = {"color": style.FAINT, "marker": "o", "linestyle": "none"}
    shown = looks | {f"end of run; {bars}": mark}
    if hollow:
        shown["right after the last burst"] = mark | {"markerfacecolor": style.PAPER}
    shown["null: label frequencies known, no more"] = NULL
    shown[f"learned: {LEARNED_SCORE:g}"] = style.THRESHOLD
    style.legend_below(figure, style.handles_of(shown), 3)


def _legend_of_forgetting(
    figure: Any, table: pd.DataFrame, looks: dict[str, dict[str, Any]]
) -> None:
    seeds = int(table.n_seeds.min())
    band = f"95% over {seeds} seeds" if seeds > 1 else "one seed, no interval"
    shown = looks | {f"with the burst; band: {band}": {"color": style.FAINT}}
    if table.controlled.any():
        dashed = {"color": style.FAINT, "linewidth": 1.2, "linestyle": (0, (4, 2))}
        shown["control: without it"] = dashed
    style.legend_below(figure, style.handles_of(shown, linewidth=1.8), 4)
