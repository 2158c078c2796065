"""Every verb that prints a table writes its rows as JSON, and nothing else on stdout with -."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from data_injection.lock import lock_folder
from eval.records import RecordWriter, read_records
from launch.cli import app
from launch.show import watch

Typed = Callable[..., tuple[int, str, str]]
TABLES = (
    *("quickstart", "plan", "sweep", "report", "eval", "features", "reference", "audit", "doctor"),
    *(
        "verify",
        "bench",
        "status",
        "theory",
        "predict",
        "scaling fit",
        "scaling advise",
        "scaling mixture",
    ),
)
RECORDS = Path(__file__).parents[2] / "docs" / "quickstart" / "records.jsonl"


@pytest.mark.parametrize("verb", TABLES)
def test_a_verb_with_a_table_has_json(verb: str) -> None:
    command: Any = get_command(app)
    for word in verb.split():
        command = command.commands[word]
    assert "--json" in {option for one in command.params for option in one.opts}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    shutil.copy(RECORDS, tmp_path / "records.jsonl")
    return tmp_path


def test_doctor_says_what_is_missing_costs_and_how_to_get_it(typed: Typed) -> None:
    _, out, err = typed("doctor", "--json", "-")
    rows = json.loads(out)
    assert "what it costs" in err
    missing = [row for row in rows if row["status"] != "ok"]
    assert {"Python", "torch", "flash-attn", "sbatch", "W&B"} <= {row["what"] for row in rows}
    assert all(row["cost"] and row["remedy"] for row in missing)


def test_a_reports_rows_are_its_cells_with_whole_numbers(source: Path, typed: Typed) -> None:
    status, out, err = typed("report", str(source), "--json", "-")
    assert status == 0, err
    rows = json.loads(out)
    assert len(rows) == 15
    best = max(rows, key=lambda row: row["score"])
    assert (best["rung"], best["rate_per_step"], best["learned"]) == ("w64", 8.0, True)
    assert "accuracy" in best


def test_a_json_file_that_cannot_be_written_is_refused_before_any_work(
    source: Path, typed: Typed
) -> None:
    for line in ("doctor", f"report {source}", f"eval {source}", "theory phase", "quickstart"):
        status, out, err = typed(*line.split(), "--json", "no/a.json")
        assert (status, out) == (2, "")
        assert "--json" in err
        assert "no/a.json" in err


def test_watch_writes_again_while_a_run_lives_and_last_without_reloading(
    source: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks the run measures once more, and then it ends."""
    (source / "run.json").write_text("{}")
    seen: list[str] = []
    lock = lock_folder(source)
    lock.__enter__()

    def sleep(seconds: float) -> None:
        page = source / "report.html"
        seen.append(page.read_text() if page.exists() else "")
        if len(seen) == 1:
            row = read_records(source).iloc[-1].dropna().to_dict() | {
                "step": 2500,
                "run": "one-more",
            }
            with RecordWriter(source / "records.jsonl") as writer:
                writer.write([row])
        elif len(seen) == 2:
            lock.__exit__(None, None, None)

    monkeypatch.setattr(watch.time, "sleep", sleep)
    status, _, err = typed("report", str(source), "--watch", "5")
    assert status == 0, err
    first, second, *_ = seen
    assert 'http-equiv="refresh" content="5.0"' in first
    assert "one-more" not in first
    assert "one-more" in second
    assert 'http-equiv="refresh"' not in (source / "report.html").read_text()
