"""`olmo-ext theory`: the synthetic lab's experiments.

olmo-ext theory all --out runs/theory
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.terminal import JsonFile, interruptible, tables

Experiment = Literal["phase", "complexity", "injection", "gradients", "all"]


def theory(
    experiment: Annotated[Experiment, typer.Argument(help="Which of them.")],
    config: Annotated[
        Path | None,
        typer.Option(help="YAML of settings; default: configs/theory/<experiment>.yaml."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Results go to OUT/<experiment>.")] = Path(
        "runs/theory"
    ),
    seeds: Annotated[
        list[int] | None, typer.Option(help="Seeds in place of the settings'; repeatable.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes side by side, one thread each.")] = 2,
    json: JsonFile = None,
) -> None:
    """The synthetic lab: predictions drawn before the runs, then met by them.

    phase: which tasks are learned at which width, against the analytic staircase.

    complexity: whether frequency or utility says in which order tasks are learned.

    injection: a rare task in bursts at matched frequency: update and forget, or accumulate.

    gradients: how strongly common tasks pull at each width: residual, bounds and norms.

    all: these four with their default settings: minutes on two cores; finished cells are kept.
    """
    from launch.lab.run import EXPERIMENTS, run_experiments

    chosen = list(EXPERIMENTS) if experiment == "all" else [experiment]
    with interruptible("the same command goes on from the finished cells"):
        run_experiments(
            chosen, config=config, out=out, seeds=seeds, jobs=jobs, json=json, console=tables(json)
        )
