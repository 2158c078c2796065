"""What the verbs share at the terminal: consoles, common options, what is at work, how errors end.

with exits():                                  # bad input: one message and status 2
    app()
with progress_bar(errors) as show:
    show("checkpoints", 3, 12)
"""

from __future__ import annotations

import difflib
import errno
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from data_injection.beat import Beat
from data_injection.errors import ConfigError
from eval.text import check_target

REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
"""The disk's own reasons: no defect of the program, so that a traceback would only hide them."""

EXTRAS = dict.fromkeys(("olmo", "olmo_data", "wandb", "torchmetrics"), "olmo")
EXTRAS["olmo_core"] = "core"
"""Modules of an engine, and the extra of pyproject.toml that brings them."""

NO_SUCH_FILE = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
"""A path that was typed is not what it should be."""

BAD_INPUT = 2
"""Status of what no second start would mend."""

DEBUG = "OLMO_EXT_DEBUG"
"""Of the environment: an error of input shows its traceback."""

console = Console(soft_wrap=not sys.stdout.isatty())
errors = Console(stderr=True, soft_wrap=not sys.stderr.isatty())
"""A pipe or a file gets every line whole; tables by `eval.text.print_table`."""

Overrides = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", help="Dotted setting, e.g. train.seed=1; repeatable."),
]


def _json_target(path: Path | None) -> Path | None:
    check_target(path, "--json")
    return path


JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json", callback=_json_target,
        help="Also write what the table says to a file; -: to stdout alone.",
    ),
]  # fmt: skip
"""Asked before any work whether it can be written."""

ExperimentFile = Annotated[Path, typer.Argument(help="Experiment YAML.")]


def typed_command() -> str:
    """The command line of this process, as a shell takes it."""
    return shlex.join(["olmo-ext", *sys.argv[1:]])


def tables(json: Path | None) -> Console:
    """Where a verb's tables go: beside JSON on standard output to the other stream."""
    return errors if str(json) == "-" else console


def check_typed(words: Sequence[str]) -> None:
    """Raise ConfigError for an empty word, which would be taken for the working directory."""
    if "" in words:
        before = words[words.index("") - 1] if words.index("") else "olmo-ext"
        rule = f"stands after {before}: is a variable not set?"
        raise ConfigError(key="an empty argument", rule=rule)


def refuse_idle(context: typer.Context, options: Sequence[str], why: str) -> None:
    """Raise ConfigError for an option of a verb that was typed and has no effect."""
    for name in options:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(key=option, rule=f"has no effect {why}", remedy="leave it out")


def is_rank_zero() -> bool:
    """Of all ranks under torchrun one speaks."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def exits() -> Iterator[None]:
    """Bad input ends the process with one message and status 2, a full disk with status 1."""
    # The engine registers its resolvers by OmegaConf's older name (olmo/config.py:104).
    warnings.filterwarnings("ignore", message=r"register_new_resolver\(\) is deprecated")
    try:
        yield
    except (ConfigError, *NO_SUCH_FILE) as error:
        if is_rank_zero():
            if os.environ.get(DEBUG):
                traceback.print_exc()
            _error(f"{error}{_meant(str(error)) if isinstance(error, NO_SUCH_FILE) else ''}")
            if "TORCHELASTIC_RUN_ID" in os.environ:
                say(errors, "what torchrun prints below is its account of this error, not another")
        sys.exit(BAD_INPUT)
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] not in EXTRAS:
            raise
        extra = EXTRAS[str(error.name).split(".")[0]]
        _error(
            f"this needs {error.name}, which is not installed: `pip install '.[{extra}]'` in the "
            "checkout, in an environment of its own (the engines exclude one another)"
        )
        sys.exit(BAD_INPUT)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        # On whatever rank: the disk may be that node's alone.
        _error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(1)


def _meant(said: str) -> str:
    """The nearest neighbour of a path that was typed and is not there, if an error is about one."""
    with suppress(OSError):
        for path in map(Path, sys.argv[1:]):
            there = os.listdir(path.parent) if str(path) in said and not path.exists() else []
            if close := difflib.get_close_matches(path.name, there, n=1):
                return f"; did you mean {path.with_name(close[0])}?"
    return ""


def _error(said: str) -> None:
    errors.print("[bold red]error:[/] ", end="")
    say(errors, said)


def say(console: Console, text: str) -> None:
    """A line as it is (no markup, no emoji) and whole, whatever the width: a path broken in two is
    no path, and programs read it too."""
    console.out(text, highlight=False)


@contextmanager
def interruptible(said: str) -> Iterator[None]:
    """Ctrl-C ends the verb with a line and status 130."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print(f"interrupted; {said}")
        raise typer.Exit(130) from None


@contextmanager
def progress_bar(
    console: Console, *, lines: bool = True
) -> Iterator[Callable[[str, float, float], None]]:
    """`show(what, done, total)` of all that is at work: below what is printed on a terminal, and
    elsewhere as a line before two seconds have been silent, unless the verb says its own."""
    if console.is_terminal:
        with (
            console.status("") as status,
            Beat(lambda s: status.update(Text(s)), every=0.2) as beat,
        ):
            yield beat.at
    else:
        with Beat(partial(say, console) if lines else None) as beat:
            yield beat.at


@contextmanager
def at_work(what: str) -> Iterator[None]:
    """`progress_bar` for what has no parts: the engine takes ten seconds to import on a busy
    machine, and a verb that says nothing meanwhile looks dead."""
    with progress_bar(errors) as show:
        show(what, 0, 0)
        yield
