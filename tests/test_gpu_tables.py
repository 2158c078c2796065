"""RESULTS.md's tables of GPUs are what benchmarks/gpu/tables.py makes of results, to the digit."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu" / "tables.py"
EMPTY = "a\n<!-- gpu: speed -->\nold\n<!-- end -->\nb\n<!-- gpu: variants -->\n<!-- end -->\n"
SPEED = {
    "stage": "speed", "t": 86400.0, "rung": "4M", "rows": 32, "micro": 16, "ours_tok_s": 768935.3,
    "stock_tok_s": 780928.7, "ratio": 1.01338, "ours_mfu": 0.03726, "peak_gb_both": 17.94,
}  # fmt: skip
VARIANT = {"stage": "variants", "rung": "4M", "mfu": 0.06, "peak_gb": 7.63, "t": 86400.0}
RESULTS = [
    {"stage": "env", "t": 86400.0, "gpu": "NVIDIA H100", "commit": "abc1234"},
    SPEED,
    {"stage": "speed", "rung": "1B", "error": "out of memory in /scratch/of/a/run/file.py"},
    VARIANT | {"variant": "eager", "tok_s": 1e6, "loss_diff": 0.0},
    VARIANT | {"variant": "model", "tok_s": 1.5e6, "loss_diff": 1.4e-3},
]


@pytest.fixture
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_without_a_result_the_tables_say_so(tables: ModuleType) -> None:
    assert tables.filled(EMPTY, []).count("Not yet measured.") == 2


def test_a_session_is_taken_in_and_its_tables_have_its_numbers(
    tables: ModuleType, tmp_path: Path
) -> None:
    kept = tables.take_in(write(tmp_path / "results.jsonl", RESULTS), tmp_path)
    assert kept.name == "h100-1970-01-02.jsonl"
    assert "/scratch" not in kept.read_text()
    rows = list(tables.read_results(kept))
    text = tables.filled(EMPTY, rows)
    where = "H100, 1970-01-02, abc1234"
    assert f"| 4M | 32, 16 | 768,935 | 780,929 | 1.013 | 3.7% | 17.9 | {where} |" in text
    assert f"| 4M | model | 1,500,000 | 1.50 | 6.0% | 7.6 | 1e-03 | {where} |" in text
    assert "1B" not in text
    assert "old" not in text
    assert tables.filled(text, rows) == text


def test_the_json_of_bench_is_taken_in_and_a_rehearsal_is_not(
    tables: ModuleType, tmp_path: Path
) -> None:
    row = {k: v for k, v in SPEED.items() if k not in ("stage", "rung")}
    row |= {"model": "20M", "card": "NVIDIA H100"}
    (path := tmp_path / "bench.json").write_text(json.dumps([row]))
    told = tables.speed(tables.read_results(tables.take_in(path, tmp_path)))
    assert "| 20M | 32, 16 | 768,935 |" in told
    with pytest.raises(ValueError, match="tells of no card"):
        tables.take_in(write(tmp_path / "dry.jsonl", RESULTS[1:]), tmp_path)


def test_the_committed_tables_come_out_again(tables: ModuleType) -> None:
    rows = [
        row for path in sorted(tables.KEPT.glob("*.jsonl")) for row in tables.read_results(path)
    ]
    text = tables.DOCUMENT.read_text()
    assert tables.filled(text, rows) == text
    assert len(tables.MARK.findall(text)) == len(tables.TABLES)
