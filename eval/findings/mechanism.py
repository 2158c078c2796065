"""The tables of docs/findings.md on the mechanism: interference, features, gaps and retention.

    interference(final_rows, every_row)      # each a Markdown table, as in eval.findings.controls

From the sweeps `mechanism` (one task at rate 4, looked into while it trains) and
`matched_frequency` (bursts at equal frequency, with controls).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from eval.findings.contrasts import Estimate, difference, estimate, sweep_of
from eval.findings.controls import Table, markdown, mean, verdict
from eval.retention.matched_frequency import matched_frequency

RUNGS = ("w16", "w32", "w64", "w128")
GROUPS = ("mlp_top", "model")
SINCE = 600
"""Cosines are averaged over the measured steps from here on: the second half of the runs."""

BURST_STEP = 600
"""The burst of matched_frequency that one run has and its control leaves out."""

COSINES = ("cos_g_nt", "cos_g_t_all", "cos_g_t_label", "cos_update", "norm_g_r")
FEATURES = ("order_r2", "order_r2_null99", "probe_count")
UNREAD = ("params_total", "d_model", "batch_size", "seq_len", "corpus_hash", "rate_per_sequence")
"""Fields that no table reads; provenance.json keeps the corpus."""


def thin(frame: pd.DataFrame) -> pd.DataFrame:
    """The records that the chapter stands on; the rest is in the runs' own files."""
    sweep = sweep_of(frame)
    whole = frame.subset.fillna("all") == "all"
    inside = sweep.isin(["mechanism", "shuffled"]) & (frame.task != "")
    cosines = frame.metric.isin(COSINES) & frame.group.isin(GROUPS)
    scores = frame.metric.isin(["score", "label_loss"]) & (frame.split == "test") & whole
    last = frame.step == frame.groupby("run").step.transform("max")
    ends = last & whole & frame.metric.isin(["score", "label_loss", "label_entropy"])
    bursts = frame.metric.str.endswith(("_before", "_lag")) & (frame.burst_step == BURST_STEP)
    gaps = (sweep == "matched_frequency") & (ends | bursts) & (frame.split == "test")
    kept = inside & (cosines | scores | frame.metric.isin(FEATURES)) | gaps
    return (
        frame[kept]
        .drop(columns=[*UNREAD, "folder"], errors="ignore")
        .sort_values(["run", "step", "task", "split", "metric", "layer", "lag"], ignore_index=True)
    )


def interference(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """Cosine of the rest of the batch with the task's gradient, by size, beside its nulls."""
    body = []
    for group in GROUPS:
        perp: dict[str, pd.Series] = {}
        for rung in RUNGS:
            found = {
                name: _over_steps(every, rung, group, "cos_g_nt", name)
                for name in ("value", "null_labels", "perp", "abs_perp")
            }
            perp[rung] = found["abs_perp"]
            share = _over_steps(every, rung, group, "norm_g_r", "perp_share")
            own = _over_steps(every, rung, group, "cos_g_t_label", "perp")
            texts = [estimate(values).to(3) for values in found.values()]
            texts += map(mean, (share, own))
            body.append([f"`{group}`", rung, *texts])
        between = f"{RUNGS[-1]} - {RUNGS[0]}"
        sizes = _three_signed(difference(perp[RUNGS[-1]], perp[RUNGS[0]]))
        body.append([f"`{group}`", between, "", "", "", sizes, "", ""])
    head = ["neurons", "size", "cos(g_nt, g_r)", "labels permuted", "perp", "mean abs. perp"]
    return markdown([*head, "perp part of g_r", "perp of g_t_label"], body)


def shuffled(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """|perp| and the part of g_r it is of, order R^2 and score: the task beside a shuffled one."""
    last, body = every[every.step == every.step.max()], []
    for rung in ("w16", "w64"):
        pairs = {}
        for group in GROUPS:
            for what, metric, name in PERP:
                own, null = (
                    _over_steps(every, rung, group, metric, name, sweep)
                    for sweep in REAL_AND_SHUFFLED
                )
                pairs[f"{what}, `{group}`"] = own, null, 3
        for what, metric, layer in ENDS:
            ends = (_metric(last[last.sweep == s], rung, metric, layer) for s in REAL_AND_SHUFFLED)
            pairs[what] = *ends, 2
        for what, (own, null, digits) in pairs.items():
            apart = difference(own, null)
            told = _three_signed(apart) if digits == 3 else verdict(apart)
            body.append([what, rung, estimate(own).to(digits), estimate(null).to(digits), told])
    return markdown(["", "size", "the task", "labels dealt out anew", "difference"], body)


REAL_AND_SHUFFLED = ("mechanism", "shuffled")
PERP = (("mean abs. perp", "cos_g_nt", "abs_perp"), ("perp part of g_r", "norm_g_r", "perp_share"))
ENDS = (("order R^2, after block 1", "order_r2", 1), ("score", "score", None))


def inner_products(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """g_nt . g_r: the nats that a step of -g_nt takes off the task's loss; below 0 it harms."""
    inside = every[(every.sweep == "mechanism") & (every.step >= SINCE)]
    key, body = ["group", "rung", "seed", "step"], []
    rest = inside[inside.metric == "cos_g_nt"].set_index(key).sort_index()
    own = inside[inside.metric == "norm_g_r"].set_index(key).sort_index()
    for group in GROUPS:
        found = {}
        for rung in RUNGS:
            norms = rest.loc[(group, rung)].norm * own.loc[(group, rung)].value
            both = [rest.loc[(group, rung)][name] * norms for name in ("value", "null_labels")]
            found[rung], permuted = (values.groupby("seed").mean() for values in both)
            texts = [estimate(values).to(3) for values in (found[rung], permuted)]
            body.append([f"`{group}`", rung, *texts])
        widest = _three_signed(difference(found[RUNGS[-1]], found[RUNGS[0]]))
        body.append([f"`{group}`", f"{RUNGS[-1]} - {RUNGS[0]}", widest, ""])
    return markdown(["neurons", "size", "g_nt · g_r", "labels permuted"], body)


def features(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """Order R^2 by size and layer beside the score, and their rank correlation over runs."""
    inside = every[(every.sweep == "mechanism") & (every.step == every.step.max())]
    body = []
    for rung in RUNGS:
        line = [rung, mean(_metric(inside, rung, "score"))]
        for layer in (0, 1):
            line.append(mean(_metric(inside, rung, "order_r2", layer)))
            line.append(f"{_metric(inside, rung, 'order_r2_null99', layer).mean():.2f}")
        body.append(line)
    head = ["size", "score", "order R^2, embedding", "null 99%", "after block 1", "null 99%"]
    score = inside[inside.metric == "score"].set_index("run").value
    tracks = []
    for layer, where in ((0, "embedding"), (1, "after block 1")):
        of_layer = inside[(inside.metric == "order_r2") & (inside.layer == layer)]
        r2 = of_layer.set_index("run").value.reindex(score.index)
        size = of_layer.set_index("run").rung.reindex(score.index)
        both = [rank_correlation(r2, score), rank_correlation(r2, score, within=size)]
        texts = [f"{rho:.2f} (p {'< 0.001' if p < 0.001 else f'= {p:.3f}'})" for rho, p in both]
        tracks.append(f"{where} {texts[0]}, within sizes {texts[1]}")
    said = f"Spearman of order R^2 and score over the {len(score)} runs, permutation p: "
    return markdown(head, body) + "\n\n" + said + ", ".join(tracks) + "."


def gaps(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """Score and label loss at equal frequency and unequal gaps, against gap 1."""
    frame = every[every.sweep == "matched_frequency"]
    tables = {
        metric: matched_frequency(frame, metric=metric).set_index(["rung", "gap"])
        for metric in ("score", "label_loss")
    }
    body = []
    for rung, gap in tables["score"].sort_index().index:
        line = [rung, str(gap)]
        for table in tables.values():
            cell = table.loc[(rung, gap)]
            n = int(cell.n_seeds)
            line.append(Estimate(cell.value, cell.low, cell.high, n).text)
            apart = Estimate(cell.change, cell.change_low, cell.change_high, n)
            line.append("" if gap == 1 else verdict(apart))
        body.append(line)
    return markdown(["size", "gap (steps)", "score", "- gap 1", "label loss", "- gap 1"], body)


TABLES: dict[str, Table] = {
    "interference": interference,
    "inner_products": inner_products,
    "shuffled": shuffled,
    "features": features,
    "gaps": gaps,
}


def rank_correlation(
    a: pd.Series, b: pd.Series, *, within: pd.Series | None = None, permutations: int = 10_000
) -> tuple[float, float]:
    """Spearman's rho and its two-sided permutation p (at least 1 / permutations).

    within: a group of each entry; ranks are then taken and permuted inside groups, so that what
    moves both from group to group (size) does not count.
    """
    of = np.zeros(len(a), dtype=int) if within is None else pd.factorize(within)[0]
    x, y = (values.groupby(of).rank() for values in (a, b))
    x, y = (ranks.to_numpy() - ranks.groupby(of).transform("mean").to_numpy() for ranks in (x, y))
    length = float(np.sqrt((x @ x) * (y @ y)))
    rng = np.random.default_rng(0)
    drawn = np.empty(permutations)
    for i in range(permutations):
        order = np.lexsort((rng.random(len(x)), of))  # a random order inside each group
        shuffled = np.empty_like(x)
        shuffled[np.argsort(of, kind="stable")] = x[order]
        drawn[i] = abs(shuffled @ y) / length
    rho = float(x @ y) / length
    # Ties in exact arithmetic differ by rounding.
    return rho, float((np.sum(drawn >= abs(rho) - 1e-12) + 1) / (permutations + 1))


def _over_steps(
    every: pd.DataFrame, rung: str, group: str, metric: str, name: str, sweep: str = "mechanism"
) -> pd.Series:
    """A field's mean over the measured steps of the second half, one value a seed."""
    chosen = every[
        (every.sweep == sweep)
        & (every.rung == rung)
        & (every.group == group)
        & (every.metric == metric)
        & (every.step >= SINCE)
    ]
    values = chosen.perp.abs() if name == "abs_perp" else chosen[name]
    return values.groupby(chosen.seed).mean()


def _metric(inside: pd.DataFrame, rung: str, metric: str, layer: int | None = None) -> pd.Series:
    chosen = inside[(inside.rung == rung) & (inside.metric == metric)]
    if layer is not None:
        chosen = chosen[chosen.layer == layer]
    return chosen.set_index("seed").value


def _three_signed(found: Estimate) -> str:
    return ("+" if found.mean > 0 else "") + f"{found.to(3)}, {found.verdict}"
