"""What runs cost, a row for those that cost the same; the formulas are olmo_ext/cost.py's.

reckoner = Reckoner(gpus=8)
reckoner.row(load_experiment("paper/20M.yaml", corpus=False)).cost.gpu_hours
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from olmo.config import TrainConfig

from olmo_ext.checks import num_steps
from olmo_ext.config import ExperimentConfig
from olmo_ext.cost import (
    MFU,
    PEAK_TFLOPS,
    Cost,
    check_throughput,
    checkpoint_bytes,
    kept_checkpoints,
    run_cost,
    storage_bytes,
)

UNITS = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True)
class Row:
    """Runs that cost the same: a rung, and how many of a grid are of it."""

    rung: str
    num_runs: int
    strategy: str
    num_steps: int
    cost: Cost
    """Of one run."""

    checkpoint: int
    """Bytes of one checkpoint after the first step."""

    num_checkpoints: int
    storage: int
    """Bytes of all checkpoints that one run leaves behind."""


class Reckoner:
    """`Row`s of experiments, each distinct model built once (on the meta device)."""

    def __init__(
        self, *, gpus: int = 1, peak_tflops: float = PEAK_TFLOPS, mfu: float = MFU
    ) -> None:
        check_throughput(peak_tflops=peak_tflops, mfu=mfu)
        self.options: dict[str, Any] = {"gpus": gpus, "peak_tflops": peak_tflops, "mfu": mfu}
        self._rows: dict[str, Row] = {}

    def row(self, experiment: ExperimentConfig) -> Row:
        """Of one run of it. Raises ConfigError for GPUs that do not divide its batch."""
        key = experiment.rung + _shape(experiment.train)
        if key not in self._rows:
            train = experiment.train
            steps = num_steps(train)
            cost = run_cost(train, num_steps=steps, **self.options)
            total = cost.num_params_total
            self._rows[key] = Row(
                experiment.rung, 1, str(train.distributed_strategy), steps, cost,
                checkpoint=checkpoint_bytes(train, total),
                num_checkpoints=len(kept_checkpoints(train, steps)),
                storage=storage_bytes(train, total, steps),
            )  # fmt: skip
        return self._rows[key]

    def rows(self, experiments: Sequence[ExperimentConfig]) -> list[Row]:
        """Equal ones together, in the order of their first."""
        found: dict[Row, int] = {}
        for experiment in experiments:
            row = self.row(experiment)
            found[row] = found.get(row, 0) + 1
        return [Row(**vars(row) | {"num_runs": runs}) for row, runs in found.items()]


def _shape(train: TrainConfig) -> str:
    """All of the engine's section but what is a run's own and costs nothing."""
    own = {"run_name": None, "save_folder": None, "seed": 0, "data": None, "wandb": None}
    return repr(asdict(train) | own)


def size(num_bytes: float) -> str:
    """Bytes in three digits: 83.6 MB, 2.5 TB."""
    for unit, name in UNITS:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{num_bytes:.0f} B"
