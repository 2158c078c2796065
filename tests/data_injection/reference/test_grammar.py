"""What is a natural comparison or addition, and what only looks like one."""

from __future__ import annotations

from decimal import Decimal

import pytest

from data_injection.reference.grammar import (
    FRESH,
    TASKS,
    find_statements,
    foil,
    fresh_statements,
    value_of,
)

STATEMENTS = [
    ("We know that 0 < 3 and so on", "R_cmp", "0 < 3", "3", True),
    ("that 3 is not equal to 3", "R_cmp", "3 is not equal to 3", "3", False),
    ("so 3 < 5 holds", "R_cmp", "3 < 5", "5", True),
    ("12>7", "R_cmp", "12>7", "7", True),
    ("(5 <= 3)", "R_cmp", "5 <= 3", "3", False),
    ("2 ≤ 2.", "R_cmp", "2 ≤ 2", "2", True),
    ("1,200 > 1,199.5, yes", "R_cmp", "1,200 > 1,199.5", "1,199.5", True),
    ("4 == 4", "R_cmp", "4 == 4", "4", True),
    ("7 is greater than 3.", "R_cmp", "7 is greater than 3", "3", True),
    ("Three is less than twenty-five!", "R_cmp", "Three is less than twenty-five", "twenty-five",
     True),
    ("9 is larger than or equal to 10", "R_cmp", "9 is larger than or equal to 10", "10", False),
    ("12 is equal to 12", "R_cmp", "12 is equal to 12", "12", True),
    ("max(3, 5) == 5", "R_cmp", "max(3, 5) == 5", "5", True),
    ("The larger of 3 and 5 is 3.", "R_cmp", "larger of 3 and 5 is 3", "3", False),
    ("2+3=5", "R_add", "2+3=5", "5", True),
    ("2 + 2 = 5", "R_add", "2 + 2 = 5", "5", False),
    ("two plus three is five", "R_add", "two plus three is five", "five", True),
    ("12 plus 5 equals 17", "R_add", "12 plus 5 equals 17", "17", True),
    ("0.1 + 0.2 = 0.3", "R_add", "0.1 + 0.2 = 0.3", "0.3", True),
    ("1 + 1 == 2", "R_add", "1 + 1 == 2", "2", True),
    ("the sum of 2 and 3 is 5", "R_add", "sum of 2 and 3 is 5", "5", True),
]  # fmt: skip

NO_STATEMENTS = [
    *(
        "i < 10",
        "x3 < 5",
        "3 < n",
        "<b>3</b>",
        "1 < x < 3",
        "1 < 2 < 3",
        "n - 4 == 4",
        "k % 5 == 0",
    ),
    *("1 << 4", "3 -> 5", "2012-01-03 > 2", "v1.2.3 < 5", "3 < 5%", "$3 < 5", "3 < 5x", "3 < 2^5"),
    *("1 + 2 + 3 = 6", "2*3 + 4 = 10", "2 + 3 = 5 * x", "x2 + 3 = 5", "2 + 3 = 5y", "1/2 + 1 = 2"),
    *("7 more than 2", "more than 3", "less than 5 million", "3 is less than 5 million", "2 + 3"),
    *("two times three is less than ten", "no one is less than five", "2 +\n3 = 5", "3\n< 5"),
    *("5 = 2 + 3", "12:30 < 14:00", "3 < 5(x)", "1e-5 < 3", "minimum of 5 and 6", "sum of 2 and 3"),
]


@pytest.mark.parametrize(("text", "task", "said", "answer", "correct"), STATEMENTS)
def test_a_statement_is_found_with_its_answer_and_truth(
    text: str, task: str, said: str, answer: str, correct: bool
) -> None:
    data = text.encode()
    [found] = find_statements(data)
    assert (found.task, found.text, found.answer, found.correct) == (task, said, answer, correct)
    assert data[found.start : found.stop] == said.encode()
    assert data[found.answer_start : found.stop].decode().rstrip(")") == answer


@pytest.mark.parametrize("text", NO_STATEMENTS)
def test_false_friends_are_no_statements(text: str) -> None:
    assert list(find_statements(text.encode())) == []


def test_a_long_number_and_a_long_statement_are_refused_as_a_whole() -> None:
    assert list(find_statements(b"1234567890123 < 5")) == []
    wide = b"999,999,999,999.123456 is greater than or equal to 999,999,999,999.123455"
    assert len(wide) > 64
    assert list(find_statements(wide)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 < 5", "> 5"),
        ("5 >= 3", "<= 3"),
        ("2 ≤ 3", "≥ 3"),
        ("3 is less than or equal to 5", "greater than or equal to 5"),
        ("3 is smaller than 5", "larger than 5"),
        ("4 is equal to 4", "not equal to 4"),
        ("max(3, 5) = 5", "3"),
        ("4 <= 4", None),  # true either way
        ("max(2, 2) = 2", None),
    ],
)
def test_the_foil_of_a_comparison_says_the_opposite(text: str, expected: str | None) -> None:
    [found] = find_statements(text.encode())
    assert foil(found, seed=0) == expected


@pytest.mark.parametrize(
    "answer", ["0", "9", "10", "1,000", "0.30", "five", "twenty", "thirty-one"]
)
def test_the_foil_of_an_addition_is_off_by_one_in_its_last_place_and_written_alike(
    answer: str,
) -> None:
    [found] = find_statements(f"1 + 2 = {answer}".encode())
    step = Decimal("0.01") if "." in answer else Decimal(1)
    for seed in range(8):
        other = foil(found, seed=seed)
        assert other is not None
        assert abs(value_of(other) - value_of(answer)) == step
        assert value_of(other) >= 0
        assert other[0].isdigit() == answer[0].isdigit()


@pytest.mark.parametrize("task", TASKS)
def test_fresh_statements_are_true_distinct_and_avoid_what_was_seen(task: str) -> None:
    first = fresh_statements(task, 40, seed=1, avoid=frozenset())
    assert first == fresh_statements(task, 40, seed=1, avoid=frozenset())
    avoid = frozenset(frozenset(map(value_of, one.operands)) for one in first[:20])
    second = fresh_statements(task, 40, seed=1, avoid=avoid)
    assert len({one.text for one in second}) == len(second) == 40
    for one in second:
        assert one.correct
        assert one.task == task
        assert frozenset(map(value_of, one.operands)) not in avoid


def test_either_relation_is_half_of_the_fresh_comparisons() -> None:
    relations = [one.relation for one in fresh_statements("R_cmp", 80, seed=0, avoid=frozenset())]
    assert [relations.count(r) for r in ("<", ">", "less", "greater")] == [20] * 4
    assert len(FRESH["R_cmp"]) == 4
