"""What is typed: the command line as a user gives it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from launch.cli import main


@pytest.fixture
def typed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Status, standard output and standard error of an `olmo-ext` line, word by word."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["olmo-ext", *words])
        with pytest.raises(SystemExit) as done:
            main()
        said = capfd.readouterr()
        return int(done.value.code or 0), said.out, said.err

    return run
