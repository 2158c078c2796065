"""The table of docs/findings.md on where in a run the same instances stand: early, even or late."""

from __future__ import annotations

import pandas as pd

from eval.figures import style
from eval.findings.contrasts import difference
from eval.findings.controls import Table, markdown, mean, verdict
from eval.findings.hosts import METRICS, UNREAD, test_scores

WIDTHS, PLACES = ("w16", "w64"), ("early", "even", "late")


def thin(frame: pd.DataFrame) -> pd.DataFrame:
    """The test scores of every example, by step."""
    kept = frame[test_scores(frame)].drop(columns=[*UNREAD, "gap"], errors="ignore")
    return kept.sort_values(["run", "step", "metric"])


def at_the_end(every: pd.DataFrame, width: str, place: str, metric: str) -> pd.Series:
    """One value a seed, at the last step."""
    label = every.run.str.split("-")
    rows = every[(label.str[1] == width) & (label.str[3] == place) & (every.metric == metric)]
    return rows[rows.step == every.step.max()].set_index("seed").value.sort_index()


def placement(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """Score and choice loss at the end by width and place, and the declared contrasts."""
    body = []
    for metric in METRICS:
        at = {(w, p): at_the_end(every, w, p, metric) for w in WIDTHS for p in PLACES}
        for width in WIDTHS:
            early, even, late = (at[width, place] for place in PLACES)
            line = [style.plain(metric), width, *(mean(one) for one in (early, even, late))]
            line += [verdict(difference(late, one)) for one in (even, early)]
            body.append(line)
        narrow, wide = (at[width, "late"] - at[width, "even"] for width in WIDTHS)
        interaction = verdict(difference(narrow, wide))
        body.append([style.plain(metric), "w16 - w64", "", "", "", interaction, ""])
    return markdown(["", "width", *PLACES, "late - even", "late - early"], body)


TABLES: dict[str, Table] = {"placement": placement}
