"""Waiting for what will happen, as long as it takes: on a loaded machine seconds prove nothing.

wait_until(marker.exists)                      # pytest's own limit ends what never happens
spoken = lines_of_beats(monkeypatch)           # slow work ends when a line was said of it
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable

import pytest

from data_injection.beat import Beat

_numbers = itertools.count(os.getpid() * 7)


def wait_until(happens: Callable[[], object], *, told: Callable[[], object] = str) -> None:
    end = time.monotonic() + 600
    while not happens():
        assert time.monotonic() < end, told()
        time.sleep(0.05)


def lines_of_beats(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Waits until a beat has said its next line."""
    said = threading.Event()
    look = Beat._look

    def looked(self: Beat) -> float:
        before = self._spoke
        wait = look(self)
        if self._spoke != before:
            said.set()
        return wait

    def spoken() -> None:
        said.clear()
        assert said.wait(600)

    monkeypatch.setattr(Beat, "_look", looked)
    return spoken


def free_port() -> int:
    """Below the ports that the kernel gives to whoever connects: those are taken between the look
    and the use. Tests side by side look at different ones."""
    for number in _numbers:
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", 20_000 + number % 10_000))
            except OSError:
                continue
            return one.getsockname()[1]
    raise AssertionError
