"""The commands of a page of docs, run as a reader would run them, and held against what it shows.

A block ```console has commands after "$ " and what they print. A block whose first line is a
comment with a file's name is that file. `olmo-ext` runs in this process, sparing it the imports.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from typer.testing import CliRunner

from data_injection.errors import ConfigError
from launch.terminal import BAD_INPUT

MEASURED = re.compile(r"(?<![\w.])[-+]?\d*\.\d+(?:e[-+]?\d+)?|\b[0-9a-f]{12,}\b")
"""Decimals, which may differ on another machine, and digests, which depend on the text."""


class Command(NamedTuple):
    line: str
    shown: str


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def files(text: str) -> dict[str, str]:
    """The files that a page shows, by name."""
    shown = [block for kind in ("python", "yaml") for block in blocks(text, kind)]
    named = ((re.match(r"# (\S+\.(?:py|yaml))\n", block), block) for block in shown)
    return {match[1]: block for match, block in named if match}


def commands(text: str) -> Iterator[Command]:
    for block in blocks(text, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            length = 1
            while not _whole("\n".join(lines[:length])):
                length += 1
            yield Command("\n".join(lines[:length]), "\n".join(lines[length:]))


def _whole(line: str) -> bool:
    """Whether a command ends here: no open quote, and no backslash before the line's end."""
    try:
        shlex.split(line)
    except ValueError:
        return False
    return not line.endswith("\\")


def run(line: str) -> tuple[int, str]:
    """Status and standard output (of an error its message) of a command in this folder."""
    line = line.replace("\\\n", " ")
    words = shlex.split(line)
    if words[0] == "olmo-ext":
        from launch.cli import app

        done = CliRunner().invoke(app, words[1:], prog_name="olmo-ext")
        if isinstance(done.exception, ConfigError):  # as launch.cli.main ends
            return BAD_INPUT, f"{done.stdout}error: {done.exception}"
        if not isinstance(done.exception, SystemExit | None):
            raise done.exception
        return done.exit_code, done.stdout
    if words[0] == "python":
        words[0] = sys.executable
        line = shlex.join(words)
    bash = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    return bash.returncode, bash.stdout + bash.stderr


def same(shown: str, printed: str, *, exactly: bool = False) -> bool:
    """Whether a page shows what was printed: "..." stands for anything, white space and the drawn
    lines of tables do not count; of what is MEASURED, unless `exactly`, only that it is there."""

    def plain(text: str) -> str:
        text = re.sub(r"[─━]+", " ", text)
        return " ".join((text if exactly else MEASURED.sub("#", text)).split())

    pattern = ".*?".join(re.escape(part.strip()) for part in plain(shown).split("..."))
    return re.fullmatch(pattern.replace(".*?", r"\s?.*?\s?"), plain(printed)) is not None
