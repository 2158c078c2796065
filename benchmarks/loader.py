"""Rows per second of our training data loader beside stock ai2-olmo's, on the same data.

    python benchmarks/loader.py --out loader.md

Ours injects 8 examples into every batch of 32 rows, and 1,024 into one of 2,048 at the study's
shape, where each reader is one rank of 8. Each repeat times both loaders one after the
other, in turns first, so that a busy machine slows both; the ratio is the median over these pairs.
The clock starts after a warm-up: workers have started, and what they fetched ahead is used up.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from olmo.config import DataConfig, ModelConfig, TrainConfig
from olmo.data import build_train_dataloader as build_stock
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from data_injection.config import InjectionConfig, ScheduleConfig, TaskConfig
from data_injection.order import RowOrder
from data_injection.plan import compile_plan
from olmo_ext.data import build_train_dataloader as build_ours

VOCAB_SIZE = 50_280
NUM_ROWS = 2**15
"""Rows of a file of the corpus: 128 MiB at context 2048."""

PROMISE = 0.97
"""The ratio of ours to stock that no cell may fall below."""


@dataclass(frozen=True)
class Shape:
    """What is read: one rank's share of every batch."""

    context: int
    """Tokens a row."""
    batch_size: int
    """Rows a step over all ranks."""
    ranks: int
    injected: int
    """Examples in every batch of ours."""
    num_files: int = 1
    """The same file so many times, so that an epoch outlasts a timing."""

    def __str__(self) -> str:
        whole = f"{self.batch_size:,}"
        return whole if self.ranks == 1 else f"{self.batch_size // self.ranks:,} of {whole}"


STUDY = Shape(context=2048, batch_size=2048, ranks=8, injected=1024, num_files=4)
GRID = (
    *((Shape(64, batch_size=32, ranks=1, injected=8), workers) for workers in (0, 1, 2, 4)),
    *((Shape(2048, batch_size=32, ranks=1, injected=8), workers) for workers in (0, 1, 2, 4)),
    *((STUDY, workers) for workers in (0, 2)),
)
"""Shapes and numbers of workers."""


@dataclass(frozen=True)
class Cell:
    """One measurement: medians over the pairs, and the span of the pairs' ratios."""

    shape: Shape
    workers: int
    ours: float
    """Rows per second."""
    stock: float
    """Rows per second."""
    ratio: float
    """Ours to stock: the median over pairs."""
    ratio_min: float
    ratio_max: float
    pairs: int


def measure(shape: Shape, *, workers: int, pairs: int, seconds: float) -> Cell:
    """Time `pairs` pairs of runs, each about `seconds` long, over one random memmap."""
    with tempfile.TemporaryDirectory() as folder:
        ours, stock = build_loaders(shape, Path(folder), workers=workers)
        warm_up = 4 * workers + 4
        # An untimed pass fills the page cache and says how many batches take `seconds`.
        most = shape.num_files * NUM_ROWS // shape.batch_size - warm_up
        rate = rows_per_second(stock, batches=min(64, most), warm_up=warm_up)
        batches = min(max(int(rate * seconds * shape.ranks / shape.batch_size), 16), most)
        samples = []
        for pair in range(pairs):
            loaders = (ours, stock) if pair % 2 else (stock, ours)
            rates = [rows_per_second(it, batches=batches, warm_up=warm_up) for it in loaders]
            samples.append(tuple(rates if pair % 2 else rates[::-1]))
    ratios = [a / b for a, b in samples]
    return Cell(
        shape=shape,
        workers=workers,
        ours=median(a for a, _ in samples),
        stock=median(b for _, b in samples),
        ratio=median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        pairs=pairs,
    )


def build_loaders(shape: Shape, folder: Path, *, workers: int) -> tuple[DataLoader, DataLoader]:
    """The first rank's loader, ours and stock's, over the same random tokens, one epoch of each."""
    context, batch_size = shape.context, shape.batch_size
    tokens = np.random.default_rng(0).integers(VOCAB_SIZE, size=NUM_ROWS * context, dtype=np.uint16)
    tokens.tofile(folder / "tokens.npy")
    train = TrainConfig(
        model=ModelConfig(
            max_sequence_length=context,
            vocab_size=VOCAB_SIZE,
            embedding_size=VOCAB_SIZE,
            eos_token_id=0,
            pad_token_id=1,
        ),
        data=DataConfig(
            paths=[str(folder / "tokens.npy")] * shape.num_files,
            drop_last=True,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
        ),
        global_train_batch_size=batch_size,
        device_train_batch_size=batch_size // shape.ranks,
        save_folder=str(folder),
        save_overwrite=True,
    )
    num_rows = shape.num_files * NUM_ROWS
    order = RowOrder(num_rows=num_rows, batch_size=batch_size, seed=train.seed, folder=folder)
    order.write(order.epoch_rows)
    task = TaskConfig(name="comparison", schedule=ScheduleConfig(rate=shape.injected))
    plan = compile_plan(
        InjectionConfig(tasks=[task]),
        batch_size=batch_size,
        seq_len=context,
        epoch_rows=order.epoch_rows,
        vocab_size=VOCAB_SIZE,
        eos_token_id=0,
    )
    rank = {"world_size": shape.ranks, "rank": 0, "fs_local_rank": 0}
    ours = build_ours(train, plan=plan, order=order, num_positions=order.epoch_rows, **rank)
    return ours, build_stock(train, **rank)


def rows_per_second(loader: DataLoader, *, batches: int, warm_up: int) -> float:
    """Rows per second over `batches` batches after `warm_up` batches of one epoch."""
    stream = iter(loader)
    for _ in range(warm_up):
        next(stream)
    start = time.perf_counter()
    rows = sum(len(next(stream)["input_ids"]) for _ in range(batches))
    return rows / (time.perf_counter() - start)


def table(cells: list[Cell]) -> Table:
    out = Table("context", "batch", "injected", "workers", "ours /s", "stock /s", "ratio", "span")
    for cell in cells:
        out.add_row(*map(str, row(cell)), style="" if cell.ratio >= PROMISE else "bold red")
    return out


def row(cell: Cell) -> tuple[str, ...]:
    span = f"{cell.ratio_min:.2f} to {cell.ratio_max:.2f}"
    rates = (f"{cell.ours:,.0f}", f"{cell.stock:,.0f}", f"{cell.ratio:.2f}")
    shape = (str(cell.shape.context), str(cell.shape), f"{cell.shape.injected:,}")
    return (*shape, str(cell.workers), *rates, span)


def write(cells: list[Cell], path: Path) -> None:
    """The cells as JSON, or as the rows of a Markdown table."""
    if path.suffix == ".json":
        path.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")
        return
    head = ["context", "rows a batch", "injected", "workers"]
    head += ["ours, rows/s", "stock, rows/s", "ours / stock", "min to max"]
    lines = [head, ["---:"] * len(head), *map(row, cells)]
    path.write_text("".join("| " + " | ".join(line) + " |\n" for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", action="store_true", help="the study's shape alone")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=0.25, help="length of one timing")
    parser.add_argument("--quick", action="store_true", help="a look: 3 short pairs a cell")
    parser.add_argument("--out", type=Path, help="write the cells to a .json or .md file")
    args = parser.parse_args()
    if args.quick:
        args.pairs, args.seconds = 3, 0.2
    cells = [
        measure(shape, workers=workers, pairs=args.pairs, seconds=args.seconds)
        for shape, workers in GRID
        if shape == STUDY or not args.study
    ]
    Console().print(table(cells))
    if args.out is not None:
        write(cells, args.out)


if __name__ == "__main__":
    main()
