"""`olmo-ext quickstart`, `sweep` and `confirm`: many runs on this machine.

olmo-ext quickstart --smoke
olmo-ext sweep configs/confirm/single.yaml --out runs/confirm
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from data_injection.errors import ConfigError
from launch.terminal import (
    JsonFile,
    Overrides,
    at_work,
    console,
    errors,
    interruptible,
    say,
    tables,
)


def quickstart(
    out: Annotated[
        Path | None, typer.Option(help="Folder of runs and report; default runs/quickstart.")
    ] = None,
    widths: Annotated[list[int] | None, typer.Option(help="d_model of each size.")] = None,
    seeds: Annotated[list[int] | None, typer.Option(help="Model seeds.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 2,
    corpus: Annotated[
        Path | None, typer.Option(help="A prepared corpus; default: the embedded text.")
    ] = None,
    smoke: Annotated[bool, typer.Option(help="Two widths, one rate, one minute.")] = False,
    check: Annotated[
        bool, typer.Option(help="Status 1 if the learned cells do not rise with size.")
    ] = False,
    json: JsonFile = None,
) -> None:
    """Train the grid of sizes and frequencies on the embedded corpus and report what is learned."""
    from launch.sweep.quickstart import quickstart as run

    default = Path("runs/quickstart-smoke" if smoke else "runs/quickstart")
    with _training():
        rises = run(
            out or default, widths=tuple(widths or ()), seeds=tuple(seeds or (6198,)), jobs=jobs,
            smoke=smoke, corpus=corpus, json=json, console=tables(json),
        )  # fmt: skip
    if check and not rises:
        raise typer.Exit(1)


def demo(
    out: Annotated[Path, typer.Option(help="Folder of its corpus and run.")] = Path("runs/demo"),
) -> None:
    """Half a minute on a CPU: inject a task into text, train a tiny model, say what happened."""
    with interruptible("the same command begins again"):
        with at_work("starting"):
            from launch.sweep.demo import demo as run
        run(out, console=console, errors=errors)


def sweep(
    sweeps: Annotated[list[Path], typer.Argument(help="Sweep YAMLs.")],
    out: Annotated[Path, typer.Option(help="Runs go to OUT/<sweep>/<labels>.")] = Path("runs"),
    override: Overrides = None,
    jobs: Annotated[
        str | None, typer.Option(help="Runs side by side; auto: by a probe. Default: one a device.")
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="More starts for a run that fails.")] = 1,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Then save what runs, and name what is left.")
    ] = None,
    plan: Annotated[bool, typer.Option("--dry-run", help="Show the runs, train nothing.")] = False,
    before: Annotated[bool, typer.Option("--plan", hidden=True, help="Before 0.1.")] = False,
    screen: Annotated[
        str | None,
        typer.Option(
            help="Budget (2e11tokens, 3e18flops or 120gpuh): train the mixtures, and of the "
            "single-task runs those nearest the frontier that the mixtures show."
        ),
    ] = None,
    peak_tflops: Annotated[float, typer.Option(help="Peak of one GPU, for GPU hours.")] = 989.0,
    mfu: Annotated[float, typer.Option(help="Share of the peak that the model uses.")] = 0.4,
    json: JsonFile = None,
) -> None:
    """Train every run of one or more sweeps on this machine; what is finished is skipped."""
    from launch.grid import load_sweep
    from launch.runs import plan_sweeps
    from launch.sweep.executor import fork_server
    from launch.sweep.sweep import parse_jobs, show_runs, train_sweeps

    number, plan = parse_jobs(jobs), plan or before
    if json is not None and (screen is not None or not plan):
        why = "has an effect with --dry-run alone"
        raise ConfigError(key="--json", value=str(json), rule=why, remedy="leave it out")
    tables(json).print("checking every run ...")
    loaded = [load_sweep(path) for path in sweeps]
    if not plan:
        fork_server()  # imports the engine for the runs while they are checked here
    from olmo_ext.cost import check_throughput

    device = {"peak_tflops": peak_tflops, "mfu": mfu}
    check_throughput(**device)
    runs = plan_sweeps(loaded, out, overrides=override or [])
    if screen is not None:
        if minutes is not None:
            rule = "does not go with --screen, which stops at its own budget"
            raise ConfigError(key="--minutes", value=minutes, rule=rule)
        from launch.sweep.screen import screen_sweeps

        with _training():
            screen_sweeps(
                loaded, runs, budget=screen, out=out, jobs=number, retries=retries, plan=plan,
                **device, console=console, overrides=override or [],
            )  # fmt: skip
        return
    if plan:
        show_runs(runs, tables(json), json=json, **device)
        return
    with _training():
        left = train_sweeps(runs, jobs=number, retries=retries, minutes=minutes, console=console)
    console.print(f"{len(runs) - len(left)} runs done; figures and tables of each sweep:")
    for one in loaded:
        console.print(f"  olmo-ext report {out / one.name}")


def confirm(
    chapter: Annotated[
        str, typer.Option(help="controls, mechanism, hosts or placement.")
    ] = "controls",
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/confirm"),
    out: Annotated[
        Path | None, typer.Option(help="Where findings.md goes; default: the runs' folder.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 2,
) -> None:
    """Repeat the findings: the sweeps of configs/confirm, and docs/findings.md's numbers."""
    from launch.sweep.confirm import confirm as run

    with _training():
        run(chapter, runs, out=out, jobs=jobs, console=console)


@contextmanager
def _training() -> Iterator[None]:
    """Ctrl-C and a failed run of many end with one message and a status."""
    from launch.sweep.executor import RunFailed

    try:
        with interruptible("the same command goes on from the last checkpoints"):
            yield
    except RunFailed as error:
        say(errors, str(error))
        raise typer.Exit(1) from None
