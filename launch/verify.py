"""verify: does what this project promises hold on this machine? To be run first on a new one.

olmo-ext verify                            # CPU or GPU, no corpus needed; about a minute
olmo-ext verify experiment.yaml --json verify.json
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from data_injection.beat import Beat, to_stderr
from launch.json_file import write_json
from launch.terminal import console, interruptible


def verify(
    experiment: Annotated[
        Path | None, typer.Argument(help="Whose model to take; by default one that fits anywhere.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write the table's rows there.")
    ] = None,
) -> None:
    """Check, in a few steps each, what results rest on; status 1 if any of it does not hold."""
    with Beat(to_stderr) as beat, interruptible("nothing was left behind"):
        beat.then("importing the engine")
        import torch
        import torch.distributed as dist
        from rich.text import Text

        from eval.text import check_target, new_table, print_table
        from olmo_ext.build import keep_memory
        from olmo_ext.verify.checks import verify as checks
        from olmo_ext.verify.runs import Runs

        check_target(json_path, "--json")
        logging.basicConfig(level=logging.ERROR)
        keep_memory()
        if experiment is None:  # too small for threads, which on a busy machine wait for each other
            torch.set_num_threads(1)
        with tempfile.TemporaryDirectory(prefix="olmo-ext-verify-") as folder:
            found = list(checks(Runs(Path(folder), experiment=experiment), say=beat.then))
        if dist.is_initialized():
            dist.destroy_process_group()
    table = new_table("", "what", "value", "bound", "note")
    marks = {True: Text("ok", "green"), False: Text("FAIL", "red"), None: Text("")}
    for check in found:
        told = [f"{v:.3g}" if isinstance(v, float) else v for v in (check.value, check.bound)]
        table.add_row(marks[check.passed], check.name, *told, check.note)
    print_table(table, console)
    if json_path is not None:
        write_json(json_path, [vars(check) for check in found])
    failed = [check.name for check in found if check.passed is False]
    console.print(f"{len(failed)} failed: {'; '.join(failed)}" if failed else "all checks passed")
    if failed:
        raise typer.Exit(1)
