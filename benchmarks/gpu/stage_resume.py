"""Stage resume: is a run that was stopped and resumed on this device the run that was not?

    stage_resume.py CORPUS [--deterministic] [--dry]
Trains 12 steps through `olmo_ext.train.train` with a checkpoint at 6, takes the last one away,
resumes, and compares every tensor of the two step-12 checkpoints.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if "--deterministic" in sys.argv:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when CUDA starts, so before torch
import torch
from gpu_common import experiment, run_stage, say, stage_parser


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint's weights and optimizer by their path."""
    found: dict[str, torch.Tensor] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[path] = value
        elif isinstance(value, dict):
            for key, each in value.items():
                walk(f"{path}/{key}", each)

    for name in ("model.pt", "optim.pt"):
        walk(name, torch.load(folder / name, map_location="cpu", weights_only=True))
    return found


def run() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--deterministic", action="store_true")
    args = parser.parse_args()
    from olmo_ext.config import load_experiment
    from olmo_ext.train import train

    if args.deterministic:
        torch.use_deterministic_algorithms(True)
    callbacks = {
        "task_eval": {"every": 4},
        "progress": {},
        "interference": {"every": 3, "instances": 64},
    }
    saving = {"save_interval_unsharded": 6, "save_num_unsharded_checkpoints_to_keep": -1}
    rows = {"batch": 8, "micro": 4, "steps": 12, "rate": 2, "warmup": 2, "context": 512}
    with tempfile.TemporaryDirectory() as name:
        began, folder = time.time(), Path(name) / "run"
        last = folder / "step12-unsharded"
        train(
            experiment(
                "4M", folder, args.corpus, dry=args.dry, callbacks=callbacks, train=saving, **rows
            )
        )
        whole = tensors(last)
        shutil.rmtree(last)
        for link in folder.glob("latest*"):
            link.unlink()
        train(load_experiment(folder.with_suffix(".yaml"), corpus=False), resume=True)
        again = tensors(last)
    gaps = {k: float((whole[k].double() - again[k].double()).abs().max()) for k in whole}
    differ = [k for k in whole if not torch.equal(whole[k], again[k])]
    say(
        "resume",
        deterministic=args.deterministic,
        tensors=len(whole),
        same_keys=whole.keys() == again.keys(),
        bit_equal=not differ,
        differ=len(differ),
        worst=max(gaps.values(), default=None),
        seconds=time.time() - began,
    )


if __name__ == "__main__":
    run_stage("resume", run)
