"""A training step of ours, with the loss in chunks and in bf16 too, and of ai2-olmo's Trainer.

    python benchmarks/training.py --out training.json          # about 25 minutes on an idle core
    python benchmarks/training.py --table training.json        # the table of RESULTS.md

The quickstart's model and rows at widths 16 to 128, at 2,048 tokens a row too, and the ladder's 4M
rung, on drawn text, nothing injected and no callbacks: what is compared is the step. Each variant
has a process of its own (ours keeps freed memory, `keep_memory`, which is the process's) and they
take blocks of steps in turns; ratios are of neighbouring blocks, in CPU seconds, since the machines
are shared. One thread each. How much stock's process faults is settled when it starts and differs
from start to start, so every shape is started several times.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from eval.text import markdown_table
from launch.json_file import write_json

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
VARIANTS = {
    "stock": "stock's Trainer",
    "ours": "ours",
    "chunked": "ours, `chunked_loss: true`",
    "bf16": "ours, `bf16_on_cpu: true`",
    "bf16 chunked": "ours, both",
}


class Shape(NamedTuple):
    """What is trained, and how long a block of steps is."""

    width: int
    context: int
    rows: int
    steps: int
    """Of a block."""
    rung: str = ""
    """A rung of the ladder; the quickstart's model otherwise."""

    @property
    def experiment(self) -> Path:
        rung = CONFIGS / "olmo_4M_to_4B" / "ladder" / f"{self.rung}.yaml"
        return rung if self.rung else CONFIGS / "quickstart.yaml"


SHAPES = {
    **{f"w{width}": Shape(width, 64, 32, 10) for width in (16, 32, 64, 128)},
    # As many tokens a step as above: the row's length alone is what differs.
    **{f"w{width}x2048": Shape(width, 2048, 1, 10) for width in (16, 64)},
    "4M": Shape(64, 2048, 2, 1, rung="4M"),
}


def serve(pipe: Any, variant: str, shape: Shape, most: int) -> None:
    """Take as many steps as asked for, until asked for none; `most` in all."""
    from olmo_ext.build import keep_memory
    from olmo_ext.verify.bench import flops_per_token
    from olmo_ext.verify.checks import step_peak
    from olmo_ext.verify.runs import Stepper, TrialRuns, ours, stock

    torch.set_num_threads(1)
    if variant != "stock":
        keep_memory()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        # Drawn in rows of the experiment's own length, which is 64 at the least.
        drawn = shape.rows * (most + 20) * shape.context // 64
        runs = TrialRuns(Path(folder), experiment=shape.experiment, rows=drawn)
        experiment = runs.experiment(
            variant,
            steps=most + 10,
            train__model__d_model=shape.width,
            train__model__max_sequence_length=shape.context,
            train__global_train_batch_size=shape.rows,
            train__device_train_microbatch_size=min(shape.rows, 32),
            chunked_loss="chunked" in variant,
            precision="amp_bf16" if "bf16" in variant else "fp32",
            bf16_on_cpu="bf16" in variant,
        )
        trainer = stock(experiment) if variant == "stock" else ours(experiment, stack)
        stepper = Stepper(trainer)
        while num := pipe.recv():
            wall, cpu, faults = time.perf_counter(), time.process_time(), num_faults()
            for _ in range(num):
                stepper.step()
            took = time.perf_counter() - wall, time.process_time() - cpu, num_faults() - faults
            pipe.send(took)
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        # Last, for it is a tracker's step: slow, and of another process size.
        told = {"losses": stepper.losses, "rss_mib": rss, "tensors_mb": step_peak(stepper) / 1e6}
        pipe.send({**told, "flops_per_token": flops_per_token(trainer)})


def num_faults() -> int:
    """Pages that the kernel has handed to this process anew."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def sgemm() -> float:
    """FLOPs a CPU second of this core, of one thread, in products of 1,024 x 1,024 floats."""
    torch.set_num_threads(1)
    a, b = torch.randn(2, 1024, 1024)
    took = []
    for _ in range(10):
        cpu = time.process_time()
        a @ b
        took.append(time.process_time() - cpu)
    return 2 * 1024**3 / median(took)


def measure(name: str, *, blocks: int) -> list[dict[str, Any]]:
    """A row of each variant of one shape, of processes just started."""
    shape = SHAPES[name]
    context_of = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for variant in VARIANTS:
        pipes[variant], theirs = context_of.Pipe()
        most = (blocks + 1) * shape.steps
        processes.append(
            context_of.Process(target=serve, args=(theirs, variant, shape, most), daemon=True)
        )
        processes[-1].start()
        theirs.close()  # a process that dies is then an EOFError here
    took: dict[str, list[tuple[float, float, int]]] = {variant: [] for variant in VARIANTS}
    for number in range(blocks + 1):
        names = list(VARIANTS)
        for variant in names if number % 2 else reversed(names):
            pipes[variant].send(shape.steps)
            seconds = pipes[variant].recv()
            if number:  # the first warms up
                took[variant].append(seconds)
    rows, of_sgemm = [], sgemm()
    for (variant, pipe), process in zip(pipes.items(), processes, strict=True):
        pipe.send(0)
        told = pipe.recv()
        process.join()
        walls, cpus, faults = (
            [part / shape.steps for part in parts] for parts in zip(*took[variant], strict=True)
        )
        tokens = shape.rows * shape.context
        rows.append(
            {
                "shape": name,
                **shape._asdict(),
                "variant": variant,
                "blocks": blocks,
                "cpu_ms": 1e3 * median(cpus),
                "wall_ms": 1e3 * median(walls),
                "faults": median(faults),
                "tokens_per_cpu_s": tokens / median(cpus),
                "over_stock": median(
                    s[1] / o[1] for s, o in zip(took["stock"], took[variant], strict=True)
                ),
                "of_sgemm": told["flops_per_token"] * tokens / median(cpus) / of_sgemm,
                "rss_mib": told["rss_mib"],
                "tensors_mb": told["tensors_mb"],
                "last_loss": told["losses"][-1],
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """A line a shape and variant: medians over its starts, and the ratio's range over them."""
    head = ["model", "context", "rows", "trainer", "CPU ms a step", "page faults a step"]
    head += ["tokens a CPU s", "over stock", "a start: min to max", "of sgemm"]
    head += ["tensors at the peak, MB", "process, MiB", "last loss"]
    starts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        starts.setdefault((row["shape"], row["variant"]), []).append(row)
    lines = []
    for (_, variant), of in starts.items():
        one = {key: median(row[key] for row in of) for key, value in of[0].items()
               if isinstance(value, float)}  # fmt: skip
        ratios = [row["over_stock"] for row in of]
        lines.append(
            [
                of[0]["rung"] or f"width {of[0]['width']}",
                f"{of[0]['context']:,}",
                str(of[0]["rows"]),
                VARIANTS[variant],
                f"{one['cpu_ms']:,.1f}",
                " ".join(f"{row['faults']:,.0f}" for row in of),
                f"{one['tokens_per_cpu_s']:,.0f}",
                f"{one['over_stock']:.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
                f"{one['of_sgemm']:.0%}",
                f"{one['tensors_mb']:.1f}",
                f"{one['rss_mib']:.0f}",
                f"{one['last_loss']:.6f}",
            ]
        )
    return markdown_table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default=",".join(SHAPES), help="of them all, by comma")
    parser.add_argument("--starts", type=int, default=5, help="of each variant's process")
    parser.add_argument("--blocks", type=int, default=6, help="of steps, a start")
    parser.add_argument("--out", type=Path, help="JSON of the rows; what it holds is kept")
    parser.add_argument(
        "--table", type=Path, help="print the table of such a JSON, measure nothing"
    )
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text())["rows"]))
        return
    rows = json.loads(args.out.read_text())["rows"] if args.out and args.out.exists() else []
    for name in args.shapes.split(","):
        for _ in range(args.starts):
            rows += measure(name, blocks=args.blocks)
            if args.out:
                write_json(args.out, {"machine": machine(), "rows": rows})
        print(table([row for row in rows if row["shape"] == name]), flush=True)


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ")[1] for line in info if line.startswith("model name")), "")
    return {"processor": model, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}


if __name__ == "__main__":
    main()
