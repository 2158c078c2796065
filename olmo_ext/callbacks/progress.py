"""progress: one line that says how far the run is, how fast, and when it will be done."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from olmo.torch_util import get_global_rank

from olmo_ext.callbacks.base import Callback

if TYPE_CHECKING:
    from olmo_ext.trainer import ExperimentTrainer


@dataclass
class Progress(Callback):
    """A line redrawn in place on a terminal, a new line every `seconds` in a log; rank 0 only."""

    seconds: float = 5.0
    """Least time between two lines."""

    def on_start(self, trainer: ExperimentTrainer) -> None:
        self._first_step, self._started, self._shown = trainer.global_step, time.monotonic(), 0.0

    def on_step(self, trainer: ExperimentTrainer, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        last = trainer.global_step >= trainer.last_step
        terminal = sys.stderr.isatty()
        wait = 0.2 if terminal else self.seconds
        if get_global_rank() != 0 or (now - self._shown < wait and not last):
            return
        self._shown = now
        done, total = trainer.global_step, trainer.last_step
        speed = (done - self._first_step) / max(now - self._started, 1e-9)
        left = timedelta(seconds=round((total - done) / speed)) if speed else "?"
        line = (
            f"[{trainer.cfg.run_name}] step {done}/{total} ({done / total:.0%})  "
            f"loss {metrics['train/CrossEntropyLoss']:.3f}  {speed:.1f} step/s  ETA {left}"
        )
        end = "\n" if last or not terminal else ""
        start = "\r\x1b[K" if terminal else ""
        print(start + line, end=end, file=sys.stderr, flush=True)
