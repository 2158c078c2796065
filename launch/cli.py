"""olmo-ext: the front door. It only mounts: a verb's options stand beside what it does.

    olmo-ext quickstart
    olmo-ext prepare embedded --out runs/corpus
    olmo-ext plan experiment.yaml && olmo-ext train experiment.yaml
    olmo-ext eval runs/ && olmo-ext report runs/

Bad input ends with status 2 and one message that names key, value and remedy. Heavy imports live in
the verb that needs them, so that --help answers at once.
"""

from __future__ import annotations

from collections.abc import Callable

import typer

from launch.doctor import doctor
from launch.lab.verb import theory
from launch.plan import verbs as plan
from launch.scaling import verbs as scaling
from launch.show import verbs as show
from launch.slurm import verbs as slurm
from launch.sweep import verbs as sweep
from launch.terminal import exits
from launch.train import train

app = typer.Typer(
    help="Rare-task injection for OLMo pretraining: what larger models learn and smaller do not.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
VERBS: dict[str, Callable[..., None]] = {
    "quickstart": sweep.quickstart,
    "prepare": plan.prepare,
    "plan": plan.plan,
    "train": train,
    "sweep": sweep.sweep,
    "submit": slurm.submit,
    "status": slurm.status,
    "confirm": sweep.confirm,
    "eval": show.evaluate,
    "features": show.features,
    "reference": show.reference,
    "report": show.report,
    "audit": show.audit,
    "export": show.export,
    "theory": theory,
    "doctor": doctor,
}
for name, verb in VERBS.items():
    app.command(name)(verb)
app.add_typer(scaling.app, name="scaling")
app.add_typer(slurm.launch, name="launch")


def main() -> None:
    """Run the command line; bad input is one message and status 2."""
    with exits():
        app()


if __name__ == "__main__":
    main()
