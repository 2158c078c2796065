"""One rule of width for every table of every verb: names never vanish, numbers are never cut."""

from __future__ import annotations

import ast
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from eval.text import new_table, print_table
from tests.eval.report.test_report import frame_of
from tests.eval.scores.test_score_table import table as scores

ROOT = Path(__file__).parent.parent.parent
NAMES = ("comparison-of-runs_" * 4 + "w4096", "[bold]", "t")
LONG = [f"{value:.17g}" for value in (4.92e-123, 7.5e-321, 1.2345678901234567e300)]


def console(width: int, *, terminal: bool) -> Console:
    return Console(file=StringIO(), width=width, force_terminal=terminal, color_system=None)


def printed(table: Table, width: int, *, terminal: bool) -> str:
    out = console(width, terminal=terminal)
    print_table(table, out)
    return out.file.getvalue()  # type: ignore[attr-defined]


def wide_table(num_numbers: int = 8) -> Table:
    table = new_table(
        "run",
        "task",
        "split",
        numbers=[f"metric {i}" for i in range(num_numbers)],
        title="[r] wide",
    )
    for index in range(3):
        table.add_row(*NAMES, *(f"{LONG[(index + i) % 3]}" for i in range(num_numbers)))
    return table


@pytest.mark.parametrize(("width", "terminal"), [(80, True), (100, True), (80, False), (20, False)])
def test_names_and_numbers_are_whole_however_narrow(width: int, terminal: bool) -> None:
    text = printed(wide_table(), width, terminal=terminal)
    assert "…" not in text
    assert [text.count(number) for number in LONG] == [8, 8, 8]
    assert "[bold]" in text
    assert "[r] wide" in text
    if terminal:
        assert max(map(len, text.splitlines())) <= width
        end = next(line.index("task") for line in text.splitlines() if "task" in line)
        assert "".join(line[:end].strip() for line in text.splitlines()).count(NAMES[0])
    else:
        assert text.count(NAMES[0]) == 3


@given(
    names=st.lists(st.text("abcdefgh-_", min_size=1, max_size=60), min_size=1, max_size=3),
    digits=st.lists(st.integers(1, 24), min_size=1, max_size=9),
    width=st.integers(60, 140),
)
@example(names=["_" * 11, "_" * 11, "_" * 12], digits=[17], width=60)
def test_every_table_of_any_shape_is_whole_on_a_terminal(
    names: list[str], digits: list[int], width: int
) -> None:
    numbers = ["9" * num + "." for num in digits]
    table = new_table(*["name"] * len(names), numbers=["n"] * len(numbers))
    table.add_row(*names, *numbers)
    text = printed(table, width, terminal=True)
    words = text.split()
    assert sorted(word for word in words if word.startswith("9")) == sorted(numbers)
    letters = [sum(text.count(c) for c in set(name)) for name in names]
    assert all(letters)
    assert max(map(len, text.splitlines())) <= width


def test_a_table_that_fits_is_one_table() -> None:
    table = new_table("run", numbers=("step", "loss"), beside=("folder",))
    table.add_row("w16", "1,024", "2.5", "runs/a/b/c")
    assert printed(table, 80, terminal=True).count("run ") == 1
    assert printed(table, 80, terminal=True).split() == printed(table, 80, terminal=False).split()


@pytest.mark.parametrize("terminal", [True, False])
def test_the_tables_of_eval_report_and_cost_are_whole_at_80_columns(terminal: bool) -> None:
    from eval.report.tables import print_cells
    from eval.scores.cells import cells
    from eval.scores.table import print_scores
    from launch.plan.cost import plan_cost

    rows = scores([5])
    rows["checkpoint"] = "runs/a-sweep-with-a-long-name/protocol=single,rung=w64/step5-unsharded"
    rows["task"] = "comparison-rare-0.0078"
    out = console(80, terminal=terminal)
    print_scores(rows, out)
    print_cells(cells(frame_of(1)), out)
    ladder = sorted((ROOT / "configs" / "olmo_4M_to_4B").rglob("*.yaml"))[:2]
    plan_cost(ladder, [], gpus=8, peak_tflops=989.0, mfu=0.4, json_path=None, console=out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert text.count("[-0.62, -0.38]") == 1
    assert "comparison" in text
    if not terminal:
        assert "comparison-rare-0.0078" in text


def test_no_verb_builds_or_prints_a_table_past_the_rule() -> None:
    wrong = []
    for room in ("launch", "eval", "olmo_ext", "data_injection", "theory"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "Table":
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert len(wrong) == 1
    assert wrong[0].startswith("eval/text.py")
