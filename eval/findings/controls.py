"""The tables of docs/findings.md on the controls, made from records.

    fill(Path("docs/findings.md").read_text(), read_records("docs/findings/controls"), TABLES)

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; what is between is replaced by
what TABLES[NAME] makes of the records, so that no number of a table is typed by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

import pandas as pd

from eval.findings.contrasts import Estimate, difference, estimate, final, over_all_pairs, per_seed
from eval.report.tables import markdown_cells
from eval.scores.cells import LEARNED_SCORE, cells
from eval.statistics import share
from eval.text import markdown_table, number, with_interval

SWEEPS = (
    *("mixture", "complexity", "single", "withdrawn", "learning_rate", "unlike", "one_format"),
    *("sparse", "hard_end", "complexity_alone", "matched", "alone"),
)
"""Short runs last, so that at the end no core waits long for the other."""

METRICS = ("score", "accuracy", "label_loss", "label_entropy")
UNREAD = ("params_total", "d_model", "seq_len", "corpus_hash", "schedule", "low", "high")
"""Fields that no table reads; provenance.json keeps the corpus."""

RUNGS = ("w64", "w16")
RATES = (4, 2, 1)
GRADES = ("class2", "comparison", "sum2", "sum3", "sum24")
WITHDRAWN_AT = 600

Table = Callable[[pd.DataFrame, pd.DataFrame], str]
"""From every run's last step, and from all its steps, to Markdown."""

markdown = partial(markdown_table, numbers=True)
_MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def thin(frame: pd.DataFrame) -> pd.DataFrame:
    """The records that findings stand on: each run's last step, and the course of `withdrawn`."""
    rows = over_all_pairs(frame)
    rows = rows[rows.sweep.isin(SWEEPS)]
    last = rows.step == rows.groupby("run").step.transform("max")
    rows = rows[(last | (rows.sweep == "withdrawn")) & rows.metric.isin(METRICS)]
    rows = rows.drop(columns=["sweep", "folder", *UNREAD], errors="ignore")
    return rows.sort_values(["run", "step", "task", "split", "metric"], ignore_index=True)


def fill(text: str, frame: pd.DataFrame, tables: Mapping[str, Table]) -> str:
    """A document with the named tables made anew from the records; others stay as they are."""
    rows, every = final(frame), over_all_pairs(frame)

    def table(match: re.Match[str]) -> str:
        make = tables.get(match[2])
        return match[0] if make is None else f"{match[1]}\n{make(rows, every)}\n\n{match[3]}"

    return _MARK.sub(table, text)


# -- tables ----------------------------------------------------------------------------------------


def staircase(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """The mixture's cells, four widths."""
    return markdown_cells(cells(rows[rows.sweep == "mixture"])).strip()


def transfer(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """Score and label loss of the same task alone in its run and in the mixture."""
    body = []
    for rung, rate in product(RUNGS, RATES):
        line = [rung, f"{rate} ({_exposures(rows, 'single', rung, rate)})"]
        for metric in ("score", "label_loss"):
            alone, mixed = (
                _values(rows, sweep, rung, rate, metric=metric) for sweep in ("single", "mixture")
            )
            line += [mean(alone), mean(mixed), change(mixed, alone)]
        body.append(line)
    head = ["size", "rate (exp.)", "score: single", "mixture", "mixture - single"]
    return markdown([*head, "label loss: single", "mixture", "mixture - single"], body)


def expressivity(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """The task with no host text, each width; beside it the mixture's rarest cells."""
    body = []
    for rung in ("w128", "w64", "w32", "w16"):
        alone = estimate(per_seed(rows, "alone", rung=rung))
        rare = [mean(_values(rows, "mixture", rung, rate)) for rate in (2, 1)]
        body.append([rung, alone.text, *rare, _learned(alone)])
    return markdown(["size", "alone", "mixture, rate 2", "rate 1", "alone: learned?"], body)


def matched(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """As many examples a step with host text and without it, each at the best of its learning
    rates; with it in the single-task runs as well."""
    body = []
    for rung, rate in product(RUNGS, RATES):
        single = _values(rows, "single", rung, rate)
        host = max(_by_learning_rate(rows, rung, rate).values(), key=pd.Series.mean)
        bare = [_values(rows, "matched", rung, rate, learning_rate=lr) for lr in (0.003, 0.001)]
        line = [rung, f"{rate} ({_exposures(rows, 'matched', rung, rate)})"]
        line += map(mean, (single, host, *bare))
        body.append([*line, change(max(bare, key=pd.Series.mean), host)])
    head = ["size", "rate (exp.)", "host text: single, 3e-3", "mixture, best rate"]
    head += ["no host text: 3e-3", "1e-3", "best without - best with"]
    return markdown(head, body)


def sparse(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """Equal exposures at a quarter of the rate, four times the steps; does width spare the loss?"""
    body, spared, changes = [], [], {}
    for rung, rate in product(RUNGS, (8, 4, 2, 1)):
        dense = _values(rows, "learning_rate", rung, rate, learning_rate=0.01)
        thinner = _values(rows, "sparse", rung, rate / 4)
        exposures = _exposures(rows, "mixture", rung, rate)
        texts = (f"{number(rate)}: {mean(dense)}", f"{number(rate / 4)}: {mean(thinner)}")
        body.append([rung, exposures, *texts, change(thinner, dense)])
        changes[rung, rate] = thinner - dense
        if rung == RUNGS[-1]:
            of_width = change(changes[RUNGS[0], rate], changes[rung, rate])
            spared.append([f"{RUNGS[0]} - {rung}", exposures, "", "", of_width])
    body += spared
    head = ["size", "exposures", "1,200 steps at rate", "4,800 steps at rate", "sparser - denser"]
    return markdown(head, body)


def learning_rate(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """The mixture at three learning rates, the best of each column and size in bold, and the sizes'
    difference with each at its best."""
    rates, body = (8, 4, 2, 1), []
    best: dict[tuple[str, int], pd.Series] = {}
    for rung in RUNGS:
        table = {rate: _by_learning_rate(rows, rung, rate) for rate in rates}
        best |= {(rung, rate): max(table[rate].values(), key=pd.Series.mean) for rate in rates}
        for lr in table[rates[0]]:
            line = [rung, f"{lr:g}"]
            for rate in rates:
                text = mean(table[rate][lr])
                line.append(f"**{text}**" if table[rate][lr] is best[rung, rate] else text)
            learned = sum(_is_learned(estimate(table[rate][lr])) for rate in rates)
            body.append([*line, str(learned)])
    spared = [change(best[RUNGS[0], r], best[RUNGS[-1], r]) for r in rates]
    body.append([f"{RUNGS[0]} - {RUNGS[-1]}", "each at its best", *spared, ""])
    head = ["size", "learning rate", *(f"rate {rate}" for rate in rates), "learned cells"]
    return markdown(head, body)


def withdrawn(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """Score when injection ends and 600 steps of host text later; does width spare the loss?"""
    body, ends = [], {}
    for rung, metric in product(RUNGS, ("score", "label_loss")):
        before, later, after = (
            per_seed(every, "withdrawn", rung=rung, step=step, metric=metric)
            for step in (WITHDRAWN_AT, 700, 1200)
        )
        part = share(after.tolist(), before.tolist())
        kept = with_interval(part.value, part.low, part.high) if metric == "score" else ""
        even = _values(rows, "single", rung, 4, metric=metric)
        texts = [mean(values) for values in (before, later, after)]
        body.append([rung, metric, *texts, change(after, before), kept, mean(even)])
        ends[rung, metric] = before, after
    for metric in ("score", "label_loss"):
        (large, large_end), (small, small_end) = (ends[rung, metric] for rung in RUNGS)
        spared = change(large_end - large, small_end - small)
        texts = [change(large, small), "", change(large_end, small_end), spared]
        body.append([f"{RUNGS[0]} - {RUNGS[-1]}", metric, *texts, "", ""])
    head = ["size", "", "step 600 (end)", "step 700", "step 1,200", "1,200 - 600"]
    return markdown([*head, "share kept", "same number, spread evenly"], body)


def complexity(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """The graded tasks at two rates, and each alone."""
    body = []
    for task in GRADES:
        some = rows[(rows.sweep == "complexity") & (rows.task == task)].iloc[0]
        line = [f"`{task}`", f"{some.bits:.0f}"]
        for rung in RUNGS[::-1]:
            line += [
                _cell(rows, "complexity", rung=rung, task=task, rate_per_step=float(rate))
                for rate in (2, 6)
            ]
            line.append(_cell(rows, "complexity_alone", rung=rung, task=task))
        body.append(line)
    head = ["task", "bits"]
    head += [f"{rung}, {c}" for rung in RUNGS[::-1] for c in ("rate 2", "rate 6", "alone")]
    return markdown(head, body)


def hard_end(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """Modular addition with 100 symbols: train and test score, and the label's loss."""
    body = []
    for rung, (rate, what) in product(RUNGS, ((24.0, "host text"), (32.0, "alone"))):
        where: dict[str, Any] = {"rung": rung, "rate_per_step": rate}
        chosen = rows[(rows.sweep == "hard_end") & (rows.rate_per_step == rate)]
        exposures = number(float(chosen.exposures_per_example.mean()), 2)
        shown = (("score", "train"), ("score", "test"), ("label_loss", "test"))
        texts = [mean(per_seed(rows, "hard_end", metric=m, split=s, **where)) for m, s in shown]
        entropy = per_seed(rows, "hard_end", metric="label_entropy", **where)
        what = f"{what}, rate {rate:g}"
        body.append([rung, what, exposures, *texts, f"{entropy.mean():.2f}"])
    head = ["size", "", "exposures", "train score", "test score", "label loss", "label entropy"]
    return markdown(head, body)


def designs(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """A rare comparison beside nothing, its like, its like in one format, and the unlike."""
    kinds = (
        ("single", "nothing (single)"),
        ("mixture", "comparisons, labels of their own"),
        ("one_format", "comparisons, one set of labels"),
        ("unlike", "classes of single tokens"),
    )
    body = []
    for rung, rate, (sweep, what) in product(RUNGS, (2, 1), kinds):
        if (sweep, rate) == ("unlike", 1):  # was not run
            continue
        line = [rung, str(rate), what]
        for metric in ("score", "label_loss"):
            ours, single, mixture = (
                _values(rows, name, rung, rate, metric=metric)
                for name in (sweep, "single", "mixture")
            )
            of_single = "" if sweep == "single" else change(ours, single)
            line += [mean(ours), of_single, change(ours, mixture) if sweep == "one_format" else ""]
        body.append(line)
    head = ["size", "rate", "beside", "score", "- single", "- own labels"]
    return markdown([*head, "label loss", "- single", "- own labels"], body)


TABLES: dict[str, Table] = {
    "staircase": staircase,
    "transfer": transfer,
    "expressivity": expressivity,
    "matched": matched,
    "sparse": sparse,
    "learning_rate": learning_rate,
    "withdrawn": withdrawn,
    "complexity": complexity,
    "hard_end": hard_end,
    "designs": designs,
}


def _values(rows: pd.DataFrame, sweep: str, rung: str, rate: float, **where: Any) -> pd.Series:
    """A comparison's values by the name every sweep gives it: cmp_r<rate>."""
    return per_seed(rows, sweep, rung=rung, task=f"cmp_r{rate:g}", **where)


def _by_learning_rate(rows: pd.DataFrame, rung: str, rate: float) -> dict[float, pd.Series]:
    """The mixture's scores at each learning rate it was run with."""
    sweeps = {0.003: "mixture", 0.01: "learning_rate", 0.03: "learning_rate"}
    return {lr: _values(rows, sweep, rung, rate, learning_rate=lr) for lr, sweep in sweeps.items()}


def _exposures(rows: pd.DataFrame, sweep: str, rung: str, rate: float) -> str:
    chosen = rows[(rows.sweep == sweep) & (rows.rung == rung) & (rows.task == f"cmp_r{rate:g}")]
    return number(float(chosen.exposures_per_example.mean()), 2)


def _is_learned(score: Estimate) -> bool:
    return score.mean >= LEARNED_SCORE and score.low >= LEARNED_SCORE


def _learned(score: Estimate) -> str:
    if _is_learned(score):
        return "yes"
    return "interval holds .5" if score.high >= LEARNED_SCORE else "no"


def _cell(rows: pd.DataFrame, sweep: str, **where: Any) -> str:
    score = estimate(per_seed(rows, sweep, **where))
    return f"**{score.text}**" if _is_learned(score) else score.text


def mean(values: pd.Series) -> str:
    """The mean of a value per seed with half its interval."""
    return estimate(values).text


def verdict(found: Estimate) -> str:
    """A difference with its interval, and whether that leaves zero out."""
    return f"{found.signed}, {found.verdict}"


def change(a: pd.Series, b: pd.Series) -> str:
    """`verdict` on a - b, seed by seed."""
    return verdict(difference(a, b))
