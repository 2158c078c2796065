"""The one entry of a training process: `olmo-ext train`, typed or as a sweep's child.

olmo-ext train experiment.yaml --resume
train(Path("experiment.yaml"), ["train.seed=1"])
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_injection.beat import Beat, to_stderr
from launch.terminal import (
    ExperimentFile,
    Overrides,
    console,
    errors,
    exits,
    interruptible,
    is_rank_zero,
    say,
)

if TYPE_CHECKING:
    from olmo_ext.config import ExperimentConfig


def train(
    experiment: ExperimentFile,
    override: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the folder's latest checkpoint.")
    ] = False,
    new_ledger: Annotated[
        bool, typer.Option("--new-ledger", help="Resume although the ledger is damaged.")
    ] = False,
    despite_divergence: Annotated[
        bool, typer.Option("--despite-divergence", help="Resume although the loss was no number.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, train nothing.")
    ] = False,
    exit_code_on_signal: Annotated[
        int, typer.Option(min=0, max=255, help="Status of a run that a signal stopped and saved.")
    ] = 0,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="The engine's log too.")] = False,
) -> None:
    """Train one experiment; under torchrun on all its ranks."""
    from olmo_ext.signals import StopSignals, await_agent_end, end_after

    # Both before what takes seconds to import.
    with StopSignals() as signals, Beat(to_stderr if is_rank_zero() else None) as beat:
        beat.then("starting")
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_after(await_agent_end)
        _train(
            experiment, override, verbose=verbose, resume=resume, dry_run=dry_run,
            new_ledger=new_ledger, despite_divergence=despite_divergence, signals=signals,
            beat=beat,
        )  # fmt: skip
        if exit_code_on_signal and signals.received and not dry_run:
            raise typer.Exit(exit_code_on_signal)


def train_as_typed(arguments: Sequence[str]) -> None:
    """The words of an `olmo-ext train ...` line; what a sweep's child runs, and all that it can.

    As the command line: bad input ends the process with status 2.
    """
    verb, *rest = arguments
    if verb != "train":
        raise ValueError(f"a run is `olmo-ext train ...`, got {verb!r}")
    sys.argv = ["olmo-ext", *arguments]  # run.json tells it
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(train)
    with exits():
        app(rest, prog_name="olmo-ext train")


def _train(
    experiment: Path, override: list[str] | None, *, verbose: bool, dry_run: bool, **settings: Any
) -> None:
    import torch.distributed as dist

    from eval.checkpoints.checkpoint import find_checkpoints
    from eval.run import MARKER, read_if_whole, read_run
    from olmo_ext.config import load_experiment
    from olmo_ext.engines.ending import noting_failure
    from olmo_ext.train import train as run

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    with interruptible("--resume goes on from the last checkpoint"):
        loaded = load_experiment(experiment, override, corpus=False)
        _warn_of_memory(loaded)
        # Of what ends a job before the folder is its own; there are logs where there is a job.
        with nullcontext() if dry_run else noting_failure(Path(loaded.train.save_folder) / "logs"):
            folder = run(loaded, dry_run=dry_run, **settings)
    # Not after an error: it can wait for ranks that are still inside a collective.
    dist.destroy_process_group()
    if not is_rank_zero():
        return
    if dry_run:
        console.print(f"{experiment}: all checks passed; nothing was trained or written")
    elif told := read_if_whole(folder / MARKER):
        console.print(
            f"{folder}: stopped by {told['reason']}, saved at step {told['step']} of "
            f"{told['num_steps']}; --resume goes on ({MARKER} is for the batch script)"
        )
    else:
        steps = read_run(folder)["num_steps"]
        console.print(f"{folder}: trained to step {find_checkpoints(folder)[-1].step} of {steps}")


def _warn_of_memory(experiment: ExperimentConfig) -> None:
    """Say before it is spent what the card of this rank has too little memory for."""
    import torch

    from olmo_ext.checks import num_steps
    from olmo_ext.cost import run_cost, too_large

    world, train = int(os.environ.get("WORLD_SIZE", "1")), experiment.train
    fits = train.global_train_batch_size % world == 0 and train.distributed_strategy is not None
    if not (torch.cuda.is_available() and is_rank_zero() and fits):
        return
    card = torch.cuda.get_device_properties(0).total_memory
    cost = run_cost(train, num_steps=num_steps(train), gpus=world)
    for key, value, reason, remedy in too_large(experiment, cost, gpu_bytes=card):
        say(errors, f"warning: {key} is {value}: {reason}; {remedy}")
