"""What is at work and how far it is, said before two seconds have been silent.

with Beat(print) as beat:
    beat.at("cmp: searches", 3, 12)  # cmp: searches: 3 of 12, 0:00:21, about 0:01:03 more
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic

EVERY = 1.5
"""Seconds between two lines; of long work a 300th of its time: a log of days stays readable."""


@dataclass
class _Work:
    began: float
    first: float
    done: float = 0
    total: float = 0


class Beat:
    """Says what was last told of all work that is not done, from a thread of its own.

    Args:
        say: takes a line. None says nothing.
    """

    def __init__(self, say: Callable[[str], None] | None, *, every: float = EVERY) -> None:
        self._say, self._every = say, every
        self._works: dict[str, _Work] = {}
        self._lock = threading.Lock()
        self._began = self._spoke = monotonic()
        self._stepped = -math.inf
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="beat", daemon=True)

    def at(self, what: str, done: float = 0, total: float = 0) -> None:
        """What is at work, and how much of it is done; one that is done is forgotten."""
        with self._lock:
            work = self._works.setdefault(what, _Work(monotonic(), done))
            work.done, work.total = done, total
            if 0 < total <= done:
                del self._works[what]

    def then(self, what: str) -> None:
        """Nothing but this is at work now."""
        with self._lock:
            self._works = {what: _Work(monotonic(), 0)}

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Nothing but this is at work within, and nothing after."""
        self.then(what)
        try:
            yield
        finally:
            with self._lock:
                self._works = {}

    def step(self) -> None:
        """A step was taken, and nothing is at work: for a beat from now on nothing is said, since
        the work of a moment, done every few steps, would fill a log that has a line of its own."""
        with self._lock:
            self._works, self._stepped = {}, monotonic()

    def stop(self) -> None:
        """Say no more."""
        if not self._ended.is_set():
            self._ended.set()
            if self._thread.is_alive():
                self._thread.join()
            if self._say is to_stderr and sys.stderr.isatty():
                to_stderr("")

    def __enter__(self) -> Beat:
        if self._say is not None:
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _watch(self) -> None:
        self._began = self._spoke = monotonic()
        wait = self._every
        while not self._ended.wait(wait):
            wait = self._look()

    def _look(self) -> float:
        """Say what is due now. Seconds until the next look."""
        now = monotonic()
        due = self._spoke + max(self._every, (now - self._began) / 300)
        if now < due:
            return due - now
        with self._lock:
            stepped = now - self._stepped < self._every
            said = "; ".join(_line(what, work, now) for what, work in self._works.items())
        if not said or stepped or self._say is None:
            return self._every / 4
        self._say(said)
        self._spoke = now
        return self._every


def _line(what: str, work: _Work, now: float) -> str:
    took = now - work.began
    done = f"{work.done:,.0f} of {work.total:,.0f}, " if work.total else ""
    said = f"{what}: {done}{timedelta(seconds=round(took))}"
    if work.total and work.done > work.first:
        left = took / (work.done - work.first) * (work.total - work.done)
        said += f", about {timedelta(seconds=round(left))} more"
    return said


def to_stderr(line: str) -> None:
    """On a terminal in place of the line before it."""
    terminal = sys.stderr.isatty()
    end = "" if terminal else "\n"
    print(f"\r\x1b[K{line}" if terminal else line, end=end, file=sys.stderr, flush=True)
