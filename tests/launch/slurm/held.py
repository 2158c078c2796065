"""A callback of the tests: no machine is so fast that a run has ended before its signal comes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from olmo_ext.callbacks.base import Callback


@dataclass
class Hold(Callback):
    """Each of a job's first lives waits at a step of its own, 30 or 100, until it is signalled."""

    lives: int = 1
    """How many of them."""

    def on_step(self, trainer: Any, metrics: dict[str, float]) -> None:
        life = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        if life < self.lives and trainer.global_step == (30, 100)[life]:
            while not trainer.signals.on_any_rank(trainer.device):
                time.sleep(0.05)
