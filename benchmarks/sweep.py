"""What a sweep costs: planning a grid of a hundred cells, and twelve runs side by side.

    python benchmarks/sweep.py --out sweep.md
    python benchmarks/sweep.py side_by_side --steps 400

Status 1 if a promise is broken. Planning is function time with everything imported, in CPU seconds
of one thread (the machines are shared) and by the clock. Side by side is `olmo-ext sweep` by the
clock, its imports included, with one run at a time and with two: on a machine whose cores others
use it says nothing, so the load average before it began stands beside it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from launch.grid import Sweep, load_sweep
from launch.runs import plan_runs
from launch.sweep.executor import ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent
FREQUENCY = ROOT / "configs" / "olmo_4M_to_4B" / "sweeps" / "frequency.yaml"
QUICKSTART = ROOT / "configs" / "quickstart.yaml"

PLAN_SECONDS = 2.0
SPEED_UP = 1.7


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    what: str
    value: str
    promise: str = ""
    kept: bool = True


def random_corpus(folder: Path, *, num_tokens: int, vocab_size: int) -> list[str]:
    """Overrides for a file of random tokens in the corpus' place."""
    tokens = np.random.default_rng(0).integers(2, vocab_size, size=num_tokens, dtype=np.uint16)
    tokens.tofile(folder / "tokens.npy")
    return ["corpus=null", f"train.data.paths=[{folder}/tokens.npy]"]


def hundred_cells() -> Sweep:
    """The study's grid cut to five sizes, two families, five rates and two seeds."""
    sweep = load_sweep(FREQUENCY)
    axes = {name: dict(list(axis.items())[:5]) for name, axis in sweep.axes.items()}
    axes["seed"] = dict(list(axes["seed"].items())[:2])
    return replace(sweep, axes=axes)


def measure_plan(args: argparse.Namespace) -> Iterator[Cell]:
    """`plan_runs` of a hundred cells of the ladder."""
    import olmo_ext.callbacks.build
    import olmo_ext.train  # noqa: F401

    sweep = hundred_cells()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overrides = random_corpus(folder, num_tokens=2048 * 2100, vocab_size=50_000)
        cpu, clock = [], []
        for _ in range(args.repeats):
            before = time.process_time(), time.perf_counter()
            runs = plan_runs(sweep, folder / "out", overrides=overrides)
            cpu.append(time.process_time() - before[0])
            clock.append(time.perf_counter() - before[1])
    assert len(runs) == 100
    yield Cell(
        "planning 100 cells of the ladder",
        f"{median(cpu):.2f} s of CPU ({min(cpu):.2f} to {max(cpu):.2f}), by the clock "
        f"{median(clock):.2f} s (load {load()})",
        f"below {PLAN_SECONDS:g} s of CPU",
        median(cpu) < PLAN_SECONDS,
    )


def measure_side_by_side(args: argparse.Namespace) -> Iterator[Cell]:
    """Twelve micro cells, two at a time against one at a time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        axes = {"seed": {f"s{seed}": {"train.seed": seed} for seed in range(12)}}
        sweep = {"name": "micro", "experiments": [str(QUICKSTART)], "axes": axes}
        (folder / "micro.yaml").write_text(yaml.safe_dump(sweep))
        overrides = random_corpus(folder, num_tokens=64 * 4000, vocab_size=2048)
        overrides += ["train.model.d_model=16", f"train.max_duration={args.steps}"]
        # Outside the vocabulary of tasks, as the embedded corpus has them.
        overrides += ["train.model.eos_token_id=0", "train.model.pad_token_id=1"]
        overrides += ["callbacks={task_eval: {every: 200}}", "train.scheduler.t_warmup=10"]
        before, seconds = load(), {}
        for jobs in (2, 1):
            out = folder / f"out-{jobs}"
            command = [sys.executable, "-m", "launch.cli", "sweep", str(folder / "micro.yaml")]
            command += ["--out", str(out), "--jobs", str(jobs)]
            command += [part for override in overrides for part in ("-o", override)]
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, env=environment())
            seconds[jobs] = time.perf_counter() - start
            if done.returncode:
                sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    ratio = seconds[1] / seconds[2]
    yield Cell(
        f"12 runs of {args.steps} steps at width 16, one thread each, imports included",
        f"{seconds[1]:.0f} s one at a time, {seconds[2]:.0f} s two at a time: {ratio:.2f} times "
        f"(load {before} before)",
        f"at least {SPEED_UP} times on two cores",
        ratio >= SPEED_UP,
    )


def environment() -> dict[str, str]:
    return os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)}


def load() -> str:
    return f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


CHECKS: dict[str, Callable[[argparse.Namespace], Iterator[Cell]]] = {
    "plan": measure_plan,
    "side_by_side": measure_side_by_side,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checks", nargs="*", help=f"some of {', '.join(CHECKS)}; default: all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400, help="of a run side by side")
    parser.add_argument("--out", type=Path, help="write the cells to a .md file")
    args = parser.parse_args()
    if unknown := set(args.checks) - set(CHECKS):
        parser.error(f"no check {sorted(unknown)}; there are {', '.join(CHECKS)}")
    cells = [cell for name in args.checks or CHECKS for cell in CHECKS[name](args)]
    table = Table("", "measured", "promise")
    for cell in cells:
        table.add_row(cell.what, cell.value, cell.promise, style="" if cell.kept else "bold red")
    Console().print(table)
    if args.out is not None:
        lines = [("", "measured", "promise"), ("---",) * 3]
        lines += [(cell.what, cell.value, cell.promise) for cell in cells]
        args.out.write_text("".join("| " + " | ".join(line) + " |\n" for line in lines))
    sys.exit(0 if all(cell.kept for cell in cells) else 1)


if __name__ == "__main__":
    main()
