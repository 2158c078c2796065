"""`olmo-ext submit`, `status` and `launch torchrun`: runs on a cluster, or on several ranks.

olmo-ext submit experiment.yaml --site my-site.yaml
olmo-ext status runs/
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.terminal import ExperimentFile, JsonFile, Overrides, console, errors

launch = typer.Typer(help="Start a run on several ranks.", no_args_is_help=True)


@launch.command()
def torchrun(
    experiment: ExperimentFile,
    nproc: Annotated[int, typer.Option(help="Ranks on each node: its GPUs.")],
    nnodes: Annotated[int, typer.Option(help="Nodes; the same command is run on each.")] = 1,
    rdzv_endpoint: Annotated[
        str | None, typer.Option(help="HOST:PORT where the nodes' agents meet.")
    ] = None,
    rdzv_id: Annotated[str | None, typer.Option(help="Name of the meeting.")] = None,
    max_restarts: Annotated[int, typer.Option(help="Starts again after a rank failed.")] = 0,
    shutdown_timeout: Annotated[
        int, typer.Option(help="Seconds from a signal to SIGKILL: a step, a save and a margin.")
    ] = 600,
    override: Overrides = None,
    driver: Annotated[
        str, typer.Option(help="Module that each rank runs instead of olmo-ext's own.")
    ] = "launch",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command only.")] = False,
) -> None:
    """Print the exact torchrun command of a run and run it; goes on from the last checkpoint."""
    from launch.slurm.torchrun import launch_torchrun

    launch_torchrun(
        experiment, nproc=nproc, nnodes=nnodes, rdzv_endpoint=rdzv_endpoint, rdzv_id=rdzv_id,
        max_restarts=max_restarts, shutdown_timeout=shutdown_timeout, overrides=override or [],
        driver=driver, dry_run=dry_run, console=console,
    )  # fmt: skip


def submit(
    source: Annotated[Path, typer.Argument(help="Experiment or sweep YAML.")],
    site: Annotated[Path, typer.Option(help="Site profile; configs/sites has some.")],
    override: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="A sweep goes to OUT/<sweep>/<labels>.")] = None,
    after: Annotated[str | None, typer.Option(help="Start after this job has succeeded.")] = None,
    prepare: Annotated[
        str | None, typer.Option(help="Make the corpus first: words of `olmo-ext prepare`.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the script (the rest on stderr), submit nothing."),
    ] = False,
) -> None:
    """Hand a run or a sweep to SLURM; its jobs save, requeue and go on by themselves."""
    from launch.slurm.site import load_site
    from launch.slurm.submit import submit as run

    run(
        source, site=load_site(site), out=out, overrides=override or [], after=after,
        prepare=prepare, dry_run=dry_run, console=console, errors=errors,
    )  # fmt: skip


def status(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of runs.")],
    json: JsonFile = None,
) -> None:
    """What runs are at, what SLURM says of their jobs, and why a failed one failed."""
    from launch.slurm.status import show_status

    show_status(runs, json=json, console=console)
