"""The table and figure of docs/findings.md on what a burst leaves in open text at four widths.

From three sweeps: width 16 is `closed_host`'s, 64 `chain`'s, 32 and 128 are `widths`'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from eval.figures import style
from eval.findings.chain import CELLS, MORE, WIDE, Links, host_name, links, measured, said_of
from eval.findings.contrasts import sweep_of
from eval.findings.controls import Table, markdown, mean
from eval.findings.hosts import EASY, HOSTS, METRICS, OPEN, SWEEP, told
from eval.retention.matched_loss import share_at_loss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = {16: (SWEEP, OPEN), 32: (MORE, "w32"), 64: (WIDE, OPEN), 128: (MORE, "w128")}
"""The cell of each width at its own host's best learning rate."""

LEADS = ((WIDE, "text_1e_2"), (WIDE, EASY))
"""Further cells to be laid beside width 16 at equal host loss; not declared."""


def beyond(every: pd.DataFrame, one: Links) -> dict[str, pd.Series]:
    """By metric and seed, the share left less what width 16 keeps at the same host loss."""
    hosts = {host: links(every, SWEEP, host) for host in HOSTS}
    losses, found = pd.DataFrame({host: of.host_loss for host, of in hosts.items()}), {}
    for metric, kept in one.shares.items():
        shares = pd.DataFrame({host: of.shares[metric] for host, of in hosts.items()})
        narrow = [
            share_at_loss(one.host_loss[seed], losses.loc[seed].tolist(), shares.loc[seed].tolist())
            for seed in kept.index
        ]
        found[metric] = kept - narrow
    return found


def slope(by_width: Mapping[int, pd.Series]) -> pd.Series:
    """By seed that all widths have, the rise per doubling of the width by least squares."""
    doublings = np.log2(np.asarray(list(by_width), dtype=float))
    apart = doublings - doublings.mean()
    return pd.concat(by_width, axis=1, join="inner") @ (apart / (apart @ apart))


def widths(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """Shares left by width, also beyond width 16's at equal host loss, and the slopes."""
    found = measured(every)
    over = {cell: beyond(every, one) for cell, one in found.items()}
    body = []
    for cell in (*WIDTHS.values(), *LEADS):
        if (one := found.get(cell)) is None:
            continue
        line = [CELLS[cell], host_name(cell[1]), str(len(one.left["score"])), mean(one.host_loss)]
        for metric in METRICS:
            line += [mean(one.shares[metric]), told(over[cell][metric])]
        body.append(line)
    head = ["width", "host", "seeds", "its loss"]
    head += [f"{name} {what}" for name in ("score", "choice") for what in ("left", "beyond w16's")]
    said = []
    for chosen, left, beside in (((16, 32, 64, 128), 1, "(2)"), ((16, 32, 64), 3, "not declared,")):
        cells = {width: WIDTHS[width] for width in chosen}
        if any(cell not in found for cell in cells.values()):
            said.append(f"- ({left}) over widths 16 to {chosen[-1]}: too few seeds")
            continue
        for what, of in (
            (f"({left}) share left per doubling, 16 to {chosen[-1]}", lambda c: found[c].shares),
            (f"{beside} beyond width 16's at equal host loss", over.__getitem__),
        ):
            rises = {m: slope({w: of(cell)[m] for w, cell in cells.items()}) for m in METRICS}
            said.append(f"- {what}: {said_of(rises)}")
    return f"{markdown(head, body)}\n\n" + "\n".join(said)


def draw(frame: pd.DataFrame) -> Figure:
    """Share of the burst left 300 steps later by width, and width 16's at the same host loss."""
    every = frame.assign(sweep=sweep_of(frame))
    found = measured(every)
    cells = {width: found[cell] for width, cell in WIDTHS.items() if cell in found}
    figure = style.new_figure(style.WIDTHS[1], 3.0)
    axes = figure.subplots(1, len(METRICS), sharey=True)
    for axis, metric in zip(axes, METRICS, strict=True):
        left = pd.DataFrame({width: one.shares[metric] for width, one in cells.items()}).T
        over = pd.DataFrame({width: beyond(every, one)[metric] for width, one in cells.items()}).T
        for lines, colour in ((left, style.BLUE), (left - over, style.FAINT)):
            style.mean_over_seeds(axis, lines, color=colour)
        axis.axhline(0, **style.THRESHOLD)
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(cells), [str(width) for width in cells])
        style.dress(axis, style.plain(metric), below="width", left="share left at lag 300")
    names = (("what the width keeps", style.BLUE), ("width 16 at its host loss", style.FAINT))
    style.legend_below(figure, [style.handle(name, color=c) for name, c in names], 2)
    return figure


TABLES: dict[str, Table] = {"widths": widths}
