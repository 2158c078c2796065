"""A training step of ours, of ours with the loss in chunks, and of stock ai2-olmo's own Trainer.

    python benchmarks/training.py --out training.json          # about 5 minutes on an idle core
    python benchmarks/training.py --table training.json        # the table of RESULTS.md

The quickstart's model and rows at each width, on drawn text, nothing injected and no callbacks:
what is compared is the step. Each variant has a process of its own (ours keeps freed memory,
`keep_memory`, which is the process's) and they take blocks of steps in turns; ratios are of
neighbouring blocks, in CPU seconds, since the machines are shared. One thread each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch

from eval.text import markdown_table
from launch.json_file import write_json

QUICKSTART = Path(__file__).resolve().parent.parent / "configs" / "quickstart.yaml"
VARIANTS = {
    "stock": "stock's Trainer",
    "ours": "ours",
    "chunked": "ours, `chunked_loss: true`",
}
ROWS = 32


def serve(pipe: Any, variant: str, width: int, context: int) -> None:
    """Take as many steps as asked for, until asked for none."""
    from olmo_ext.build import keep_memory
    from olmo_ext.verify.checks import cpu_peak
    from olmo_ext.verify.runs import Runs, Stepper, ours, stock

    torch.set_num_threads(1)
    if variant != "stock":
        keep_memory()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        experiment = Runs(Path(folder), experiment=QUICKSTART, rows=ROWS * 700).experiment(
            variant,
            steps=600,
            train__model__d_model=width,
            train__model__max_sequence_length=context,
            train__global_train_batch_size=ROWS,
            train__device_train_microbatch_size=ROWS,
            chunked_loss=variant == "chunked",
        )
        stepper = Stepper(stock(experiment) if variant == "stock" else ours(experiment, stack))
        while num := pipe.recv():
            wall, cpu, faults = time.perf_counter(), time.process_time(), num_faults()
            for _ in range(num):
                stepper.step()
            took = time.perf_counter() - wall, time.process_time() - cpu, num_faults() - faults
            pipe.send(took)
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        # Last, for it is a tracker's step: slow, and of another process size.
        pipe.send({"losses": stepper.losses, "rss_mib": rss, "tensors_mb": cpu_peak(stepper) / 1e6})


def num_faults() -> int:
    """Pages that the kernel has handed to this process anew."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure(width: int, context: int, *, blocks: int, steps: int) -> list[dict[str, Any]]:
    """A row of each variant at one width."""
    context_of = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for variant in VARIANTS:
        pipes[variant], theirs = context_of.Pipe()
        processes.append(
            context_of.Process(target=serve, args=(theirs, variant, width, context), daemon=True)
        )
        processes[-1].start()
    took: dict[str, list[tuple[float, float, int]]] = {variant: [] for variant in VARIANTS}
    for number in range(blocks + 1):
        names = list(VARIANTS)
        for variant in names if number % 2 else reversed(names):
            pipes[variant].send(steps)
            seconds = pipes[variant].recv()
            if number:  # the first warms up
                took[variant].append(seconds)
    rows = []
    for (variant, pipe), process in zip(pipes.items(), processes, strict=True):
        pipe.send(0)
        told = pipe.recv()
        process.join()
        walls, cpus, faults = zip(*took[variant], strict=True)
        ratios = [s[1] / o[1] for s, o in zip(took["stock"], took[variant], strict=True)]
        rows.append(
            {
                "width": width,
                "context": context,
                "variant": variant,
                "blocks": blocks,
                "steps": steps,
                "cpu_ms": 1e3 * median(cpus) / steps,
                "wall_ms": 1e3 * median(walls) / steps,
                "faults": median(faults) / steps,
                "tokens_per_cpu_s": ROWS * context * steps / median(cpus),
                "over_stock": median(ratios),
                "least": min(ratios),
                "most": max(ratios),
                "rss_mib": told["rss_mib"],
                "tensors_mb": told["tensors_mb"],
                "last_loss": told["losses"][-1],
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    head = ["width", "context", "trainer", "CPU ms a step", "page faults a step", "tokens a CPU s"]
    head += ["over stock", "min to max", "tensors at the peak, MB", "process, MiB", "last loss"]
    lines = [
        [
            str(row["width"]),
            str(row["context"]),
            VARIANTS[row["variant"]],
            f"{row['cpu_ms']:.1f}",
            f"{row['faults']:,.0f}" if "faults" in row else "",
            f"{row['tokens_per_cpu_s']:,.0f}",
            f"{row['over_stock']:.2f}",
            f"{row['least']:.2f} to {row['most']:.2f}",
            f"{row['tensors_mb']:.1f}",
            f"{row['rss_mib']:.0f}",
            f"{row['last_loss']:.6f}",
        ]
        for row in rows
    ]
    return markdown_table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", default="16,32,64")
    parser.add_argument("--context", type=int, default=64, help="tokens of a row")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10, help="of a block")
    parser.add_argument("--out", type=Path, help="JSON of the rows")
    parser.add_argument(
        "--table", type=Path, help="print the table of such a JSON, measure nothing"
    )
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text())["rows"]))
        return
    rows = []
    for width in map(int, args.widths.split(",")):
        rows += measure(width, args.context, blocks=args.blocks, steps=args.steps)
        print(table(rows[-len(VARIANTS) :]), flush=True)
    if args.out:
        machine = {"processor": platform.processor(), "torch": torch.__version__}
        write_json(args.out, {"machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
