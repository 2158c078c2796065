"""Files of records as kills, editors and other programs leave them: read, or refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refuses

from eval.records import read_records

RECORDS = Path(__file__).parent / "records"

ROWS = {"blank": 6, "clean": 6, "crlf": 6, "cut": 5, "dup": 6, "empty": 0, "nan": 6}


@pytest.mark.parametrize(("name", "rows"), ROWS.items())
def test_every_whole_record_is_read_once(name: str, rows: int) -> None:
    assert len(read_records(RECORDS / f"{name}.jsonl")) == rows


def test_what_is_no_record_is_refused_with_its_line() -> None:
    with refuses(key=RECORDS / "not_object.jsonl:7", rule="a JSON object", remedy="mend or drop"):
        read_records(RECORDS / "not_object.jsonl")
