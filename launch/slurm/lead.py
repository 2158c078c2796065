"""How long before its end a job must be told to save: a step, a save, a margin.

    lead = reckon_lead(site, experiment.train, num_steps=50_000, folder=run_folder)
    lead.seconds, lead.why

From the run's own progress and checkpoints where it has run, else from the cost estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_injection.errors import ConfigError
from eval.run import PROGRESS, read_if_whole
from launch.slurm.site import Cluster

if TYPE_CHECKING:
    from olmo.config import TrainConfig

CHECKSUM_GB = 0.93
"""GB a second that one thread reads and hashes (docs/reliability.md); a file is one thread's."""

CPU_TFLOPS = 0.01
"""Assumed of one rank on a CPU core: 1e10 operations a second."""

BYTES_A_PARAMETER, BYTES_IN_OPTIM = 12, 8
"""Of a checkpoint: weights and AdamW's two moments in fp32; the moments are one file."""


@dataclass(frozen=True)
class Lead:
    """Seconds before the end of a job at which SLURM sends SIGUSR1."""

    step: float
    save: float
    margin: float
    step_from: str
    save_from: str
    given: int | None = None
    """The site's own number, if it has one."""

    @property
    def seconds(self) -> int:
        """Rounded up to ten; of SLURM's making it may be up to 60 more, never less."""
        return self.given or 10 * math.ceil((self.step + self.save + self.margin) / 10)

    @property
    def why(self) -> str:
        total = (
            f"step {self.step:.3g} s ({self.step_from}) + save {self.save:.3g} s "
            f"({self.save_from}) + margin {self.margin:g} s"
        )
        return f"{self.seconds} s, set by the site; {total}" if self.given else total


def reckon_lead(site: Cluster, train: TrainConfig, *, num_steps: int, folder: Path) -> Lead:
    """What a run needs on this site.

    Raises:
        ConfigError: the job's time limit leaves hardly any time to train.
    """
    step, step_from = _step(site, train, num_steps, folder)
    save, save_from = _save(site, train, folder)
    lead = Lead(step, save, site.margin_seconds, step_from, save_from, site.lead_seconds)
    if 2 * lead.seconds > site.seconds:
        minutes = math.ceil(2 * lead.seconds / 60)
        raise ConfigError(
            key="time",
            value=site.time,
            rule=f"must be at least twice the lead time of {lead.seconds} s ({lead.why}), or jobs "
            "would be told to stop before they have done anything",
            remedy=f"set it to at least {minutes} minutes, or lead_seconds in the site profile",
        )
    return lead


def _step(site: Cluster, train: TrainConfig, num_steps: int, folder: Path) -> tuple[float, str]:
    if site.step_seconds is not None:
        return site.step_seconds, "the site's step_seconds"
    speed = read_if_whole(folder / PROGRESS).get("steps_per_second")
    if isinstance(speed, int | float) and speed > 0:
        return 1 / speed, f"measured, {PROGRESS}"
    from olmo_ext.cost import run_cost

    ranks = site.ranks * site.nodes
    peak, mfu = (site.peak_tflops, site.mfu) if site.gpus_per_node else (CPU_TFLOPS, 1.0)
    cost = run_cost(train, num_steps=num_steps, gpus=ranks, peak_tflops=peak, mfu=mfu)
    reckoned = cost.hours * 3600 / max(num_steps, 1)
    how = f"{peak:g} TFLOP/s a rank x {ranks}, MFU {mfu:g}"
    # Launching the operations of a step takes a while however few they are.
    return max(reckoned, 1.0), f"estimated, {how}" if reckoned > 1 else "estimated, at least 1 s"


def _save(site: Cluster, train: TrainConfig, folder: Path) -> tuple[float, str]:
    if site.save_seconds is not None:
        return site.save_seconds, "the site's save_seconds"
    from eval.checkpoints.checkpoint import find_checkpoints

    checkpoints = find_checkpoints(folder)
    if checkpoints and (measured := measured_save(checkpoints[-1].path)):
        return measured, f"measured, {checkpoints[-1].path.name}"
    from olmo.model import OLMo

    params = OLMo(train.model.update_with(init_device="meta")).num_params()
    gb, largest = BYTES_A_PARAMETER * params / 1e9, BYTES_IN_OPTIM * params / 1e9
    seconds = gb / site.write_gb_per_second + largest / CHECKSUM_GB
    how = f"{gb:.3g} GB at {site.write_gb_per_second:g} GB/s, checksums at {CHECKSUM_GB} GB/s"
    return seconds, f"estimated, {how}"


def measured_save(checkpoint: Path) -> float | None:
    """Seconds a checkpoint took, by the times of its files; None if they do not tell.

    From the end of the first file (the weights) to the checksums, which come last, and for the
    first file in proportion to its size.
    """
    try:
        weights = (checkpoint / "model.pt").stat()
        last = (checkpoint / "SHA256SUMS").stat()
        size = sum(path.stat().st_size for path in checkpoint.iterdir())
    except OSError:
        return None
    between = last.st_mtime - weights.st_mtime
    if between < 0 or weights.st_size >= size:
        return None
    return between * size / (size - weights.st_size)
