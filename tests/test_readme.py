"""The README's numbers are those of the committed records."""

from __future__ import annotations

import re
from pathlib import Path

from eval.records import read_records
from eval.report.tables import markdown_cells
from eval.scores.cells import cells
from eval.scores.staircase import learned_per_rung

ROOT = Path(__file__).parent.parent


def test_the_readmes_table_regenerates_from_the_committed_records() -> None:
    table = cells(read_records(ROOT / "docs" / "quickstart" / "records.jsonl"))
    text = markdown_cells(table)
    assert text.strip() in (ROOT / "README.md").read_text()
    assert text == (ROOT / "docs" / "quickstart" / "cells.md").read_text()


def test_the_snippets_table_has_one_score_a_step_and_task() -> None:
    """Scores by mirror are rows of their own, and no part of the score."""
    (line,) = re.findall(r"^test = (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    records = read_records(ROOT / "docs" / "quickstart" / "records.jsonl")
    test = eval(line, {"records": records})
    assert len(test)
    assert not test.duplicated(["run", "step", "task"]).any()


def test_the_readmes_claim_holds_in_the_committed_records() -> None:
    (counts,) = learned_per_rung(
        cells(read_records(ROOT / "docs" / "quickstart" / "records.jsonl"))
    )
    assert list(counts.num_learned) == [0, 0, 2]
    assert counts.rises
    assert not counts.provisional


def test_the_table_of_copies_is_that_of_its_committed_records() -> None:
    rows = read_records(ROOT / "docs" / "memorization" / "canaries.jsonl").set_index("subset")
    page = (ROOT / "docs" / "memorization.md").read_text()
    metrics = {"sequence_loss": "{0:.2f}", "exposure": "{0:.2f} [{1:.2f}, {2:.2f}]"}
    metrics["membership_auc"] = "{0:.2f} [{1:.2f}, {2:.2f}]"
    for copies in (0, 1, 4, 16, 64):
        level = rows.loc[f"copies={copies}"].set_index("metric")[["value", "low", "high"]]
        line = [text.format(*level.loc[metric]) for metric, text in metrics.items()]
        line[-1] = line[-1].replace("0.", ".")
        assert f"| {copies} | {' | '.join(line)} |" in page
    losses = rows[rows.metric == "sequence_loss"].value
    assert f"The twins' loss is {losses['twins']:.2f}. Nothing was extracted" in page
    assert (rows[rows.metric == "extraction"].value == 0).all()


def test_every_path_the_readme_links_to_exists() -> None:
    import re

    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
