"""What exactness costs: a step's rows, compiling, hashing, the corpus scan, ledger and witness.

    python benchmarks/plan.py --out plan.md

Status 1 if a promise is broken. Times are CPU seconds of one thread (time.process_time), since the
machines are shared, but for the ledger's, which waits for the disk; each is the median over its
repeats. The scan is a ratio: it and a np.bincount over chunks of the same memmaps in turns, both
warm, the median over the pairs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from data_injection.config import InjectionConfig, ScheduleConfig, TaskConfig
from data_injection.corpus.manifest import corpus_paths
from data_injection.corpus.prepare import prepare_embedded
from data_injection.corpus.scan import scan_corpus
from data_injection.ledger import LedgerWriter
from data_injection.order import RowOrder
from data_injection.plan import InjectionPlan, compile_plan
from data_injection.splice import SplicedStream
from data_injection.tasks.build import build_tasks
from olmo_ext.batch_check import Witness

NUM_STEPS = 50_000
STUDY = {"batch_size": 2048, "seq_len": 2048, "epoch_rows": 2048 * 5000}
QUICKSTART = {"batch_size": 32, "seq_len": 64, "epoch_rows": 182_176}
VOCAB_SIZE = 50_280

SCHEDULES: dict[str, dict[str, Any]] = {
    "even": {"kind": "even"},
    "random": {"kind": "random", "start": 0, "stop": NUM_STEPS},
    "bernoulli": {"kind": "bernoulli"},
    "burst": {"kind": "burst", "every": 1},
}

AT_SECONDS = 1e-3
COMPILE_SECONDS = 2.0
SCAN_RATIO = 0.5
LEDGER_SECONDS = 50e-6
LEDGER_STEPS = 5_000

CHUNK = 2**17
"""Tokens at a time of the bincount beside the scan; at 2^15 and 2^20 it is slower."""

RANDOM_TOKENS = 2**26


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    what: str
    value: float
    unit: str
    least: float
    most: float
    """Least and most over the repeats."""

    promise: str = ""
    """Empty if nothing is promised."""

    kept: bool = True


def study_plan(kind: str, *, rate: int = 1024) -> InjectionPlan:
    """The study's most frequent task: 1,024 instances a step in a batch of 2,048."""
    schedule = ScheduleConfig(rate=rate, **SCHEDULES[kind])
    config = InjectionConfig(tasks=[TaskConfig(name="cmp", schedule=schedule)])
    return compile_plan(config, **STUDY, vocab_size=VOCAB_SIZE, eos_token_id=0)


def seconds(run: Callable[..., Any], *args: Any) -> float:
    start = time.process_time()
    run(*args)
    return time.process_time() - start


def measure_steps(args: argparse.Namespace) -> Iterator[Cell]:
    """`plan.at(step)` over many different steps, asked for in the order of the run."""
    for kind in SCHEDULES:
        plan = study_plan(kind)
        # From any place of the run; ascending, as the loader asks, and warm where it stores blocks.
        steps = np.linspace(0, NUM_STEPS - 1, num=2000 * args.repeats // 5).astype(int).tolist()
        plan.at(steps[-1])
        times = [seconds(plan.at, step) for step in steps]
        yield Cell(
            f"`plan.at(step)`, {kind}, 1,024 instances, {len(steps):,} steps",
            median(times) * 1e3,
            "ms",
            min(times) * 1e3,
            float(np.quantile(times, 0.99)) * 1e3,
            f"below {AT_SECONDS * 1e3:g} ms",
            median(times) < AT_SECONDS,
        )


def measure_compile(args: argparse.Namespace) -> Iterator[Cell]:
    """Compiling a plan, its hash included."""
    for kind in SCHEDULES:
        times = [seconds(study_plan, kind) for _ in range(args.repeats)]
        yield Cell(
            f"compile and hash, {kind}, {NUM_STEPS:,} steps at 1,024 a step",
            median(times),
            "s",
            min(times),
            max(times),
            f"below {COMPILE_SECONDS:g} s",
            median(times) < COMPILE_SECONDS,
        )


def measure_digest(args: argparse.Namespace) -> Iterator[Cell]:
    """The digest of every row of 50,000 steps, for information: no hash needs it."""
    tasks = [
        TaskConfig(name=f"cmp_r{rate}", schedule=ScheduleConfig(rate=rate))
        for rate in (8, 4, 2, 1, "1/2")
    ]
    small = compile_plan(
        InjectionConfig(tasks=tasks), **QUICKSTART, vocab_size=2048, eos_token_id=0
    )
    plans = {"the quickstart's 15.5 a step": small, "1,024 a step": study_plan("even")}
    for name, plan in plans.items():
        took = seconds(plan.digest, range(NUM_STEPS))
        yield Cell(f"digest of {NUM_STEPS:,} steps, {name}", took, "s", took, took)


def measure_scan(args: argparse.Namespace) -> Iterator[Cell]:
    """The corpus scan beside a chunked bincount: large and small vocabularies."""
    manifest = prepare_embedded(args.corpus)
    embedded = [str(path) for path in corpus_paths(args.corpus, manifest)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.npy"
        # Frequencies as of text: the r-th commonest id about 1/r as often as the first.
        ranks = np.random.default_rng(0).zipf(1.1, size=RANDOM_TOKENS).astype(np.uint64)
        (ranks * np.uint64(7919) % np.uint64(VOCAB_SIZE)).astype(np.uint16).tofile(path)
        del ranks
        for family, num_tasks, paths, vocab_size in (
            ("comparison", 1, [str(path)], VOCAB_SIZE),
            ("comparison", 5, [str(path)], VOCAB_SIZE),
            ("comparison", 1, embedded * 8, manifest.vocab_size),
            ("comparison", 5, embedded * 8, manifest.vocab_size),
            ("modular_addition", 5, embedded * 8, manifest.vocab_size),
        ):
            yield scan_cell(family, num_tasks, paths, vocab_size, pairs=2 * args.repeats + 1)


def scan_cell(
    family: str, num_tasks: int, paths: list[str], vocab_size: int, *, pairs: int
) -> Cell:
    """Ratio of bincount's time to the scan's, set-up included."""
    configs = [TaskConfig(name=f"t{i}", family=family) for i in range(num_tasks)]
    tasks = build_tasks(InjectionConfig(tasks=configs), vocab_size=vocab_size, reserved_tokens=[0])

    def count() -> None:
        for path in paths:
            tokens = np.memmap(path, dtype=np.uint16, mode="r")
            for start in range(0, len(tokens), CHUNK):
                np.bincount(tokens[start : start + CHUNK], minlength=vocab_size)

    def scan() -> None:
        scan_corpus(paths, tasks, dtype=np.uint16, eos_token_id=0)

    for run in (count, scan):
        run()  # warm
    ratios = []
    for pair in range(pairs):
        runs = (scan, count) if pair % 2 else (count, scan)
        times = dict(zip(runs, map(seconds, runs), strict=True))
        ratios.append(times[count] / times[scan])
    name = f"{family}, {num_tasks} task{'s' if num_tasks > 1 else ''}, vocabulary {vocab_size:,}"
    return Cell(
        f"scan / bincount, {name}",
        median(ratios),
        "of its speed",
        min(ratios),
        max(ratios),
        f"at least {SCAN_RATIO:g}",
        median(ratios) >= SCAN_RATIO,
    )


def measure_ledger(args: argparse.Namespace) -> Iterator[Cell]:
    """Appending a step's rows, with a seal forced onto the disk every 500 steps; wall-clock."""
    for rate in (8, 1024):
        plan = study_plan("even", rate=rate)
        # Planned before: what is timed is the ledger's own work.
        steps = [plan.at(step) for step in range(16)]
        means = []
        for _ in range(args.repeats):
            with (
                tempfile.TemporaryDirectory() as folder,
                LedgerWriter(Path(folder), start_step=0, parent=None, header={}) as ledger,
            ):
                start = time.perf_counter()
                for step in range(LEDGER_STEPS):
                    ledger.append(step, steps[step % len(steps)])
                    if step % 500 == 499:
                        ledger.seal(step + 1)
                means.append((time.perf_counter() - start) / LEDGER_STEPS)
        yield Cell(
            f"ledger append, {rate:,} rows a step, amortised over {LEDGER_STEPS:,} steps",
            median(means) * 1e6,
            "us a step",
            min(means) * 1e6,
            max(means) * 1e6,
            f"at most {LEDGER_SECONDS * 1e6:g} us",
            median(means) <= LEDGER_SECONDS,
        )


def measure_witness(args: argparse.Namespace) -> Iterator[Cell]:
    """What a rank compares with the plan before each step, for information."""
    for name, shape, rate, ranks in (
        ("32 rows of 64", QUICKSTART, 8, 1),
        ("256 of 2,048 rows of 2,048", STUDY, 1024, 8),
    ):
        schedule = ScheduleConfig(rate=rate)
        tasks = [TaskConfig(name="cmp", schedule=schedule)]
        plan = compile_plan(InjectionConfig(tasks=tasks), **shape, vocab_size=2048, eos_token_id=0)
        batch_size, seq_len = shape["batch_size"], shape["seq_len"]
        order = RowOrder(num_rows=batch_size, batch_size=batch_size, seed=0)
        rows = np.random.default_rng(0).integers(2, 2048, size=(batch_size, seq_len))
        host = [{"input_ids": torch.from_numpy(row)} for row in rows]
        fresh = _Fresh(host)
        stream = SplicedStream(
            fresh, order=order, plan=plan, num_positions=batch_size, pad_token_id=1
        )
        items = [stream[slot] for slot in range(0, batch_size, ranks)]
        batch = {
            "input_ids": torch.stack([item["input_ids"] for item in items]),
            "index": torch.tensor([item["index"] for item in items]),
        }
        witness = Witness(plan, order, fresh, rank=0, world_size=ranks)
        times = [seconds(witness.see, 0, batch) for _ in range(100 * args.repeats)]
        yield Cell(
            f"witness of a batch, {name}", median(times) * 1e6, "us", min(times) * 1e6,
            float(np.quantile(times, 0.99)) * 1e6,
        )  # fmt: skip


class _Fresh:
    """Rows handed out as copies, since the stream splices into them."""

    def __init__(self, rows: list[dict[str, torch.Tensor]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: value.clone() for name, value in self.rows[index].items()}


CHECKS: dict[str, Callable[[argparse.Namespace], Iterator[Cell]]] = {
    "steps": measure_steps,
    "compile": measure_compile,
    "digest": measure_digest,
    "scan": measure_scan,
    "ledger": measure_ledger,
    "witness": measure_witness,
}


def row(cell: Cell) -> tuple[str, ...]:
    span = f"{cell.least:.3g} to {cell.most:.3g}"
    return cell.what, f"{cell.value:.3g} {cell.unit}", span, cell.promise or "-"


def write(cells: list[Cell], path: Path) -> None:
    """The cells as the rows of a Markdown table."""
    lines = [("", "median", "span", "promise"), ("---", "---:", "---:", "---:"), *map(row, cells)]
    path.write_text("".join("| " + " | ".join(line) + " |\n" for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checks", nargs="*", help=f"some of {', '.join(CHECKS)}; default: all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--corpus", type=Path, default=Path("runs/corpus"), help="embedded corpus")
    parser.add_argument("--out", type=Path, help="write the cells to a .md file")
    args = parser.parse_args()
    if unknown := set(args.checks) - set(CHECKS):
        parser.error(f"no check {sorted(unknown)}; there are {', '.join(CHECKS)}")
    cells = [cell for name in args.checks or CHECKS for cell in CHECKS[name](args)]
    table = Table("", "median", "span", "promise")
    for cell in cells:
        table.add_row(*row(cell), style="" if cell.kept else "bold red")
    Console().print(table)
    if args.out is not None:
        write(cells, args.out)
    sys.exit(0 if all(cell.kept for cell in cells) else 1)


if __name__ == "__main__":
    main()
