"""The tables of docs/findings.md on closed hosts: what a burst leaves when only the host differs.

    kept(final_rows, every_row)      # each a Markdown table, as in eval.findings.controls

From the sweep `closed_host`. Runs come in twins: one with the burst, one whose task never comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from eval.figures import style
from eval.findings.contrasts import Estimate, estimate, sweep_of
from eval.findings.controls import Table, markdown, mean, verdict
from eval.interference.budget import budgets
from eval.statistics import Share, share
from eval.text import with_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP = "closed_host"
HOSTS = {"t1024": "1,024 tokens", "t4096": "4,096", "t16384": "16,384", "text": "open text"}
"""Labels of the sweep, the easiest host first."""

EASY, OPEN = "t1024", "text"
"""The two of the declared contrasts."""

BURST, AFTER, LAST = 800, 1200, 1500
"""Steps before the burst, right after it and at lag 300."""

METRICS = {"score": 1, "choice_loss": -1}
"""What is kept, and the sign of a gain in it."""

LEVELS = {
    "score at 1,200": ("score", "burst", AFTER),
    "at 1,500": ("score", "burst", LAST),
    "twin at 1,500": ("score", "none", LAST),
    "choice loss at 1,500": ("choice_loss", "burst", LAST),
    "twin's choice loss": ("choice_loss", "none", LAST),
}
"""Columns of what the runs stand at themselves: a share of a gain over a twin that is surely wrong
says nothing of whether any content is left."""

UNREAD = ["folder", "params_total", "d_model", "corpus_hash", "rate_per_sequence"]
"""Fields that no table reads; provenance.json keeps the corpus."""


def test_scores(frame: pd.DataFrame) -> pd.Series:
    """Which rows are of METRICS over all examples of the test split."""
    whole = frame.subset.fillna("all") == "all"
    return frame.metric.isin(METRICS) & (frame.split == "test") & whole


def thin(frame: pd.DataFrame) -> pd.DataFrame:
    """The records that the chapter stands on; the rest is in the runs' own files."""
    gradients = ["budget", "budget_actual", "cos_g_nt", "pull_g_nt"]
    kept = test_scores(frame) | frame.metric.isin(["train_loss", *gradients])
    kept &= frame.step >= BURST - 300
    order = ["run", "step", "task", "metric", "source"]
    return frame[kept].drop(columns=UNREAD, errors="ignore").sort_values(order, kind="stable")


def kept(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """What the burst brought and what is left at lag 300, net of the twin, by host."""
    body = []
    shares: dict[str, dict[str, pd.Series]] = {metric: {} for metric in METRICS}
    for host, name in HOSTS.items():
        line = [name, mean(host_loss(every, host)), *levels(every, host)]
        for metric in METRICS:
            gained, left = (net(every, host, metric)[step] for step in (AFTER, LAST))
            found = share(left.tolist(), gained.tolist())
            line += [mean(one) for one in (gained, left)]
            line.append(share_text(found))
            shares[metric][host] = by_seed(left, gained)
        body.append(line)
    contrast = {metric: paired(of_host[EASY], of_host[OPEN]) for metric, of_host in shares.items()}
    said = ", ".join(f"of {style.plain(m)} {told(apart)}" for m, apart in contrast.items())
    columns = [f"{name} {what}" for name in ("score", "choice") for what in ("+", "left", "share")]
    head = ["host", "its loss at 800", *LEVELS, *columns]
    n = len(contrast["score"])
    return (
        f"{markdown(head, body)}\n\nThe declared contrasts, share left with {HOSTS[EASY]} minus "
        f"with {HOSTS[OPEN]}, {n} seeds: {said}."
    )


def overwriting(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """The loss budget of the 300 steps after the burst, and of the burst, by host."""
    body = []
    narrow = {(SWEEP, host): name for host, name in HOSTS.items()}
    for (sweep, host), name in (narrow | {("chain", OPEN): f"{HOSTS[OPEN]}, w64"}).items():
        of_host = twins_of(every, host, sweep)
        of_host = of_host[of_host.twin == "burst"]
        during = of_host[(of_host.step > BURST) & (of_host.step <= AFTER)]
        after = of_host[(of_host.step > AFTER) & (of_host.step <= LAST)]
        for when, part in (("burst", during), ("after", after)):
            found = budgets(part, since=0.0).iloc[0]
            line = [name, when]
            for source in ("forgotten", "gained", "faded", "actual"):
                low, high = found[f"{source}_low"], found[f"{source}_high"]
                line.append(Estimate(found[source], low, high, int(found.n_seeds)).signed)
            steps = (BURST, AFTER) if when == "burst" else (AFTER, LAST)
            losses = of_host[(of_host.metric == "choice_loss") & (of_host.split == "test")]
            at = losses.pivot_table("value", index="seed", columns="step")
            whole = mean(at[steps[1]] - at[steps[0]])
            body.append([*line, whole, f"{found.null_signs:.3f}", f"{found.closure:.3f}"])
    head = ["host", "steps", "forgotten", "gained", "faded", "sum of measured steps x 10"]
    head += ["change over all steps", "random signs", "largest closure"]
    return markdown(head, body)


def cost(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """What the burst costs its host, in 1e-3 nats a token: the loss over the twin's on the
    same batches, and the exchange rate, that loss over the nats of choice loss that it brought."""
    body = []
    for sweep, host, name in COSTS:
        rows = twins_of(every, host, sweep)
        losses = rows[rows.metric == "train_loss"].pivot_table(
            "value", index="seed", columns=["twin", "step"]
        )
        lost = {step: 1000 * (losses["burst"][step] - losses["none"][step]) for step in LAGS}
        gained = net(every, host, "choice_loss", sweep)[AFTER]
        rate = share(lost[LAGS[0]].tolist(), gained.tolist())
        body.append([name, *(told(one) for one in lost.values()), share_text(rate)])
    head = ["host", *(f"at {step:,}" for step in LAGS), f"exchange rate at {LAGS[0]:,}"]
    return markdown(head, body)


LAGS = (AFTER + 100, AFTER + 200, LAST)
"""Steps whose batch is recorded and is host text alone, the same in both twins."""

COSTS = (
    *((SWEEP, host, f"{name}, w16") for host, name in HOSTS.items()),
    ("chain", EASY, f"{HOSTS[EASY]}, w64"), ("chain", OPEN, f"{HOSTS[OPEN]}, w64"),
)  # fmt: skip

TABLES: dict[str, Table] = {
    "closed_host": kept,
    "closed_host_budget": overwriting,
    "closed_host_cost": cost,
}


def twins_of(every: pd.DataFrame, host: str, sweep: str = SWEEP) -> pd.DataFrame:
    """The rows of a sweep's runs in a host, with `twin`: burst or none."""
    chosen = every[every.sweep == sweep]
    label = chosen.run.str.split("-")
    in_host = label.str[1 if sweep != SWEEP else 2] == host
    return chosen[in_host].assign(twin=label[in_host].str[3])


def net(every: pd.DataFrame, host: str, metric: str, sweep: str = SWEEP) -> dict[int, pd.Series]:
    """A gain over the twin by step, one value a seed."""
    chosen = twins_of(every, host, sweep)
    chosen = chosen[(chosen.metric == metric) & (chosen.split == "test")]
    table = chosen.pivot_table("value", index=["step", "seed"], columns="twin")
    gain = (table.burst - table.none).dropna() * METRICS[metric]
    by_step = {int(step): part.droplevel("step") for step, part in gain.groupby("step")}
    return {step: part for step, part in by_step.items() if step <= LAST}


def levels(every: pd.DataFrame, host: str, sweep: str = SWEEP) -> list[str]:
    """The cells of LEVELS: means over seeds of the burst's runs and their twins."""
    rows = twins_of(every, host, sweep)
    rows = rows[rows.split == "test"]
    return [
        mean(rows[(rows.metric == metric) & (rows.twin == twin) & (rows.step == step)].value)
        for metric, twin, step in LEVELS.values()
    ]


def by_seed(left: pd.Series, gained: pd.Series) -> pd.Series:
    """The share left of each seed; NaN, undefined, where its gain is not positive."""
    return (left / gained).where(gained > 0)


def paired(a: pd.Series, b: pd.Series) -> pd.Series:
    """a - b of the seeds that both have; NaN where one of them is undefined."""
    a, b = a.align(b, join="inner")
    return a - b


def told(apart: pd.Series) -> str:
    """The verdict on a difference by seed, or which seeds make it undefined."""
    undefined = [str(seed) for seed in apart.index[apart.isna()]]
    if undefined:
        return f"undefined: no positive gain with seed {', '.join(undefined)}"
    return verdict(estimate(apart))


def host_loss(every: pd.DataFrame, host: str, sweep: str = SWEEP) -> pd.Series:
    """Mean loss of the batches measured in the 300 steps before the burst, nats."""
    rows = twins_of(every, host, sweep)
    rows = rows[(rows.metric == "train_loss") & rows.step.between(BURST - 300, BURST)]
    return rows.groupby("seed").value.mean()


def share_text(found: Share) -> str:
    """ "0.50 [0.40, 0.60]", or that it is undefined."""
    undefined = found.value != found.value
    return "undefined" if undefined else with_interval(found.value, found.low, found.high)


def course(frame: pd.DataFrame) -> Figure:
    """Score and choice loss gained over the twin by step, a line a host."""
    every = frame.assign(sweep=sweep_of(frame))
    figure = style.new_figure(style.WIDTHS[1], 3.4)
    axes = figure.subplots(1, 2)
    handles = []
    for (host, name), colour in zip(HOSTS.items(), style.COLOURS, strict=False):
        handles.append(style.handle(name, color=colour))
        for axis, metric in zip(axes, METRICS, strict=True):
            gains = pd.concat(net(every, host, metric), names=["step"]).unstack("seed")
            style.mean_over_seeds(axis, gains, color=colour)
    for axis, metric in zip(axes, METRICS, strict=True):
        axis.axvspan(BURST, AFTER, color=style.EMPTY, zorder=0)
        axis.axhline(0, **style.THRESHOLD)
        axis.set_xlim(BURST - 50, LAST)
        left = f"test {style.plain(metric)}, gain over the twin"
        style.dress(axis, below="step; grey: the burst", left=left)
    style.legend_below(figure, handles, len(handles))
    return figure
