"""progress: how far the run is, how fast, and when it will be done: a line, and progress.json.

    [w32-s1] step 120/2400 (5%)  loss 4.812  21.3 step/s  ETA 0:01:47
    {"step": 120, "last_step": 2400, "loss": 4.812, "steps_per_second": 21.3, "eta": 107.0, ...}

Each hundredth of the run leaves a line in speed.jsonl, for the report's curve.

The line is for people; programs (`olmo-ext status`, sweeps, SLURM's lead time) read the file.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_injection.errors import ConfigError
from data_injection.files import replace_file
from eval.record_lines import end_whole
from eval.run import PROGRESS, SPEED, read_if_whole
from olmo_ext.callbacks.base import Callback
from olmo_ext.engines.ranks import get_global_rank

if TYPE_CHECKING:
    from olmo_ext.trainer import ExperimentTrainer

FILE_SECONDS = 1.0
"""Least time between two writes of the file: a micro run takes a hundred steps a second."""


@dataclass
class Progress(Callback):
    """A line redrawn in place on a terminal, a new line every `seconds` in a log; rank 0 only.

    Speed and ETA count from the end of this start's first step: starting up, the measurements of
    the untrained model and the first step's own warming up are not what the rest will take.
    """

    seconds: float = 5.0
    """Least time between two lines."""

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < math.inf:
            key = "callbacks.progress.seconds"
            raise ConfigError(key=key, value=self.seconds, rule="must be at least 0")

    def on_start(self, trainer: ExperimentTrainer) -> None:  # type: ignore[override]
        self._since: tuple[int, float] | None = None
        self._shown = self._written = -math.inf
        self._now: dict[str, Any] = {}
        if get_global_rank() == 0:
            # Kept until this start has one: SLURM's lead time is reckoned from it, also when a
            # start is ended before its second step.
            before = read_if_whole(Path(trainer.cfg.save_folder) / PROGRESS)
            self._speed_before = before.get("steps_per_second")
            self._write(trainer, status="starting")

    def on_step(self, trainer: ExperimentTrainer, metrics: dict[str, float]) -> None:  # type: ignore[override]
        now = time.monotonic()
        if self._since is None:
            self._since = self._noted = trainer.global_step, now
        if get_global_rank() != 0:
            return
        last = trainer.global_step >= trainer.last_step
        self._note_speed(trainer, now)
        terminal = sys.stderr.isatty()
        shown = now - self._shown >= (0.2 if terminal else self.seconds) or last
        written = now - self._written >= FILE_SECONDS or last
        if not shown and not written:
            return
        first, at = self._since
        steps, left = trainer.global_step - first, trainer.last_step - trainer.global_step
        speed = steps / max(now - at, 1e-9) if steps else None
        loss = metrics["train/CrossEntropyLoss"]
        self._now = {
            # NaN is no JSON; a loss that is not a number is none.
            "loss": loss if math.isfinite(loss) else None,
            "steps_per_second": speed,
            "eta": left / speed if speed else None,
        }
        if written:
            self._written = now
            self._write(trainer, status="training")
        if shown:
            self._shown = now
            self._show(trainer, loss, end="\n" if last or not terminal else "", terminal=terminal)

    def on_end(self, trainer: ExperimentTrainer) -> None:  # type: ignore[override]
        if get_global_rank() == 0:
            finished = trainer.global_step >= trainer.max_steps
            self._write(trainer, status="finished" if finished else "stopped")

    def _note_speed(self, trainer: ExperimentTrainer, now: float) -> None:
        step, (noted, at) = trainer.global_step, self._noted
        if step == noted or step % max(1, trainer.max_steps // 100):
            return
        speed = (step - noted) / max(now - at, 1e-9)
        row = {"step": step, "metric": "steps_per_second", "value": speed}
        self._noted = step, now
        path = Path(trainer.cfg.save_folder) / SPEED
        with path.open("ab", buffering=0) as file:
            end_whole(file, path)
            file.write(json.dumps(row).encode() + b"\n")

    def _write(self, trainer: ExperimentTrainer, *, status: str) -> None:
        told = {
            "step": trainer.global_step,
            "last_step": trainer.last_step,
            "loss": None,
            "eta": None,
            **self._now,
            "steps_per_second": self._now.get("steps_per_second") or self._speed_before,
            "time": time.time(),
            "status": status,
        }
        replace_file(Path(trainer.cfg.save_folder) / PROGRESS, json.dumps(told) + "\n")

    def _show(self, trainer: ExperimentTrainer, loss: float, *, end: str, terminal: bool) -> None:
        done, total = trainer.global_step, trainer.last_step
        speed, eta = self._now["steps_per_second"], self._now["eta"]
        pace = "" if speed is None else f"  {speed:.1f} step/s  ETA {timedelta(seconds=round(eta))}"
        start = "\r\x1b[K" if terminal else ""
        line = f"[{trainer.cfg.run_name}] step {done}/{total} ({done / total:.0%})  loss {loss:.3f}"
        print(start + line + pace, end=end, file=sys.stderr, flush=True)
