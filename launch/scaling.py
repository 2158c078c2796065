"""`olmo-ext scaling`: laws fitted to runs, and what they advise.

olmo-ext scaling fit runs.csv
"""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Scaling laws and what they advise on size and mixture.", no_args_is_help=True
)
