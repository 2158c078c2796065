"""What is said before a machine is taken away: SIGTERM, SIGUSR1, SIGHUP of a lost terminal.

    with StopSignals() as signals:
        ...
        if signals.on_any_rank(device): ...

A handler only takes note; the trainer looks after every step. It imports nothing heavy, so that the
command line can take note from its first moment on. SLURM signals every process of a job step, the
loader's workers too: those ignore it and end with their parent.

A SIGKILL says nothing: torchrun's ranks outlive an agent that is killed, for it starts each in a
session of its own, and a sweep's runs outlive the sweep. So they watch their launcher; see
`end_after`.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

ORPHAN_GRACE = 600.0
"""Seconds to save in for one whose launcher is gone, as many as torchrun waits by our line."""

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StopSignals:
    """Takes note of SIGNALS while entered; puts the handlers back afterwards.

    Outside the main thread, where Python cannot handle signals, it notes nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        """Name of the first one that this process was sent, or, once asked, any rank."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            # nohup ignores SIGHUP, so that a run goes on when its terminal is gone.
            wanted = [one for one in SIGNALS if signal.getsignal(one) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in wanted}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name

    def on_any_rank(self, device: torch.device) -> bool:
        """Whether any rank was sent one; all ranks must call, and all get the same answer."""
        import torch
        import torch.distributed as dist

        if dist.get_world_size() > 1:
            number = signal.Signals[self.received] if self.received else 0
            largest = torch.tensor(int(number), device=device)
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
            if largest.item() == 0:  # what has come since, this rank tells at its next step
                return False
            self.received = signal.Signals(int(largest.item())).name
        return self.received is not None


def end_after(gone: Callable[[], object], *, grace: float = ORPHAN_GRACE) -> None:
    """Once `gone` returns, in a thread, sends this process SIGTERM: it saves and ends.

    What cannot (a rank that waits for a peer that is dead too) is ended after `grace` seconds; what
    has not joined its process group yet has nothing to save, and the agent's store that it would
    wait for may be gone: it is ended at once.
    The kernel could send the signal itself (PR_SET_PDEATHSIG), but it knows the parent alone: a
    sweep's runs are children of a fork server, which lives as long as any of them, and a rank's
    hard end would still need a clock.
    """

    def watch() -> None:
        gone()
        if _in_process_group():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(grace)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="launcher watch", daemon=True).start()


def _in_process_group() -> bool:
    """Without importing torch, which is heavy and may be half imported right now."""
    return getattr(sys.modules.get("torch.distributed"), "is_initialized", bool)()


def await_agent_end(every: float = 0.5) -> None:
    """Returns when torchrun's agent, this process' parent, has ended, however it did."""
    agent = os.getppid()
    # It may have ended before we looked. A container's first process may also be torchrun itself.
    if agent == 1 and b"torch" not in Path("/proc/1/cmdline").read_bytes():
        return
    while os.getppid() == agent:
        time.sleep(every)


def ignore_in_worker(worker: int) -> None:
    """The loader's worker_init_fn: whoever sends a signal, only the parent may end the worker.

    The parent saves first and then ends it, with SIGTERM if it hangs: so the sender is looked at.
    If the parent is killed, the kernel kills the worker, which would hold the lock of the run's
    folder until torch looks: for ever, where it was killed before this (torch asks who is parent).
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if multiprocessing.get_start_method() == "fork" and os.getppid() != parent.pid:
        os._exit(128 + signal.SIGKILL)
    for number in (signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for, args=(parent.pid,), daemon=True).start()


def _wait_for(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass  # Under forkserver os.getppid() is the fork server, which never sends anything.
    os._exit(128 + signal.SIGTERM)
