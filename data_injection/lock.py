"""One writer to a folder: a lock that ends with its process, however that ends.

with lock_folder(run): ...
is_locked(run)      # looks, and holds nothing afterwards
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_injection.errors import ConfigError

log = logging.getLogger(__name__)

NAME = ".lock"


@contextmanager
def lock_folder(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder, made if need be, against other writers.

    Raises ConfigError if another process still holds it after `patience` seconds. Where there are
    no locks it only warns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Asked again at least once: `is_locked` has it for the moment of its look.
    give_up = time.monotonic() + max(patience, 0.3)
    with (folder / NAME).open("w") as file:
        try:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > give_up:
                        raise ConfigError(
                            key=f"the run's folder {folder}",
                            rule="is being written by another process",
                            remedy="wait for it or choose another folder",
                        ) from None
                    time.sleep(0.2)
        except OSError as error:
            log.warning(
                "%s cannot be locked (%s); make sure that one process writes it", folder, error
            )
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process of this machine holds the folder; False where it cannot be said."""
    try:
        with (folder / NAME).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
