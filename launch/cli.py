"""olmo-ext: the front door. It only mounts: a verb's options stand beside what it does.

    olmo-ext demo
    olmo-ext quickstart
    olmo-ext init mine && olmo-ext prepare embedded --out runs/corpus
    olmo-ext plan mine/experiment.yaml && olmo-ext train mine/experiment.yaml
    olmo-ext eval runs/ && olmo-ext report runs/

Bad input ends with status 2 and one message that names key, value and remedy; with --debug, or
OLMO_EXT_DEBUG=1, with the traceback. Heavy imports live in the verb that needs them, so that --help
answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from launch.doctor import doctor
from launch.lab.verb import theory
from launch.plan import verbs as plan
from launch.plan.init import init
from launch.scaling import verbs as scaling
from launch.show import verbs as show
from launch.slurm import verbs as slurm
from launch.sweep import verbs as sweep
from launch.terminal import DEBUG, check_typed, console, exits, say
from launch.train import train
from launch.verify import bench, verify

app = typer.Typer(
    help="Rare-task injection for OLMo pretraining: what larger models learn and smaller do not.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
VERBS: dict[str, dict[str, tuple[Callable[..., None], str]]] = {
    "Run": {
        "demo": (sweep.demo, ""),
        "quickstart": (sweep.quickstart, "--smoke"),
        "init": (init, "mine --size w32 --corpus runs/corpus"),
        "prepare": (plan.prepare, "'dolma/*.json.gz' --out corpus --tokenizer dolma-v1_5"),
        "plan": (plan.plan, "mine/experiment.yaml"),
        "train": (train, "mine/experiment.yaml -o train.seed=1 -o train.save_folder=runs/s1"),
        "sweep": (sweep.sweep, "mine/sweep.yaml --out runs --dry-run"),
        "confirm": (sweep.confirm, "--chapter hosts"),
    },
    "Inspect": {
        "report": (show.report, "runs/mine --watch 30"),
        "eval": (show.evaluate, "runs/mine"),
        "features": (show.features, "runs/mine --das"),
        "reference": (show.reference, "runs/mine"),
        "audit": (show.audit, "runs/mine --full"),
        "export": (show.export, "runs/mine --to hf --out exported"),
    },
    "Cluster": {
        "doctor": (doctor, ""),
        "verify": (verify, "--json verify.json"),
        "bench": (bench, "configs/olmo_4M_to_4B/ladder/4M.yaml --json bench.json"),
        "submit": (slurm.submit, "mine/sweep.yaml --site my-site.yaml --dry-run"),
        "status": (slurm.status, "runs/mine"),
    },
    "Theory": {
        "theory": (theory, "all --out runs/theory"),
        "predict": (scaling.predict, "runs/chain --json predicted.json"),
    },
}
"""By its group in --help: each verb and, for its own --help, an example's arguments."""

for group, verbs in VERBS.items():
    for name, (verb, example) in verbs.items():
        epilog = f"For example: olmo-ext {name} {example}".rstrip()
        app.command(name, rich_help_panel=group, epilog=epilog)(verb)
app.add_typer(slurm.launch, name="launch", rich_help_panel="Cluster")
app.add_typer(scaling.app, name="scaling", rich_help_panel="Theory")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(console, f"olmo-ext {version('olmo-ext')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="The version, and exit."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback.")] = False,
) -> None:
    if debug:
        os.environ[DEBUG] = "1"  # which ranks and a sweep's children see too


def main() -> None:
    """Run the command line; bad input is one message and status 2."""
    with exits():
        check_typed(sys.argv[1:])
        app(prog_name="olmo-ext")


if __name__ == "__main__":
    main()
