"""`olmo-ext scaling`: laws fitted to runs, and what they advise.

olmo-ext scaling fit runs.csv
olmo-ext scaling advise runs/quickstart --size w32 --frequency 2
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.terminal import JsonFile, errors, refuse_idle, tables

app = typer.Typer(
    help="Scaling laws and what they advise on size and mixture.", no_args_is_help=True
)


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
    flops: Annotated[
        str | None, typer.Option(help="Name of a column of FLOPs C, in place of tokens: D = C/6N.")
    ] = None,
    loss: Annotated[str | None, typer.Option(help="Name of the column loss.")] = None,
    json: JsonFile = None,
) -> None:
    """Fit L(N, D) = L0 + A/N^alpha + B/D^beta: constants, exponents, frontier, Defs. 1 and 2.

    Writes fit.json, CSV tables and scaling.png, the study's Fig. 1.
    """
    from data_injection.files import read_json
    from launch.json_file import write_json
    from launch.scaling.fit import fit_source

    columns = {"params": params, "tokens": tokens, "flops": flops, "loss": loss}
    path = fit_source(
        source, out=out, large=large, eps=tuple(eps or (0.0,)), resamples=resamples, seed=seed,
        names={name: column for name, column in columns.items() if column is not None},
        console=tables(json), errors=errors,
    )  # fmt: skip
    if json is not None:
        write_json(json, read_json(path))


@app.command()
def advise(
    runs: Annotated[Path, typer.Argument(help="Folder of runs, or a records.jsonl.")],
    frequency: Annotated[
        str | None, typer.Option(help="How often the task comes, e.g. 2, 1/10, 2.4e-8.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="A rung of the records, or parameters: 98.5K, 1B.")
    ] = None,
    unit: Annotated[str | None, typer.Option(help="per_step, per_sequence or per_token.")] = None,
    gap: Annotated[
        float | None, typer.Option(min=1, help="Steps between bursts, where gaps were varied.")
    ] = None,
    bits: Annotated[
        float | None, typer.Option(min=0.001, help="Complexity; pools a protocol's families.")
    ] = None,
    family: Annotated[str | None, typer.Option(help="Only families that hold this.")] = None,
    protocol: Annotated[str | None, typer.Option(help="single or mixture.")] = None,
    run: Annotated[str | None, typer.Option(help="Only runs of this name or glob.")] = None,
    response: Annotated[
        str, typer.Option(help="Fit learned (score >= .5, per run) or the score itself.")
    ] = "learned",
    out: Annotated[Path | None, typer.Option(help="Folder of advice.png; default: RUNS.")] = None,
    json: JsonFile = None,
) -> None:
    """Say which size a frequency needs, and which frequency a size needs; or why not."""
    from eval.advice.groups import Question
    from launch.scaling.advise import advise as run_advise

    question = Question(
        frequency=frequency, size=size, unit=unit, gap=gap, bits=bits, family=family,
        protocol=protocol, run=run, response=response,  # type: ignore[arg-type]
    )  # fmt: skip
    run_advise(runs, question=question, out=out, as_json=json, console=tables(json))


@app.command()
def mixture(
    context: typer.Context,
    tasks: Annotated[Path, typer.Argument(help="YAML: tasks, rungs, host, assumptions.")],
    target: Annotated[str | None, typer.Option(help="Task to bring in.")] = None,
    rung: Annotated[str | None, typer.Option(help="Size at which; default: the smallest.")] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="Runs to read features per d_model off.")
    ] = None,
    family: Annotated[str | None, typer.Option(help="Of the runs to calibrate on.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Of the runs to calibrate on.")] = None,
    run: Annotated[str | None, typer.Option(help="Name or glob of those runs.")] = None,
    response: Annotated[str, typer.Option(help="learned or score, of those runs.")] = "learned",
    json: JsonFile = None,
) -> None:
    """Say which tasks of a mixture fit at which size, and the cheapest way to bring one in."""
    from eval.advice.groups import Question
    from launch.scaling.mixture import mixture as run_mixture

    if calibrate is None:
        refuse_idle(context, ("family", "protocol", "run", "response"), "without --calibrate")
    if target is None:
        refuse_idle(context, ("rung",), "without --target")
    question = Question(
        family=family, protocol=protocol, run=run, response=response,  # type: ignore[arg-type]
    )  # fmt: skip
    run_mixture(
        tasks, target=target, rung=rung, sweep=calibrate, question=question, as_json=json,
        console=tables(json),
    )  # fmt: skip


def predict(
    runs: Annotated[Path, typer.Argument(help="Folder of runs: bursts and their twins.")],
    ceiling: Annotated[
        float, typer.Option(help="The most that a task's score comes to, above 0.5.")
    ] = 0.9,
    json: JsonFile = None,
) -> None:
    """Say which rate each size needs, from two short runs of it: a burst and its twin."""
    from launch.scaling.predict import predict as run_predict

    run_predict(runs, ceiling=ceiling, out=json, console=tables(json))
