"""Stage resume: is a run that was stopped and resumed on this device the run that was not?

    stage_resume.py CORPUS [--deterministic]
Trains 12 steps through `olmo_ext.train.train` with a checkpoint at 6, takes the last one away, resumes,
and compares every tensor of the two step-12 checkpoints.
"""

import argparse, os, shutil, sys, tempfile, time
from pathlib import Path

if "--deterministic" in sys.argv:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
import torch

from gpu_common import GPU, experiment, main_guard, say


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for name in ("model.pt", "optim.pt"):
        state = torch.load(folder / name, map_location="cpu", weights_only=True)

        def walk(path, value):
            if isinstance(value, torch.Tensor):
                found[path] = value
            elif isinstance(value, dict):
                for key, each in value.items():
                    walk(f"{path}/{key}", each)

        walk(name, state)
    return found


def run() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    from olmo_ext.train import train
    from olmo_ext.config import load_experiment

    if args.deterministic:
        torch.use_deterministic_algorithms(True)
    small = {"d_model": 32, "n_heads": 4, "n_layers": 2} if args.dry else {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        began = time.time()

        def make(folder):
            return experiment(
                "4M",
                root / folder,
                args.corpus,
                batch=8,
                micro=4,
                steps=12,
                rate=2,
                warmup=2,
                context=64 if args.dry else 512,
                workers=0 if args.dry else 2,
                model=small,
                callbacks={
                    "task_eval": {"every": 4},
                    "progress": {},
                    "interference": {"every": 3, "instances": 64},
                },
                train={"save_interval_unsharded": 6, "save_num_unsharded_checkpoints_to_keep": -1},
            )

        first = train(make("run"))
        whole = tensors(first / "step12-unsharded")
        shutil.move(first / "step12-unsharded", root / "whole")
        for link in first.glob("latest*"):
            link.unlink()
        (first / "latest-unsharded").exists()
        second = train(load_experiment(root / "run.yaml"), resume=True)
        again = tensors(second / "step12-unsharded")
        worst = max(
            (float((whole[k].double() - again[k].double()).abs().max()) for k in whole),
            default=None,
        )
        differ = [k for k in whole if not torch.equal(whole[k], again[k])]
        say(
            "resume",
            deterministic=args.deterministic,
            tensors=len(whole),
            same_keys=whole.keys() == again.keys(),
            bit_equal=not differ,
            differ=len(differ),
            worst=worst,
            seconds=time.time() - began,
        )


if __name__ == "__main__":
    main_guard("resume", run)
