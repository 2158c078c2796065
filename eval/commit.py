"""The commit of the code that runs, which every result names; without the engine's slow imports.

git_commit()
"""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_commit() -> str | None:
    """Commit of the code that runs, "+changes" if the checkout is not clean; None outside git."""
    here = Path(__file__).parent
    try:
        top, commit, status = (
            subprocess.run(
                ["git", "-C", str(here), *args], capture_output=True, text=True, check=True
            ).stdout.strip()
            for args in (
                ["rev-parse", "--show-toplevel"],
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "-uno"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    if Path(top) != here.parent:  # installed in an environment inside somebody else's checkout
        return None
    return commit + ("+changes" if status else "")
