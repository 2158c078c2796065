"""What a cluster says before it takes a machine away: SIGTERM and SIGUSR1, possibly twice.

    with StopSignals() as signals:
        ...
        if signals.on_any_rank(device): ...

A handler only takes note; the trainer looks after every step. It imports nothing heavy, so that the
command line can take note from its first moment on. SLURM signals every process of a job step, the
loader's workers too: those ignore it and end with their parent.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


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
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
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
            if largest.item():
                self.received = signal.Signals(int(largest.item())).name
        return self.received is not None


def ignore_in_worker(worker: int) -> None:
    """The loader's worker_init_fn: whoever sends a signal, only the parent may end the worker.

    The parent saves first and then ends it, with SIGTERM if need be (a worker that hangs in a
    read): so the sender is looked at.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    # Not os.getppid(): under forkserver that is the fork server, which never sends anything.
    parent = multiprocessing.parent_process()
    assert parent is not None
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent.pid:
            os._exit(128 + signal.SIGTERM)
