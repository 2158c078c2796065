"""verify and bench: does what this project promises hold on this machine, and how fast is it?

olmo-ext verify                            # CPU or GPU, no corpus needed; about a minute
olmo-ext verify experiment.yaml --json verify.json
olmo-ext bench ladder/4M.yaml ladder/300M.yaml --rows 16 --micro-batch 8 --json bench.json
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from data_injection.beat import Beat, to_stderr
from launch.json_file import write_rows
from launch.terminal import JsonFile, interruptible, tables


@contextmanager
def _machine(json: Path | None, *, small: bool) -> Iterator[Beat]:
    """What both verbs need of it. A model too `small` for threads, which on a busy machine wait for
    each other, gets one."""
    with Beat(to_stderr) as beat, interruptible("nothing was left behind"):
        beat.then("importing the engine")
        import torch
        import torch.distributed as dist

        from olmo_ext.build import keep_memory

        logging.basicConfig(level=logging.ERROR)
        keep_memory()
        if small:
            torch.set_num_threads(1)
        yield beat
        if dist.is_initialized():
            dist.destroy_process_group()


def verify(
    experiment: Annotated[
        Path | None, typer.Argument(help="Whose model to take; by default one that fits anywhere.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Check, in a few steps each, what results rest on; status 1 if any of it does not hold."""
    with _machine(json, small=experiment is None) as beat:
        from rich.text import Text

        from eval.text import new_table, print_table
        from olmo_ext.verify.checks import verify as checks
        from olmo_ext.verify.runs import TrialRuns

        with tempfile.TemporaryDirectory(prefix="olmo-ext-verify-") as folder:
            found = list(checks(TrialRuns(Path(folder), experiment=experiment), say=beat.then))
    table = new_table("", "what", "value", "bound", "note")
    marks = {True: Text("ok", "green"), False: Text("FAIL", "red"), None: Text("")}
    for check in found:
        told = [f"{v:.3g}" if isinstance(v, float) else v for v in (check.value, check.bound)]
        table.add_row(marks[check.passed], check.name, *told, check.note)
    console = tables(json)
    print_table(table, console)
    write_rows(json, found)
    failed = [check.name for check in found if check.passed is False]
    console.print(f"{len(failed)} failed: {'; '.join(failed)}" if failed else "all checks passed")
    if failed:
        raise typer.Exit(1)


def bench(
    experiments: Annotated[
        list[Path] | None,
        typer.Argument(help="Whose models to time; by default one that fits anywhere."),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, help="Rows a step; tokens/s hardly depend on their number.")
    ] = 8,
    micro_batch: Annotated[int, typer.Option(min=1, help="Rows of a micro-batch.")] = 4,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps of each, at most.")] = 40,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="Of each model, at most.")] = 25,
    precision: Annotated[str, typer.Option(help="On a GPU; a CPU computes in fp32.")] = "amp_bf16",
    peak_tflops: Annotated[
        float, typer.Option(min=0.001, help="Of the device: 989 is an H100 SXM in dense bf16.")
    ] = 989.0,
    json: JsonFile = None,
) -> None:
    """Time stock ai2-olmo's trainer and ours in turns: tokens/s, MFU, memory, ours over stock's."""
    with _machine(json, small=not experiments) as beat:
        from data_injection.errors import ConfigError
        from eval.text import new_table, print_table
        from olmo_ext.verify.bench import bench as timed
        from olmo_ext.verify.bench import num_rows
        from olmo_ext.verify.runs import TrialRuns

        if rows % micro_batch:
            rule = f"must divide --rows, {rows}"
            raise ConfigError(key="--micro-batch", value=micro_batch, rule=rule)
        found = []
        asked: Sequence[Path | None] = experiments or (None,)
        for path in asked:
            name = "the smallest" if path is None else path.stem
            beat.then(f"timing {name}")
            with tempfile.TemporaryDirectory(prefix="olmo-ext-bench-") as folder:
                told = timed(
                    TrialRuns(Path(folder), experiment=path, rows=num_rows(steps, rows)),
                    steps=steps, seconds=seconds, peak_tflops=peak_tflops, precision=precision,
                    train__global_train_batch_size=rows,
                    train__device_train_microbatch_size=micro_batch,
                )  # fmt: skip
            found.append({"model": name, "rows": rows, "micro_batch": micro_batch, **told})
    table = new_table("model", "tokens/s", "stock's", "s a step", "ours / stock", "MFU", "peak GB")
    for told in found:
        columns = [f"{told[key]:,.0f}" for key in ("ours_tok_s", "stock_tok_s")]
        columns += [f"{told['ours_s']:.3g}", f"{told['ratio']:.3f}"]
        memory = told["peak_gb_both"]
        on_card = (f"{told['ours_mfu']:.2%}", f"{memory:.1f}") if memory else ("-", "-")
        table.add_row(told["model"], *columns, *on_card)
    console = tables(json)
    print_table(table, console)
    console.print(f"MFU: of {peak_tflops:g} TFLOP/s, on a card; peak GB: of both trainers together")
    write_rows(json, found)
