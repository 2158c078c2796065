"""docs/findings.md: its tables are those of the committed records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eval.findings import TABLES, as_json_lines, fill, thin
from eval.findings_figures import FIGURES
from eval.records import read_records
from launch.confirm import SWEEPS, confirm_sweeps

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture(scope="module")
def frame():
    return read_records(DOCS / "findings" / "records.jsonl")


@pytest.fixture(scope="module")
def text() -> str:
    return (DOCS / "findings.md").read_text()


def test_every_table_of_the_document_regenerates_from_the_committed_records(frame, text) -> None:
    assert fill(text, frame) == text


def test_a_changed_record_or_a_changed_table_is_noticed(frame, text) -> None:
    changed = frame.copy()
    of = (changed.run == "single-s1-w16-r4") & (changed.metric == "score")
    assert of.any()
    changed.loc[of, "value"] += 0.1
    assert fill(text, changed) != text
    assert fill(text.replace("| w16 |", "| w61 |"), frame) == text


def test_the_document_shows_every_table_and_figure_once(text) -> None:
    assert sorted(re.findall(r"<!-- table: (\w+) -->", text)) == sorted(TABLES)
    shown = re.findall(r"\]\(findings/(\w+)\.png\)", text)
    assert sorted(shown) == sorted(FIGURES)
    assert all((DOCS / "findings" / f"{name}.png").stat().st_size > 10_000 for name in shown)


def test_every_figure_draws_from_the_committed_records(frame) -> None:
    for draw in FIGURES.values():
        assert draw(frame).axes


def test_every_condition_has_at_least_three_seeds(frame) -> None:
    sweep = frame.run.str.split("-").str[0]
    seeds = frame.groupby([sweep, "rung", "task", "learning_rate"]).seed.nunique()
    assert seeds.min() >= 3


def test_the_records_are_the_runs_of_the_committed_sweeps_and_no_others(frame) -> None:
    planned = {
        f"{sweep.name}-{'-'.join(point.labels)}"
        for sweep in confirm_sweeps()
        for point in sweep.points()
    }
    assert set(frame.run) == planned


def test_every_sweep_of_configs_confirm_is_run() -> None:
    files = {path.stem for path in (DOCS.parent / "configs" / "confirm").glob("*.yaml")}
    assert files - {"experiment"} == set(SWEEPS)


def test_thin_records_read_back_as_they_were(frame, tmp_path) -> None:
    again = tmp_path / "records.jsonl"
    again.write_text(as_json_lines(thin(frame)))
    assert again.read_bytes() == (DOCS / "findings" / "records.jsonl").read_bytes()
