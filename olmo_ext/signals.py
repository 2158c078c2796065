"""What a cluster says before it takes a machine away: SIGTERM and SIGUSR1, possibly twice.

    with StopSignals() as signals:
        ...
        if signals.on_any_rank(device): ...

A handler only takes note; the trainer looks after every step. SLURM signals every process of a job
step, the loader's workers too: those ignore it and end with their parent.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from olmo.torch_util import get_world_size

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Takes note of SIGNALS while entered; puts the handlers back afterwards.

    Outside the main thread, where Python cannot handle signals, it notes nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        """Name of the first one that this process was sent."""
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
        if get_world_size() == 1:
            return self.received is not None
        flag = torch.tensor(int(self.received is not None), device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())


def ignore_in_worker(worker: int) -> None:
    """The loader's worker_init_fn: let the parent save first, which then ends the worker."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
