"""What comes with the package beside its code: the experiments in `configs/`, the findings' text.

    load_experiment(shipped("configs/quickstart.yaml"))

A checkout has these folders at its top; a wheel carries them inside this package (setup.py).
"""

from __future__ import annotations

from pathlib import Path

ROOM = Path(__file__).resolve().parent


def shipped(path: str) -> Path:
    """The file or folder of ours at `path`, as it is named from a checkout's top."""
    carried = ROOM / path
    return carried if carried.exists() else ROOM.parent / path


def locate(path: str | Path) -> Path:
    """What somebody named: the path itself, or ours where it is not there and says configs/..."""
    path = Path(path)
    ours = not path.exists() and path.parts[:1] == ("configs",)
    return shipped(str(path)) if ours and ".." not in path.parts else path
