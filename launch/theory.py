"""`olmo-ext theory`: the synthetic lab's experiments.

olmo-ext theory all --out runs/theory
"""

from __future__ import annotations

import typer

app = typer.Typer(
    help="The synthetic lab: predictions drawn before the runs, then met by them.",
    no_args_is_help=True,
)
