"""`olmo-ext scaling`: laws fitted to runs, and what they advise.

olmo-ext scaling fit runs.csv
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Scaling laws and what they advise on size and mixture.", no_args_is_help=True
)


@app.callback()
def _group() -> None:
    """Keep `fit` a verb of its own however many verbs there are."""


@app.command()
def fit(
    source: Annotated[
        Path,
        typer.Argument(
            help="CSV or Parquet with columns params, tokens, loss; or a folder of runs."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/scaling"),
    large: Annotated[
        float | None, typer.Option(help="N_l of Defs. 1 and 2; default: the largest size.")
    ] = None,
    eps: Annotated[
        list[float] | None, typer.Option(help="Of Def. 2, nats per token; repeatable.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Refits for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    params: Annotated[str | None, typer.Option(help="Name of the column params.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Name of the column tokens.")] = None,
    loss: Annotated[str | None, typer.Option(help="Name of the column loss.")] = None,
) -> None:
    """Fit L(N, D) = L0 + A/N^alpha + B/D^beta: constants, exponents, frontier, Defs. 1 and 2.

    Writes fit.json, CSV tables and scaling.png, the study's Fig. 1.
    """
    from rich.console import Console

    from launch.scaling_fit import fit_source

    columns = {"params": params, "tokens": tokens, "loss": loss}
    fit_source(
        source,
        out=out,
        large=large,
        eps=tuple(eps or (0.0,)),
        resamples=resamples,
        seed=seed,
        names={name: column for name, column in columns.items() if column is not None},
        console=Console(),
        errors=Console(stderr=True),
    )
