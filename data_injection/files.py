"""Files that are whole or not there: written under another name in the same folder, then renamed.

    replace_file(path, "text")
    replace_file(run / "plan.json", data, sync=True)
    with replaced(path) as temporary:
        table.to_csv(temporary)

The one rule for `sync`: what a resumed run depends on (checkpoints, ledger, manifests, the files of
a run's folder) is forced onto the disk, file and folder, before work goes on; what can be made
again (figures, tables, reports) is not. Without it a kill does no harm, but a power cut may leave
an empty file under the new name.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from data_injection.errors import ConfigError

NO_SPACE = 64 * 2**20
"""Free bytes below which a write that failed without a reason is taken to have filled the disk."""


@contextmanager
def replaced(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A name to write a file under, which becomes `path` when the block is through.

    If the block fails nothing is renamed, what was at `path` stays, and the temporary file goes. It
    may be a folder too (without sync; `path` must not be there, or be empty).
    """
    # The name is this writer's alone: nodes that share a folder may write the same file at once.
    writer = f"{socket.gethostname()}-{os.getpid()}-{threading.get_native_id()}"
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    try:
        yield temporary
        if sync:
            sync_path(temporary)
        os.replace(temporary, path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_path(path.parent)


def replace_file(path: Path, data: bytes | str, *, sync: bool = False) -> Path:
    """Give a file new content (text as UTF-8): a reader sees the old one or the new one, whole."""
    with replaced(path, sync=sync) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def sync_path(path: Path) -> None:
    """Force a file onto the disk; of a folder the names in it, not what its files hold."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text in UTF-8, with or without a byte order mark; ValueError if none."""
    if isinstance(data, bytes):
        data = data.decode()
    try:
        return json.loads(data.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises FileNotFoundError if there is none, ConfigError with the file's name if it is not JSON.
    """
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:  # also bytes that are no text
        rule = f"is not JSON ({error})"
        raise ConfigError(key=path, rule=rule, remedy="restore or remove it") from None


def inside(name: str) -> str:
    """A path from a file of others, relative to that file's folder; ConfigError if it leads out."""
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ConfigError(key="the path", value=name, rule="leads out of its folder")
    return name


def check_folder(folder: Path, key: str) -> None:
    """Raise ConfigError, before any work, for a folder that cannot be made: what is in its way."""
    for place in (folder, *folder.parents):
        if os.path.isdir(place):
            return check_writable(place, key)
        if os.path.lexists(place):
            what = "a link that leads nowhere" if place.is_symlink() else "a file"
            raise ConfigError(
                key=key, value=str(folder), rule="must be a folder, or the name of a new one",
                remedy=f"{place} is {what}: remove it or choose another",
            )  # fmt: skip


def check_writable(path: Path, key: str) -> None:
    """Raise ConfigError, before any work, where this user may not write a file or into a folder."""
    place = path if os.path.exists(path) else path.parent
    if not os.access(place, os.W_OK | (os.X_OK if os.path.isdir(place) else 0)):
        rule = "must be where you may write"
        remedy = f"{place} belongs to another user, or is read-only: choose another place"
        raise ConfigError(key=key, value=str(path), rule=rule, remedy=remedy)


def linked_folders(top: Path, onerror: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """A folder and all below it, through links too; each once, so that a loop of links ends.

    onerror is told of folders that cannot be read.
    """
    seen: set[str] = set()
    for folder, inside, _ in os.walk(top, onerror=onerror, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inside.clear()
            continue
        seen.add(real)
        # Real folders first: what is also linked to goes by its own name.
        inside.sort(key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        yield Path(folder)


@contextmanager
def explain_disk(folder: Path) -> Iterator[None]:
    """Turn whatever a disk that does not take files makes the engine and torch raise into words."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
        number = _refusal(error, free=free)
        if number is None:
            raise
        raise OSError(
            number,
            f"{os.strerror(number)} ({free / 2**20:,.0f} MiB free). Checkpoints, records and "
            "ledger written so far are whole: mend it and go on with --resume",
            str(folder),
        ) from error


def _refusal(error: BaseException, *, free: int) -> int | None:
    """The error number of a disk that refused, None if something else went wrong."""
    if isinstance(error, OSError) and error.errno is not None:
        refusals = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE)
        return error.errno if error.errno in refusals else None
    # torch tells of a failed write without its reason, in several ways.
    said = ("PytorchStreamWriter", "unexpected pos", "iostream error")
    if isinstance(error, RuntimeError) and any(text in str(error) for text in said):
        return errno.ENOSPC if free < NO_SPACE else errno.EIO
    return None if error.__context__ is None else _refusal(error.__context__, free=free)
