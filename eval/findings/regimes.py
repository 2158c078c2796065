"""The tables of docs/findings.md, chapter 5: the chain's contrasts in further regimes.

One learning rate for all widths, fresh seeds, one host more, hosts of facts, streams that bursts
predict. Each stands beside the runs of chapter 3, whose records are in `every` too.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from eval.figures import style
from eval.findings import chain
from eval.findings.chain import links, shares_apart, slopes, verdicts
from eval.findings.contrasts import estimate
from eval.findings.controls import Table, markdown, mean, verdict
from eval.findings.hosts import EASY, HOSTS, METRICS, OPEN, SWEEP, host_loss, paired, told, twins_of
from theory.advice.accumulation import LEARNED, course

RATES = {
    "0.003": {16: ("one_rate", "w16"), 32: chain.WIDTHS[32], 64: chain.WIDTHS[64],
              128: ("one_rate", "w128")},
    "0.01": {16: (SWEEP, OPEN), 32: ("one_rate", "w32"), 64: (chain.WIDE, chain.SAME_RATE)},
}  # fmt: skip
"""The cell of each width in open text, by learning rate."""


def one_rate(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """The chain in open text with widths side by side at one learning rate."""
    named = {
        cell: ("open text", f"w{width} at {rate}")
        for rate, of in RATES.items()
        for width, cell in of.items()
    }
    cells = {cell: links(every, *cell) for cell in named}
    lines = []
    kept = {rate: {w: cells[cell].shares for w, cell in of.items()} for rate, of in RATES.items()}
    for number, (rate, of) in enumerate(kept.items(), start=1):
        rises = slopes(of)
        what = f"share left per doubling, {min(of)} to {max(of)}, all at {rate}"
        lines.append(f"({number}) {what}: {verdicts(rises)}")
        own = slopes({width: links(every, *chain.WIDTHS[width]).shares for width in of})
        rest = shares_apart(own, rises)
        lines.append(f"not declared, at own rates less ({number}): {verdicts(rest)}")
    slow, fast = kept.values()
    apart = {m: sum(paired(fast[w][m], slow[w][m]) for w in fast) / len(fast) for m in METRICS}
    what = "(3) share left at 0.01 less at 0.003, mean of widths 16 to 64"
    lines.append(f"{what}: {verdicts(apart)}")
    return chain.table(every, named, cells, lines)


def fresh_seeds(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """Chapter 3's headline contrasts with its seeds, with the new ones alone, and with all."""
    before = {(16, h): links(every, SWEEP, h).shares for h in (OPEN, EASY)}
    before |= {(64, h): links(every, chain.WIDE, h).shares for h in (OPEN, EASY)}
    fresh = {of: links(every, "fresh_seeds", "w{}_{}".format(*of)).shares for of in before}
    both = {of: {m: pd.concat([before[of][m], fresh[of][m]]) for m in METRICS} for of in before}
    body = []
    for what, contrast in HEADLINES.items():
        for metric in METRICS:
            line = [what, style.plain(metric)]
            for of in (before, fresh, both):
                found = contrast({cell: shares[metric] for cell, shares in of.items()})
                line += [f"{told(found)} ({len(found)})"]
                if of is fresh:
                    line.append(", ".join(f"{value:+.2f}" for value in found))
            body.append(line)
    head = ["contrast of the share left", "of", "chapter 3's seeds", "fresh seeds", "by seed"]
    return markdown([*head, "all"], body)


HEADLINES = {
    "w16, 1,024 tokens - open text": lambda of: paired(of[16, EASY], of[16, OPEN]),
    "open text, w64 - w16": lambda of: paired(of[64, OPEN], of[16, OPEN]),
    "the same less with 1,024 tokens": lambda of: paired(
        paired(of[64, OPEN], of[16, OPEN]), paired(of[64, EASY], of[16, EASY])
    ),
}


SIZES = {"t1024": "1,024 tokens", "t4096": "4,096", "t16384": "16,384", "t65536": "65,536",
         OPEN: HOSTS[OPEN]}  # fmt: skip
CLOSED = [host for host in SIZES if host != OPEN]
DOSE = {w: [("hosts_by_width", f"w{w}_{host}") for host in CLOSED] for w in chain.WIDTHS}
DOSE[16] = [(SWEEP, host) for host in CLOSED[:-1]] + [("large_host", "w16_t65536")]
DOSE[64][0] = (chain.WIDE, EASY)
for width, line in DOSE.items():
    line.append(chain.WIDTHS[width])
"""By width its cells; each closed host has four times the tokens of the one before."""


def dose(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """Every width by host, 65,536 tokens among them, matched damage, and the slopes over hosts."""
    named = {
        cell: (name, chain.CELLS[line[-1]])
        for line in DOSE.values()
        for cell, name in zip(line, SIZES.values(), strict=True)
    }
    cells = {cell: links(every, *cell) for cell in named}
    kept = {width: [cells[cell].shares for cell in line] for width, line in DOSE.items()}
    falls = {w: slopes(dict(zip((2, 4, 8, 16), of[:-1], strict=True))) for w, of in kept.items()}
    lines = []
    for i, name in ((2, "16,384 less 65,536 tokens"), (3, "65,536 tokens less open text")):
        lines.append(f"(1) share left with {name}: {verdicts(shares_apart(*kept[16][i : i + 2]))}")
    over = {w: chain.beyond(every, links(every, *c), DOSE[16]) for w, c in chain.WIDTHS.items()}
    what = "(2) share left per doubling, 16 to 128, beyond width 16's at equal host loss"
    lines.append(f"{what}: {verdicts(slopes(over))}")
    both = {m: (falls[32][m] + falls[64][m]) / 2 for m in METRICS}
    what = "share left per fourfold of the tokens, 1,024 to 65,536"
    lines.append(f"(3) {what}, mean of widths 32 and 64: {verdicts(both)}")
    lines.append(f"(4) {what}, width 128: {verdicts(falls[128])}")
    for said, first in (("(5)", 16), ("not declared,", 32)):
        rises = verdicts(slopes({width: of for width, of in falls.items() if width >= first}))
        lines.append(f"{said} slopes over tokens, per doubling of width, {first} to 128: {rises}")
    body = []
    for width, of in kept.items():
        easier = [shares_apart(one, of[-1]) for one in of[:-1]]
        for metric in METRICS:
            told_of = [told(one[metric]) for one in (falls[width], *easier)]
            body.append([f"w{width}", style.plain(metric), *told_of])
    head = ["width", "share left of", "per fourfold of the tokens"]
    apart = markdown([*head, *(f"{SIZES[host]} less open text" for host in CLOSED)], body)
    return f"{chain.table(every, named, cells, lines)}\n\nNot declared, by width:\n\n{apart}"


FACTS = {(16, 2048): "w16_f2048", (16, 128): "w16_f128",
         (64, 2048): "w64_f2048", (64, 128): "w64_f128"}  # fmt: skip
LEAST = {2048: 1.7865, 128: 1.1354}
"""The least loss of such a host in rows of 32 tokens, as ai2-olmo logs it and `prepare` prints."""


def facts(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """The chain in hosts of facts, and the contrasts declared for it."""
    rates = {16: "0.01", 64: "0.001"}
    named = {("facts", label): (f"{num:,} facts", f"w{width} at {rates[width]}")
             for (width, num), label in FACTS.items()}  # fmt: skip
    cells = {cell: links(every, *cell) for cell in named}
    of = {cell: cells["facts", label] for cell, label in FACTS.items()}
    wide = shares_apart(of[64, 2048].shares, of[16, 2048].shares)
    easy = shares_apart(of[64, 128].shares, of[16, 128].shares)
    dosed = shares_apart(of[16, 128].shares, of[16, 2048].shares)
    forgotten = paired(of[64, 2048].forgotten, of[16, 2048].forgotten) * 1000
    nats = {name: {cell: getattr(one, name)["choice_loss"] for cell, one in of.items()}
            for name in ("gained", "left")}  # fmt: skip
    gained = paired(nats["gained"][16, 128], nats["gained"][16, 2048])
    kept = {w: paired(nats["left"][w, 128], nats["left"][w, 2048]) for w in (16, 64)}
    beyond = {cell: one.host_loss - LEAST[cell[1]] for cell, one in of.items()}
    left = ", ".join(f"w{w} with {n:,} {mean(beyond[w, n])}" for w, n in FACTS)
    lines = [
        f"(1) share left at width 16, 128 less 2,048 facts: {verdicts(dosed)}",
        f"(2) share left with 2,048 facts, w64 - w16: {verdicts(wide)}",
        f"(3) (2) less the same with 128 facts: {verdicts(shares_apart(wide, easy))}",
        f"(4) forgotten with 2,048 facts, nats in a thousand steps: {told(forgotten)}",
        f"(5) the host's loss with 2,048 facts: {told(paired(beyond[64, 2048], beyond[16, 2048]))}",
        f"the host's loss beyond its least: {left}",
        *(
            f"not declared, choice loss in nats, {name}: {told(apart)}"
            for name, apart in (
                ("gained at width 16, 128 less 2,048 facts", gained),
                ("left at width 16, 128 less 2,048 facts", kept[16]),
                ("left with 2,048 facts, w64 - w16, less the same with 128", kept[16] - kept[64]),
            )
        ),
    ]
    return chain.table(every, named, cells, lines)


def streams(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """What bursts say that streams come to, beside what they came to."""
    expected, trained, body = predicted_scores(every), stream_scores(every), []
    for host, name in HOSTS.items():
        line = [name, mean(host_loss(every, host))]
        for rate in STREAM_RATES:
            line += [f"{expected[host, rate]:.2f}", mean(trained[host, rate])]
        body.append(line)
    head = ["host", "its loss (bursts')"]
    for rate in STREAM_RATES:
        head += [f"{rate} a step: predicted", "trained"]
    orders = {"its loss": {host: -host_loss(every, host).mean() for host in HOSTS}}
    brought = {host: twins_of(every, host).query(AT_THE_BURST) for host in HOSTS}
    orders["its burst's score at 1,200"] = {h: rows.value.mean() for h, rows in brought.items()}
    ranks = rank_by_seed(trained, expected)
    others = {name: rank_by_seed(trained, {of: order[of[0]] for of in expected})
              for name, order in orders.items()}  # fmt: skip
    wide = pd.DataFrame(trained)
    means = wide.mean()
    wanted = pd.Series(expected).reindex(means.index)
    off, right = (means - wanted).abs(), (means >= LEARNED) == (wanted >= LEARNED)
    apart = {r: verdict(estimate(wide[OPEN, r] - wide["t16384", r])) for r in STREAM_RATES}
    lines = [
        f"(1) Spearman over the hosts, mean of the rates: {verdict(estimate(ranks))}",
        f"(2) (1) less that of the host's loss: {verdict(estimate(ranks - others['its loss']))}",
        f"(3) of means over seeds: off by {off.mean():.2f} on average, on the same side of .5 in "
        f"{right.sum()} of {len(off)} cells",
        *(f"not declared, Spearman of {name} in (1)'s place: {mean(of)}, (1) less it "
          f"{verdict(estimate(ranks - of))}" for name, of in others.items()),
        "not declared, open text less 16,384 tokens, the one pair in which prediction and host's "
        f"loss differ: {', '.join(f'{text} at {r} a step' for r, text in apart.items())}",
    ]  # fmt: skip
    return f"{markdown(head, body)}\n\n" + "\n".join(f"- {line}" for line in lines)


AT_THE_BURST = (
    f"twin == 'burst' and metric == 'score' and split == 'test' and step == {chain.AFTER}"
)
STREAM_RATES, STREAM_STEPS, STREAM_END = (2, 4, 8), 1200, 2000


def predicted_scores(every: pd.DataFrame) -> dict[tuple[str, int], float]:
    """By host and rate, the score at the end of a stream by the bursts of `closed_host`."""
    found = {}
    for host in HOSTS:
        of = chain.balanced(every, SWEEP, host)
        numbers = {"gain": of.gain.value, "forgetting": of.forgetting.value, "below": of.below}
        for rate in STREAM_RATES:
            found[host, rate] = course(STREAM_STEPS, rate=rate, ceiling=chain.CEILING, **numbers)
    return found


def stream_scores(every: pd.DataFrame) -> dict[tuple[str, int], pd.Series]:
    """By host and rate, the test score at the end, a value a seed."""
    rows = every[(every.sweep == "streams") & (every.metric == "score") & (every.split == "test")]
    rows = rows[rows.step == STREAM_END]
    label = rows.run.str.split("-")
    return {
        (str(host), int(str(rate).removeprefix("r"))): part.set_index("seed").value.sort_index()
        for (host, rate), part in rows.groupby([label.str[2], label.str[3]])
    }


def rank_by_seed(
    trained: Mapping[tuple[str, int], pd.Series], expected: Mapping[tuple[str, int], float]
) -> pd.Series:
    """By seed, Spearman's correlation over the hosts of expected and trained, mean of the rates."""
    wide, of = pd.DataFrame(trained), pd.Series(expected)
    each = [wide[[(h, r) for h in HOSTS]].corrwith(of[[(h, r) for h in HOSTS]], axis=1,
            method="spearman") for r in STREAM_RATES]  # fmt: skip
    return pd.concat(each, axis=1).mean(axis=1)


TABLES: dict[str, Table] = {
    "one_rate": one_rate,
    "fresh_seeds": fresh_seeds,
    "dose": dose,
    "facts": facts,
    "streams": streams,
}
