"""The tables of docs/findings.md on the chain over widths: a burst in the host of each.

    chain(final_rows, every_row)      # each a Markdown table, as in eval.findings.controls

Width 16 is the sweep `closed_host`, 64 `chain`, 32 and 128 `widths`, each at its host's best rate.
What a table finds too few seeds of it leaves out, and says so by not showing it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from eval.figures import style
from eval.findings.contrasts import estimate, sweep_of
from eval.findings.controls import Table, markdown, mean
from eval.findings.hosts import (
    AFTER,
    BURST,
    EASY,
    HOSTS,
    LAST,
    LEVELS,
    METRICS,
    OPEN,
    SWEEP,
    by_seed,
    host_loss,
    levels,
    net,
    paired,
    share_text,
    told,
    twins_of,
)
from eval.interference.budget import HOST
from eval.retention.retained import share_at_loss
from eval.statistics import MIN_SEEDS, share
from theory.advice.accumulation import Balance, balance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Shares = Mapping[str, pd.Series]
"""Of what a burst brought: by metric, a value a seed."""

WIDE, MORE = "chain", "widths"
WIDTHS = {16: (SWEEP, OPEN), 32: (MORE, "w32"), 64: (WIDE, OPEN), 128: (MORE, "w128")}
"""The cell of each width in open text at its own host's best learning rate."""

NARROW = tuple((SWEEP, host) for host in HOSTS)
"""The cells of width 16, on whose shares by host loss `beyond` stands."""

SAME_RATE = "text_1e_2"
"""Open text at the narrow width's learning rate: the label of the wide one's control."""

CELLS = {
    (SWEEP, OPEN): "w16 at 0.01",
    (MORE, "w32"): "w32 at 0.003",
    (WIDE, OPEN): "w64 at 0.003",
    (WIDE, SAME_RATE): "w64 at 0.01",
    (MORE, "w128"): "w128 at 0.001",
    (SWEEP, EASY): "w16 at 0.01",
    (WIDE, EASY): "w64 at 0.003",
}
"""Width and learning rate of the cells of the chain."""

BURST_RATE, CEILING = 16.0, 0.9


@dataclass(frozen=True)
class Links:
    """What one width in one host has of the chain, a value a seed each; empty if not measured."""

    host_loss: pd.Series
    pull: pd.Series
    """|population gradient of the host|^2, and beside it the noise of a batch."""

    noise: pd.Series
    inner: pd.Series
    """<g_nt, g_r> in nats a unit step; below 0 harms."""

    forgotten: pd.Series
    """Nats a step, in the steps after the burst."""

    gained: Mapping[str, pd.Series]
    """By metric: what the burst brought over the twin, and what is left at the last lag."""

    left: Mapping[str, pd.Series]
    early: Mapping[str, pd.Series]
    """Left at lag 100, where 1e-2 has moved about as far as 3e-3 has at lag 300."""

    @property
    def shares(self) -> dict[str, pd.Series]:
        """By metric, a value a seed; NaN where the gain is not positive."""
        return {metric: by_seed(self.left[metric], self.gained[metric]) for metric in METRICS}


def links(every: pd.DataFrame, sweep: str, host: str) -> Links:
    rows = twins_of(every, host, sweep)
    rows = rows[rows.twin == "burst"]
    after = rows[(rows.step > AFTER) & (rows.step <= LAST)]

    def per_seed(metric: str, column: str = "value") -> pd.Series:
        chosen = after[after.metric == metric]
        return chosen.groupby("seed")[column].mean() if len(chosen) else pd.Series(dtype=float)

    budget = after[(after.metric == "budget") & (after.source == HOST)]
    gains = {metric: net(every, host, metric, sweep) for metric in METRICS}
    return Links(
        host_loss=host_loss(every, host, sweep),
        pull=per_seed("pull_g_nt"),
        noise=per_seed("pull_g_nt", "noise"),
        inner=per_seed("cos_g_nt", "inner"),
        forgotten=budget.groupby("seed").value.sum() / (LAST - AFTER),
        gained={metric: gain[AFTER] for metric, gain in gains.items()},
        left={metric: gain[LAST] for metric, gain in gains.items()},
        early={metric: gain[AFTER + 100] for metric, gain in gains.items()},
    )


def measured(every: pd.DataFrame) -> dict[tuple[str, str], Links]:
    """By CELLS, those with seeds enough."""
    return {cell: links(every, *cell) for cell in CELLS if _enough(every, *cell)}


def _enough(every: pd.DataFrame, sweep: str, host: str) -> bool:
    rows = twins_of(every, host, sweep)
    rows = rows[(rows.metric == "score") & (rows.step == LAST)]
    seeds = rows.groupby("twin").seed.nunique().reindex(["burst", "none"], fill_value=0)
    return bool(seeds.min() >= MIN_SEEDS)


def chain(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """The links by host and width, and the declared contrasts."""
    cells = measured(every)
    named = {cell: (host_name(cell[1]), CELLS[cell]) for cell in cells}
    return table(every, named, cells, [*contrasts(cells), *widths(every, cells)])


def table(
    every: pd.DataFrame, named: Mapping[tuple[str, str], tuple[str, str]],
    cells: Mapping[tuple[str, str], Links], lines: Sequence[str],
) -> str:  # fmt: skip
    """The links of cells, a row each under its host and width, and below it lines of contrasts."""
    body = []
    for cell, name in named.items():
        one = cells[cell]
        line = [*name, str(len(one.left["score"]))]
        line += [mean(one.host_loss), _small(one.pull), _small(one.noise), _small(one.inner)]
        line += [_small(one.forgotten * 1000, 1), *levels(every, cell[1], cell[0])]
        for metric in METRICS:
            line.append(mean(one.gained[metric]))
            line.append(share_text(share(one.left[metric].tolist(), one.gained[metric].tolist())))
        body.append(line)
    head = ["host", "width", "seeds", "its loss", "pull", "noise", "g_nt · g_r"]
    head += ["forgotten", *LEVELS, "score +", "share left", "choice +", "share left"]
    return f"{markdown(head, body)}\n\n" + "\n".join(f"- {line}" for line in lines)


def host_name(label: str) -> str:
    return HOSTS.get(label, HOSTS[OPEN])


def contrasts(cells: Mapping[tuple[str, str], Links]) -> list[str]:
    """The declared ones by their numbers, w64 - w16 with seeds paired, those that have the runs."""
    narrow, wide = cells.get((SWEEP, OPEN)), cells.get((WIDE, OPEN))
    if narrow is None or wide is None:
        return ["too few seeds in open text: no contrast"]
    apart = shares_apart(wide.shares, narrow.shares)
    lines = [f"(1) share left in open text: {verdicts(apart)}"]
    easy = cells.get((WIDE, EASY)), cells.get((SWEEP, EASY))
    if easy[0] is not None and easy[1] is not None:
        between = shares_apart(apart, shares_apart(easy[0].shares, easy[1].shares))
        lines.append(f"(2) (1) less the same with 1,024 tokens: {verdicts(between)}")
    forgotten = paired(wide.forgotten * 1000, narrow.forgotten * 1000)
    lines.append(f"(3) forgotten in open text, nats in a thousand steps: {told(forgotten)}")
    loss = paired(wide.host_loss, narrow.host_loss)
    lines.append(f"(4) the loss of open text before the burst: {told(loss)}")
    if (control := cells.get((WIDE, SAME_RATE))) is not None:
        same = shares_apart(control.shares, narrow.shares)
        lines.append(f"(5) (1) with both at 0.01: {verdicts(same)}")
    for metric, values in wide.shares.items():
        apart[metric] = paired(values, by_seed(narrow.early[metric], narrow.gained[metric]))
    rest = "not declared, (1) at equal learning rate x steps, w16 at lag 100"
    return [*lines, f"{rest}: {verdicts(apart)}"]


def widths(every: pd.DataFrame, cells: Mapping[tuple[str, str], Links]) -> list[str]:
    """The contrasts of widths.yaml, and what each cell keeps beyond width 16 at its host loss."""
    over = {cell: beyond(every, one) for cell, one in cells.items()}
    shares = {cell: one.shares for cell, one in cells.items()}
    lines = []
    for number, last, by_cell in ((1, 128, shares), (2, 128, over), (3, 64, shares)):
        said = f"widths ({number}), 16 to {last}, share left per doubling"
        said += " beyond width 16's at equal host loss" if by_cell is over else ""
        of = {width: by_cell.get(cell) for width, cell in WIDTHS.items() if width <= last}
        if None in of.values():
            lines.append(f"{said}: too few seeds")
            continue
        rises = slopes({width: one for width, one in of.items() if one})
        lines.append(f"{said}: {verdicts(rises)}")
    for (width, one), (wider, other) in pairwise(WIDTHS.items()):
        if one in cells and other in cells:
            apart = shares_apart(shares[other], shares[one])
            lines.append(f"not declared, w{wider} - w{width}, share left: {verdicts(apart)}")
    for cell, apart in over.items():
        if cell[0] != SWEEP:
            name = f"{CELLS[cell]}, {host_name(cell[1])}"
            lines.append(f"not declared, {name}, beyond width 16's at its loss: {verdicts(apart)}")
    return lines


def beyond(
    every: pd.DataFrame, one: Links, narrow: Sequence[tuple[str, str]] = NARROW
) -> dict[str, pd.Series]:
    """By metric and seed, the share left less what width 16 keeps at the same host loss."""
    hosts = {cell: links(every, *cell) for cell in narrow}
    losses, found = pd.DataFrame({host: of.host_loss for host, of in hosts.items()}), {}
    for metric, kept in one.shares.items():
        shares = pd.DataFrame({host: of.shares[metric] for host, of in hosts.items()})
        both = (table.reindex(kept.index).to_numpy() for table in (losses, shares))
        at = zip(one.host_loss[kept.index], *both, strict=True)
        found[metric] = kept - [share_at_loss(*line) for line in at]
    return found


def slope(by_width: Mapping[int, pd.Series]) -> pd.Series:
    """By seed that all widths have, the rise per doubling of the width by least squares."""
    doublings = np.log2(np.asarray(list(by_width), dtype=float))
    off = doublings - doublings.mean()
    return pd.concat(by_width, axis=1, join="inner") @ (off / (off @ off))


def slopes(by_width: Mapping[int, Shares]) -> dict[str, pd.Series]:
    return {m: slope({width: one[m] for width, one in by_width.items()}) for m in METRICS}


def shares_apart(a: Shares, b: Shares) -> dict[str, pd.Series]:
    """a - b by metric, of the seeds that both have."""
    return {m: paired(a[m], b[m]) for m in METRICS}


def verdicts(apart: Mapping[str, pd.Series]) -> str:
    """The verdicts on a difference of shares, by metric."""
    of = [f"of {style.plain(m)} {told(values)}" for m, values in apart.items()]
    return f"{', '.join(of)} ({len(apart['score'])} seeds)"


def predicted(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """g, lambda and rate* of `olmo-ext predict`, by width and host."""
    body = []
    cells = dict.fromkeys([(SWEEP, host) for host in HOSTS], CELLS[SWEEP, OPEN])
    for (sweep, host), name in (cells | CELLS).items():
        if not _enough(every, sweep, host):
            continue
        found = balanced(every, sweep, host)
        line = [host_name(host), name]
        for value, scale in ((found.gain, 1e3), (found.forgetting, 1e3), (found.threshold, 1)):
            numbers = [scale * one for one in (value.value, value.low, value.high)]
            line.append(f"{numbers[0]:.2f} [{numbers[1]:.2f}, {numbers[2]:.2f}]")
        body.append(line)
    head = ["host", "width", "g (1e-3 an instance)", "lambda (1e-3 a step)", "rate*"]
    return markdown(head, body)


def balanced(every: pd.DataFrame, sweep: str, host: str) -> Balance:
    """Gain and forgetting by the score's rise and fall over the twin's."""
    gains = pd.DataFrame(net(every, host, "score", sweep))
    gains = gains[[step for step in gains if step > BURST]]
    scores = twins_of(every, host, sweep)
    scores = scores[(scores.metric == "score") & (scores.split == "test")]
    twin = scores[(scores.twin == "none") & scores.step.between(BURST + 1, AFTER)]
    return balance(
        [float(step) for step in gains],
        {seed: line.tolist() for seed, line in gains.iterrows()},
        start=BURST, stop=AFTER, rate=BURST_RATE, ceiling=CEILING,
        twin=twin.groupby("seed").value.mean().to_dict(),
    )  # fmt: skip


TABLES: dict[str, Table] = {"chain": chain, "predicted": predicted}


def _small(values: pd.Series, digits: int = 3) -> str:
    return "not measured" if values.empty else estimate(values).to(digits)


LINKS = {
    "host_loss": "loss of the host\nbefore the burst, nats",
    "forgotten": "forgotten a step\nafter it, nats",
    "score": "share of the score\nleft at lag 300",
    "choice_loss": "share of the choice loss\nleft at lag 300",
}


def draw(frame: pd.DataFrame) -> Figure:
    """The links side by side: a column a host, a colour a width."""
    cells = measured(frame.assign(sweep=sweep_of(frame)))
    figure = style.new_figure(style.WIDTHS[1], 2.8)
    axes = figure.subplots(1, len(LINKS))
    names = [HOSTS[host] for host in (EASY, OPEN) if any(host == of for _, of in cells)]
    settings = list(dict.fromkeys(CELLS[cell] for cell in cells))
    for axis, (link, title) in zip(axes, LINKS.items(), strict=True):
        for (sweep, host), one in cells.items():
            values = (one.shares[link] if link in METRICS else getattr(one, link)).dropna()
            if values.empty:
                continue
            found, place = estimate(values), settings.index(CELLS[sweep, host])
            axis.errorbar(
                names.index(host_name(host)) + 0.13 * (place - 2), found.mean,
                yerr=(found.high - found.low) / 2, fmt="o", markersize=4, capsize=2,
                color=style.COLOURS[place],
            )  # fmt: skip
        axis.axhline(0, **style.THRESHOLD)
        axis.set_xlim(-0.5, len(names) - 0.5)
        axis.set_xticks(range(len(names)), names)
        style.dress(axis, title, below="host")
    of = zip(settings, style.COLOURS, strict=False)
    handles = [style.handle(name, color=colour) for name, colour in of]
    style.legend_below(figure, handles, len(handles))
    return figure
