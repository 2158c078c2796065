"""refuses(), by which the tests ask an error for its attributes, fails where one is another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from refusals import refuses

from data_injection.errors import ConfigError, DivergedError

TOLD = {"key": "every", "value": 0, "rule": "must be at least 1", "remedy": "leave it out"}


def test_what_is_told_is_accepted_in_whole_and_in_part() -> None:
    for asked in (
        {},
        {"value": 0, "rule": "at least 1", "remedy": ("leave", "out")},
        {"of": "a.yaml"},
    ):
        with refuses(key="every", **asked) as caught:
            raise ConfigError(**TOLD).told_of("a.yaml")
        assert caught.value.remedy == "leave it out"
    with refuses(key=Path("a") / "b", value=Path("c"), kind=DivergedError):
        raise DivergedError(key="a/b", value="c", rule="diverged")


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"key": "ever"}, "key of"),
        ({"key": "every", "value": 1}, "value of"),
        ({"key": "every", "value": False}, "value of"),
        ({"key": "every", "rule": "at least 2"}, "rule of"),
        ({"key": "every", "rule": "leave it out"}, "rule of"),
        ({"key": "every", "remedy": ("leave", "at least")}, "remedy of"),
        ({"key": "every", "of": "a.yaml"}, "not of a.yaml"),
    ],
)
def test_another_attribute_is_named(asked: dict[str, Any], named: str) -> None:
    with pytest.raises(AssertionError, match=named), refuses(**asked):
        raise ConfigError(**TOLD)
    with pytest.raises(pytest.fail.Exception), refuses(**asked):
        pass


def test_prose_is_asked_of_no_refusal_under_whatever_name_it_is_caught() -> None:
    for kind in (ValueError, Exception, ConfigError):
        with pytest.raises(AssertionError, match="use refuses"), pytest.raises(kind, match="least"):
            raise ConfigError(**TOLD)
    with pytest.raises(ValueError, match="least"):
        raise ValueError("at least 1")
