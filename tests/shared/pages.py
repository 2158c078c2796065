"""The commands of a page of docs, run as a reader would run them, and held against what it shows.

A block ```console has commands after "$ " and what they print, a block ```bash commands alone. A
block whose first line is a comment with a file's name is that file. `olmo-ext` runs in this
process, sparing it the imports.
"""

from __future__ import annotations

import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from typer.main import get_command
from typer.testing import CliRunner

from data_injection.errors import ConfigError
from launch.terminal import BAD_INPUT, NO_SUCH_FILE

ROOT = Path(__file__).parents[2]

MEASURED = re.compile(r"(?<![\w.])[-+]?\d*\.\d+(?:e[-+]?\d+)?|\b[0-9a-f]{12,}\b")
"""Decimals, which may differ on another machine, and digests, which depend on the text."""

COUNTED = re.compile(rf"{MEASURED.pattern}|\b\d[\d,]*\b")
"""Counts too, of a page whose commands count the corpus: a test has a smaller one."""


class Command(NamedTuple):
    line: str
    shown: str | None
    """What the page says it prints; None where it says nothing."""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def files(text: str) -> dict[str, str]:
    """The files that a page shows, by name."""
    shown = [block for kind in ("python", "yaml") for block in blocks(text, kind)]
    named = ((re.match(r"# (\S+\.(?:py|yaml))\n", block), block) for block in shown)
    return {match[1]: block for match, block in named if match}


def commands(text: str) -> Iterator[Command]:
    fence = r"^```(console|bash)\n(.*?)^```"
    for language, block in re.findall(fence, text, re.DOTALL | re.MULTILINE):
        if language == "bash":
            lines = block.splitlines()
            while lines:
                line = _first(lines)
                del lines[: line.count("\n") + 1]
                if line and not line.startswith("#"):
                    yield Command(line, None)
            continue
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            line = _first(lines)
            yield Command(line, "\n".join(lines[line.count("\n") + 1 :]))


def unfenced(text: str) -> list[str]:
    """What looks like a command, and stands where `commands` does not look."""
    fence = r"^```(\w*)\n(.*?)^```"
    blocks = re.findall(fence, text, re.DOTALL | re.MULTILINE)
    prose = re.sub(fence, "", text, flags=re.DOTALL | re.MULTILINE)
    found = [block for language, block in blocks if language not in ("bash", "console", "python")]
    lines = [line for block in found for line in block.splitlines() if line.startswith("$ ")]
    return lines + re.findall(
        r"^ {4}(?:\$ |olmo-ext |make |python3? \S*[./-]).*", prose, re.MULTILINE
    )


def _first(lines: Sequence[str]) -> str:
    """The first command of lines, with those that it goes on in."""
    length = 1
    while not _whole("\n".join(lines[:length])):
        length += 1
    return "\n".join(lines[:length])


def _whole(line: str) -> bool:
    """Whether a command ends here: no open quote, and no backslash before the line's end."""
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return False
    return not line.endswith("\\")


def run(line: str) -> tuple[int, str]:
    """Status and standard output (of an error its message) of a command in this folder."""
    line = line.replace("\\\n", " ")
    words = shlex.split(line, comments=True)
    if words[0] == "olmo-ext":
        from launch.cli import app

        done = CliRunner().invoke(app, words[1:], prog_name="olmo-ext")
        if isinstance(done.exception, (ConfigError, *NO_SUCH_FILE)):  # as launch.cli.main ends
            return BAD_INPUT, f"{done.stdout}error: {done.exception}"
        if not isinstance(done.exception, SystemExit | None):
            raise done.exception
        return done.exit_code, done.stdout
    if words[0] == "python":
        words[0] = sys.executable
        line = shlex.join(words)
    bash = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    return bash.returncode, bash.stdout + bash.stderr


def same(
    shown: str,
    printed: str,
    *,
    measured: re.Pattern[str] | None = MEASURED,
    within: float = math.inf,
) -> bool:
    """Whether a page shows what was printed: "..." stands for anything, white space and the drawn
    lines of tables do not count; of what is `measured` only that it is there, and that it differs
    by no more than a share `within`."""
    numbers: list[str] = []

    def pattern(part: str) -> str:
        if measured is None:
            return re.escape(part)
        told = measured.findall(part)
        numbers.extend(told)
        between = [re.escape(text) for text in measured.split(part)]
        return f"({measured.pattern})".join(between)

    parts = [pattern(part.strip()) for part in _plain(shown).split("...")]
    match = re.fullmatch(r"\s?.*?\s?".join(parts), _plain(printed))
    return match is not None and all(
        _near(*pair, within=within) for pair in zip(numbers, match.groups(), strict=True)
    )


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[─━]+", " ", text).split())


def _near(told: str, found: str, *, within: float) -> bool:
    try:
        return abs(float(told) - float(found)) <= within * max(abs(float(told)), 1e-12)
    except ValueError:  # a digest
        return True


def typed(text: str) -> Iterator[tuple[str, bool]]:
    """Every command line that a page tells its reader, and whether it is only mentioned.

    In a block, in lines set in by four spaces, or (mentioned) within a sentence.
    """
    fence = r"^```\w*\n(.*?)^```"
    prose = re.sub(fence, "", text, flags=re.DOTALL | re.MULTILINE)
    told = re.findall(fence, text, re.DOTALL | re.MULTILINE)
    told += re.findall(r"(?:^ {4}.*\n)+", prose, re.MULTILINE)
    for block in told:
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            yield line.strip().removeprefix("$ "), False
    for span in re.findall(r"`([^`]+)`", prose):
        yield " ".join(span.split()), True


def problem(line: str, *, mentioned: bool) -> str:
    """Why a command line cannot be typed as it stands, nothing being run; "" if it can."""
    if line.startswith("python -c"):  # of several lines; those of tutorials run
        return ""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&<>()")
    lexer.whitespace_split = True
    words = list(takewhile(lambda word: word[0] not in ";|&<>", lexer))
    gone = [w for w in words if re.match(r"(configs|docs|benchmarks|examples|tests)/[^*]+$", w)]
    if gone := [word for word in gone if not (ROOT / word).exists()]:
        return f"there is no {gone}"
    if words[0] == "olmo-ext":
        return _of_verb(words[1:], mentioned=mentioned)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return "" if {*words[1:2]} <= {*targets} else "no such target"
    script = (ROOT / words[1]).read_text() if "/" in words[1] else " ".join(words)
    options = [word.split("=")[0] for word in words[2:] if word.startswith("--")]
    return "".join(f"{option} is unknown" for option in options if option not in script)


def _of_verb(words: Sequence[str], *, mentioned: bool) -> str:
    """What the verb's own parser, and its experiment's schema, say of the words."""
    from launch.cli import app

    command: Any = get_command(app)
    context = command.context_class(command, info_name="olmo-ext")
    rest = [word for word in words if word not in ("--debug", "--help", "--version")]
    while hasattr(command, "get_command") and rest and rest != ["..."]:
        name, *rest = rest
        command = command.get_command(context, name)
        if command is None:
            return f"no verb {name}"
    if mentioned and rest in ([], ["..."]):
        return ""
    try:
        found = command.make_context(command.name, list(rest), parent=context)
    except Exception as error:
        if isinstance(error, ConfigError):  # a page on GPUs, read where there is none, is right
            return "" if (error.key, error.value) == ("--device", "cuda") else str(error)
        if not hasattr(error, "format_message"):
            raise
        # A sentence may leave out values, or have a word in their place.
        unknown = type(error).__name__ == "NoSuchOption"
        return str(error.format_message()) if unknown or not mentioned else ""
    return _of_overrides(tuple(found.params.get("override") or ()))


@cache
def _of_overrides(words: Sequence[str]) -> str:
    from olmo_ext.config import load_experiment

    try:
        load_experiment(ROOT / "configs/quickstart.yaml", list(words), corpus=False)
    except ConfigError as error:
        return str(error)
    return ""
