"""`olmo-ext theory`: the synthetic lab's experiments.

olmo-ext theory all --out runs/theory
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.terminal import console, interruptible

app = typer.Typer(
    help="The synthetic lab: predictions drawn before the runs, then met by them.",
    no_args_is_help=True,
)

Config = Annotated[
    Path | None, typer.Option(help="YAML of settings; default: configs/theory/<experiment>.yaml.")
]
Out = Annotated[Path, typer.Option(help="Results go to OUT/<experiment>.")]
Seeds = Annotated[
    list[int] | None, typer.Option(help="Seeds in place of the settings'; repeatable.")
]
Jobs = Annotated[int, typer.Option(min=1, help="Processes side by side, one thread each.")]

RUNS = Path("runs/theory")


@app.command()
def phase(config: Config = None, out: Out = RUNS, seeds: Seeds = None, jobs: Jobs = 2) -> None:
    """Which tasks are learned at which width, against the analytic staircase."""
    _run(["phase"], config, out, seeds, jobs)


@app.command()
def complexity(config: Config = None, out: Out = RUNS, seeds: Seeds = None, jobs: Jobs = 2) -> None:
    """Whether frequency or utility says in which order tasks are learned."""
    _run(["complexity"], config, out, seeds, jobs)


@app.command()
def injection(config: Config = None, out: Out = RUNS, seeds: Seeds = None, jobs: Jobs = 2) -> None:
    """A rare task in bursts at matched frequency: update and forget, or accumulate."""
    _run(["injection"], config, out, seeds, jobs)


@app.command()
def gradients(config: Config = None, out: Out = RUNS, seeds: Seeds = None, jobs: Jobs = 2) -> None:
    """How strongly common tasks pull at each width: residual, bounds and norms."""
    _run(["gradients"], config, out, seeds, jobs)


@app.command("all")
def every(out: Out = RUNS, seeds: Seeds = None, jobs: Jobs = 2) -> None:
    """All four with their default settings: minutes on two cores; finished cells are kept."""
    _run(["phase", "complexity", "injection", "gradients"], None, out, seeds, jobs)


def _run(
    names: list[str], config: Path | None, out: Path, seeds: list[int] | None, jobs: int
) -> None:
    from launch.lab.run import run_experiments

    with interruptible("the same command goes on from the finished cells"):
        run_experiments(names, config=config, out=out, seeds=seeds, jobs=jobs, console=console)
