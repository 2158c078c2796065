"""The chain of docs/findings.md at four widths in open text, and at equal host loss: table, figure.

From three sweeps: width 16 is `closed_host`'s, 64 `chain`'s, 32 and 128 are `widths`'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eval.figures import style
from eval.findings.chain import CELLS, MORE, WIDE, Links, host_name, links, measured, said_of
from eval.findings.contrasts import estimate, sweep_of
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


LINKS = {
    "host_loss": "loss of the host\nbefore the burst, nats",
    "forgotten": "forgotten a step\nafter it, nats",
    "score": "share of the score\nleft at lag 300",
    "choice_loss": "share of the choice loss\nleft at lag 300",
}
HOST_COLOURS = {OPEN: style.RED, EASY: style.BLUE}
AT_ITS_LOSS = "width 16 at that host loss"


def chain(frame: pd.DataFrame) -> Figure:
    """The links side by side by width, a colour a host, each width at its own learning rate."""
    every = frame.assign(sweep=sweep_of(frame))
    found = measured(every)
    easy = {16: (SWEEP, EASY), 64: (WIDE, EASY)}
    figure = style.new_figure(style.WIDTHS[2], 2.8)
    for axis, (link, title) in zip(figure.subplots(1, len(LINKS)), LINKS.items(), strict=True):
        for host, cells in ((OPEN, WIDTHS), (EASY, easy)):
            for width, cell in cells.items():
                if (one := found.get(cell)) is None:
                    continue
                kept = (one.shares[link] if link in METRICS else getattr(one, link)).dropna()
                _mark(axis, width, kept, HOST_COLOURS[host])
                if host == OPEN and width > 16 and link in METRICS:
                    _mark(axis, 1.15 * width, kept - beyond(every, one)[link], style.FAINT)
        axis.axhline(0, **style.THRESHOLD)
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(WIDTHS), [str(width) for width in WIDTHS])
        style.dress(axis, title, below="width")
    names = {HOSTS[host]: colour for host, colour in HOST_COLOURS.items()}
    names |= {AT_ITS_LOSS: style.FAINT}
    handles = [style.handle(name, color=colour) for name, colour in names.items()]
    style.legend_below(figure, handles, len(handles))
    return figure


def _mark(axis: Any, width: float, values: pd.Series, colour: str) -> None:
    if len(values := values.dropna()):
        one = estimate(values)
        look = {"fmt": "o", "markersize": 4, "capsize": 2, "color": colour}
        axis.errorbar(width, one.mean, yerr=(one.high - one.low) / 2, **look)


TABLES: dict[str, Table] = {"widths": widths}
