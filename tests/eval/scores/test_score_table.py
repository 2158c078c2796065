"""The scores of an evaluation as a terminal shows them."""

from __future__ import annotations

import pandas as pd
from rich.console import Console

from eval.scores.table import MOST_LINES, print_scores


def table(steps: list[int]) -> pd.DataFrame:
    rows = []
    for step in steps:
        common = {"checkpoint": f"runs/a/step{step}-unsharded", "step": step, "task": "cmp"}
        for split in ("train", "test"):
            for metric in ("accuracy", "label_accuracy", "score", "label_loss"):
                row = {"split": split, "metric": metric, "value": 0.25, "low": 0.2, "high": 0.3}
                rows.append(common | row | {"subset": "all"})
                rows.append(common | row | {"subset": "label=7", "value": 0.99})
        rows.append(
            common
            | {"split": "", "subset": "all", "metric": "memorised_gap"}
            | {"value": -0.5, "low": -0.625, "high": -0.375}
        )
    return pd.DataFrame(rows)


def shown(steps: list[int]) -> str:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_scores(table(steps), console)
    return console.export_text()


def test_scores_stand_with_their_intervals_and_gaps_beside_the_test_split() -> None:
    text = shown([5])
    assert text.count("[0.20, 0.30]") == 2
    assert text.count("-0.50") == text.count("[-0.62, -0.38]") == 1
    assert "0.99" not in text
    assert "step5" in text


def test_of_many_checkpoints_the_last_is_shown_and_the_rest_named() -> None:
    assert "--export" not in shown([1, 2])
    text = shown(list(range(MOST_LINES)))
    assert f"step{MOST_LINES - 1}" in text
    assert "step3 " not in text
    assert "--export" in text


def test_nothing_measured_is_an_empty_table() -> None:
    console = Console(width=140, record=True, quiet=True)
    print_scores(table([5]).iloc[:0], console)


def test_a_diverged_model_is_called_so() -> None:
    rows = table([5])
    rows.loc[rows.metric == "score", ["value", "low", "high"]] = float("nan")
    rows["diverged"] = rows.metric.eq("score").map({True: True, False: None})
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_scores(rows, console)
    assert console.export_text().count("diverged") == 2


def test_of_one_sequence_there_is_no_interval_to_show() -> None:
    row = {"checkpoint": "runs/a/step5-unsharded", "step": 5, "task": "seq", "split": "train"}
    row |= {"subset": "copies=3", "metric": "sequence_loss", "value": 6.25}
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_scores(pd.DataFrame([row | dict.fromkeys(("low", "high"), float("nan"))]), console)
    text = console.export_text()
    assert "6.25" in text
    assert "nan" not in text
