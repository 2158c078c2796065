"""What a ladder or a whole grid costs before anything is paid: one table over sizes.

    olmo-ext plan --cost configs/olmo_4M_to_4B/paper
    olmo-ext plan --cost configs/olmo_4M_to_4B/sweeps/frequency.yaml --gpus 64 --mfu 0.3

No corpus and no GPU is needed: everything follows from the files (olmo_ext/cost.py). A sweep's runs
that cost the same stand in one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_injection.errors import ConfigError
from eval.text import count, new_table, number, print_table
from launch.grid import is_sweep, load_sweep, point_overrides
from launch.grid_loader import GridLoader
from launch.json_file import write_json
from launch.reckon import Reckoner, Row, size
from launch.yaml_file import read_yaml
from olmo_ext.config import ExperimentConfig
from olmo_ext.cost import PEAK_TFLOPS
from olmo_ext.shipped import locate


def read_experiments(
    paths: Sequence[Path], overrides: Sequence[str] = ()
) -> list[ExperimentConfig]:
    """The experiments of files, folders of files and sweeps; no corpus is looked at.

    Raises:
        ConfigError: a folder without experiments, a file that is none.
        FileNotFoundError: no such file.
    """
    loader, found = GridLoader(), []
    for path, given in _files(paths):
        experiment = loader.load(path, [*given, *overrides])
        if experiment.train.distributed_strategy is None:
            raise ConfigError(key=f"{path}: train.distributed_strategy", rule="must be ddp or fsdp")
        found.append(experiment)
    return found


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path, list[str]]]:
    for path in map(locate, paths):
        if path.is_dir():
            inside = [file for file in path.glob("*.yaml") if not is_sweep(file)]
            if not inside:
                rule = "holds no experiment *.yaml"
                raise ConfigError(key=path, rule=rule, remedy="name files or their folder")
            for file in sorted(inside, key=_size):
                yield file, []
        elif is_sweep(path):
            sweep = load_sweep(path)
            for point in sweep.points():
                yield point.experiment, point_overrides(sweep, point)
        else:
            yield path, []


def _size(path: Path) -> tuple[int, int, str]:
    """Smaller models first, as far as the file says."""
    read = read_yaml(path) if path.is_file() else None
    model = ((read if isinstance(read, dict) else {}).get("train") or {}).get("model") or {}
    return int(model.get("d_model") or 0), int(model.get("n_layers") or 0), path.name


# -- for people -----------------------------------------------------------------------------------


def show_costs(rows: Sequence[Row], console: Console) -> None:
    """Tables of 80 columns: what is computed; what it takes; the parts of a GPU's memory."""
    for table in (_run_table(rows), _needs_table(rows), _memory_table(rows)):
        print_table(table, console)
    cost = rows[0].cost
    device = ", an H100 SXM in dense bf16," if cost.peak_tflops == PEAK_TFLOPS else ""
    console.print(
        f"hours on {cost.gpus} GPU{'s' if cost.gpus > 1 else ''} at {cost.peak_tflops:g} TFLOP/s"
        f"{device} and MFU {cost.mfu:g}, for one run; GPU hours and checkpoints for all of a row. "
        "An estimate: no callbacks, no saves, no waiting between nodes, and small models reach far "
        "less. FLOPs are the engine's count: with attention, and with the input embedding in the "
        f"backward pass, where no product is ({_embedding(rows)} on top). GPU memory "
        "at the micro-batch, the larger of the start's peak and a step's; then its parts in GB, of "
        "which activations and logits are estimates (olmo_ext/cost.py).",
        highlight=False,
    )


def _run_table(rows: Sequence[Row]) -> Table:
    titles = ("runs", "params", "steps", "tokens", "FLOPs", "hours", "GPU hours")
    table = new_table("rung", numbers=titles)
    for row in rows:
        cost, runs = row.cost, row.num_runs
        counts = (f"{runs:,}", count(cost.num_params), f"{row.num_steps:,}", count(cost.num_tokens))
        hours = (number(cost.hours), number(cost.gpu_hours * runs))
        table.add_row(row.rung, *counts, f"{cost.flops:.3g}", *hours)
    if len(rows) > 1:
        table.add_section()
        sums = totals(rows)
        counts = (f"{sums['runs']:,}", "", "", count(sums["tokens"]))
        table.add_row("all", *counts, f"{sums['flops']:.3g}", "", number(sums["gpu_hours"]))
    return table


def _needs_table(rows: Sequence[Row]) -> Table:
    numbers = ("rows", "GPU memory", "checkpoint", "kept", "storage")
    table = new_table("rung", "strategy", numbers=numbers)
    for row in rows:
        needs = (str(row.cost.microbatch), size(row.cost.memory.total), size(row.checkpoint))
        kept = (f"{row.num_checkpoints:,}", size(row.storage * row.num_runs))
        table.add_row(row.rung, row.strategy, *needs, *kept)
    if len(rows) > 1:
        table.add_section()
        sums = totals(rows)
        table.add_row("all", "", "", "", "", f"{sums['checkpoints']:,}", size(sums["storage"]))
    return table


def _embedding(rows: Sequence[Row]) -> str:
    """What the engine's count of the input embedding adds to the rest of it: 3% to 37%."""
    shares = []
    for cost in (row.cost for row in rows):
        extra = 4 * (cost.num_params_total - cost.num_params) * cost.num_tokens
        shares.append(extra / (cost.flops - extra))
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return low if low == high else f"{low} to {high}"


def _memory_table(rows: Sequence[Row]) -> Table:
    parts = ("weights", "gradients", "optimizer", "working_copies", "activations", "logits")
    table = new_table("rung", numbers=[*(part.replace("working_", "") for part in parts), "start"])
    for row in rows:
        memory = row.cost.memory
        sizes = [getattr(memory, part) for part in (*parts, "start")]
        table.add_row(row.rung, *(number(value / 1e9) for value in sizes))
    return table


def totals(rows: Sequence[Row]) -> dict[str, Any]:
    """Of all runs of all rows."""
    return {
        "runs": sum(row.num_runs for row in rows),
        "tokens": sum(row.cost.num_tokens * row.num_runs for row in rows),
        "flops": sum(row.cost.flops * row.num_runs for row in rows),
        "gpu_hours": sum(row.cost.gpu_hours * row.num_runs for row in rows),
        "checkpoints": sum(row.num_checkpoints * row.num_runs for row in rows),
        "storage": sum(row.storage * row.num_runs for row in rows),
    }


def costs_as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """All numbers, bytes and operations unrounded."""
    return {
        "rows": [
            {key: value for key, value in vars(row).items() if key != "cost"}
            | {"hours": row.cost.hours, "gpu_hours": row.cost.gpu_hours}
            | asdict(row.cost)
            | {"memory": asdict(row.cost.memory) | {"total": row.cost.memory.total}}
            for row in rows
        ],
        "total": totals(rows),
    }


def plan_cost(
    paths: Sequence[Path],
    overrides: Sequence[str],
    *,
    gpus: int,
    peak_tflops: float,
    mfu: float,
    json_path: Path | None,
    console: Console,
) -> None:
    """The verb: read, reckon, show, write."""
    experiments = read_experiments(paths, overrides)
    rows = Reckoner(gpus=gpus, peak_tflops=peak_tflops, mfu=mfu).rows(experiments)
    show_costs(rows, console)
    if json_path is not None:
        write_json(json_path, costs_as_json(rows))
