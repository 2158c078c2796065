"""What measuring costs a training run, on the ladder's 4M model and in one run for each question.

    python benchmarks/callbacks.py split     # 2 minutes: the gradient's split beside two backwards
    python benchmarks/callbacks.py total     # half an hour: all callbacks at the ladder's own batch
    python benchmarks/callbacks.py budget    # 8 minutes: loss_budget in a micro run and on the rung

split: at every step of 32 rows of 256 tokens, 8 of them injected, the cheap split of the gradient
(passes over 4-token rows; g_t_all, g_t_label and g_nt) is timed beside two backward passes over the
batch, one for the task's losses and one for the rest, whose forward passes are not counted.

total: CPU seconds (one thread; other jobs may run) inside each callback when it measures /
(100 x median step). Five tasks share the run: `interference` measures one with all
instances, `interference_subset` all five with a subset of each. task_eval and features measure all
five: their cost for one task is a fifth.

budget: CPU seconds inside loss_budget at a step that it measures and at one that it only follows; a
run that measures one step in 20 spends (measured + 19 followed) / (20 x median step) on it. The
micro runs are the findings' (configs/confirm/experiment.yaml), one task at rate 4; on the rung the
ladder's own batch, one row injected.

Memory is the peak of the process's resident set inside, above that before; Linux only. On a card
(not yet measured there) take `split` alone, and for the others `olmo-ext verify` and the stage
`speed` of benchmarks/gpu: they count a CPU's seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml

import olmo_ext.callbacks.build
from eval.records import read_records
from olmo_ext.callbacks.base import Callback
from olmo_ext.callbacks.interference import Interference
from olmo_ext.callbacks.loss_budget import LossBudget
from olmo_ext.callbacks.progress import Progress
from olmo_ext.config import load_experiment
from olmo_ext.gradients.passes import beside_the_step, measured_parameters
from olmo_ext.gradients.tasks import rows_of_task, step_parts
from olmo_ext.train import train
from olmo_ext.verify.runs import sync

CONFIGS = Path(__file__).parents[1] / "configs"
RUNG = CONFIGS / "olmo_4M_to_4B/ladder/4M.yaml"
MICRO = CONFIGS / "confirm/experiment.yaml"

Timings = dict[str, list[float]]


# -- the run -------------------------------------------------------------------------------------


def experiment(
    folder: Path, *, context: int, micro: int, steps: int, rate: float, tasks: int
) -> dict:
    """The rung's own file on random tokens, on one CPU process in fp32."""
    config = yaml.safe_load(RUNG.read_text())
    batch = config["train"]["global_train_batch_size"]
    vocab = config["train"]["model"]["vocab_size"]
    tokens = np.random.default_rng(0).integers(2, vocab, size=batch * context * steps)
    tokens.astype(np.uint16).tofile(folder / "tokens.npy")
    config["train"]["model"] |= {"flash_attention": False, "max_sequence_length": context}
    config["train"] |= {
        "save_folder": str(folder / "run"),
        "data": {"paths": [str(folder / "tokens.npy")], "drop_last": True},
        "precision": "fp32",
        "device_train_microbatch_size": micro,
        "max_duration": steps,
        "no_pre_train_checkpoint": True,
        "save_interval_unsharded": 10**6,
    }
    config["corpus"] = None
    task = config["injection"]["tasks"][0] | {"schedule": {"rate": rate}}
    config["injection"]["tasks"] = [task | {"name": f"cmp{i}"} for i in range(tasks)]
    return config


def run(config: dict, folder: Path, kinds: dict[str, type[Callback]]) -> Path:
    """Train with these callbacks (in this order) instead of the usual table."""
    (folder / "experiment.yaml").write_text(yaml.safe_dump(config))
    olmo_ext.callbacks.build.CALLBACKS.clear()
    olmo_ext.callbacks.build.CALLBACKS.update(kinds)
    return train(load_experiment(folder / "experiment.yaml"))


@contextmanager
def stopwatch(timings: Timings, name: str) -> Iterator[None]:
    start = now()
    yield
    timings[name].append(now() - start)


def now() -> float:
    """Seconds, when all that a card was asked for is done."""
    sync()
    return time.perf_counter()


@contextmanager
def peak_memory(out: Timings, name: str) -> Iterator[None]:
    """MiB of the process's peak resident set above that at the start."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    yield
    out[name].append((_status("VmHWM") - before) / 1024)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


# -- the split -----------------------------------------------------------------------------------


def split(steps: int, micro: int) -> dict[str, Any]:
    timings: Timings = defaultdict(list)

    @dataclass
    class Split(Callback):
        def on_gradients(self, trainer: Any, batch: dict[str, Any]) -> None:
            params = measured_parameters(trainer)
            g = params.gradient()

            def cheap() -> None:
                with stopwatch(timings, "split"):
                    vectors = step_parts(trainer, params, batch, measured=["cmp0"])
                    for whole, part in zip(g, vectors["t/cmp0"], strict=True):
                        part.neg_().add_(whole)  # g_nt

            def full() -> None:
                two_backwards(trainer, batch, timings)

            with beside_the_step(trainer, params):
                for measure in (cheap, full) if trainer.global_step % 2 else (full, cheap):
                    measure()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = experiment(folder, context=256, micro=micro, steps=steps, rate=8, tasks=1)
        config["callbacks"] = {"split": {}}
        run(config, folder, {"split": Split})
    kept = {key: values[1:] for key, values in timings.items()}  # the first is the warm-up
    pairs = [b / a for a, b in zip(kept["split"], kept["two backwards"], strict=True)]
    return {
        "geometry": "32 x 256, 8 rows injected",
        "pairs": len(pairs),
        "split, s": median(kept["split"]),
        "two backwards, s": median(kept["two backwards"]),
        "two backwards with their forwards, s": median(kept["with forwards"]),
        "ratio": median(pairs),
        "ratio, min to max": [min(pairs), max(pairs)],
    }


def two_backwards(trainer: Any, batch: dict[str, Any], timings: Timings) -> None:
    """A backward pass for the task's losses and one for the rest; each after its own forward."""
    rows = rows_of_task(trainer, batch, 0).local
    num_rows, length = batch["input_ids"].shape
    task_BT = torch.zeros(num_rows, length - 1, device=trainer.device)
    task_BT[rows, :3] = 1
    forward = backward = 0.0
    for mask_BT in (task_BT, 1 - task_BT):
        trainer.dist_model.zero_grad(set_to_none=True)
        size, position = trainer.cfg.device_train_microbatch_size, 0
        for micro in trainer.split_batch(batch):
            start = now()
            each_BT, _, _ = trainer.model_forward(micro, loss_reduction="none")
            loss = (each_BT * mask_BT[position : position + size]).sum()
            middle = now()
            (loss / batch["input_ids"].numel()).backward()
            forward, backward = forward + middle - start, backward + now() - middle
            position += size
    timings["two backwards"].append(backward)
    timings["with forwards"].append(forward + backward)


# -- the total -----------------------------------------------------------------------------------

HOOKS = ("on_batch", "on_gradients", "on_step")


def timed_inside(
    kind: type[Callback], inside: dict[int, float], around: Callable[[], Any] = nullcontext
) -> type[Callback]:
    """The callback, adding its CPU seconds of each step to `inside`."""

    def wrap(hook: str) -> Callable[..., None]:
        def call(self: Any, trainer: Any, *args: Any) -> None:
            start = time.process_time()
            with around():
                getattr(kind, hook)(self, trainer, *args)
            inside[trainer.global_step] += time.process_time() - start

        return call

    return dataclass(type(kind.__name__, (kind,), {hook: wrap(hook) for hook in HOOKS}))


def at(hook: str, note: Callable[[], Any]) -> type[Callback]:
    """A callback that does this at one hook of every step."""
    return dataclass(type("At", (Callback,), {hook: lambda self, *args: note()}))


def total(steps: int, micro: int, subset: int, every: int = 100) -> dict[str, Any]:
    """Interference measures at the first and the last step, which is warm and counts."""
    inside: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    memory: Timings = defaultdict(list)
    spans: Timings = defaultdict(list)

    def timed(name: str, kind: type[Callback]) -> type[Callback]:
        return timed_inside(kind, inside[name], lambda: peak_memory(memory, name))

    def begin() -> None:
        Path("/proc/self/clear_refs").write_text("5")
        spans["rss"].append(_status("VmRSS") / 1024)
        spans["start"].append(time.process_time())

    def peak() -> None:
        memory["training step"].append(_status("VmHWM") / 1024 - spans["rss"][-1])

    usual = dict(olmo_ext.callbacks.build.CALLBACKS)
    kinds = {"first": at("on_batch", begin), "peak": at("on_gradients", peak)}
    kinds["interference"] = timed("interference", Interference)
    kinds["interference_subset"] = timed("interference_subset", Interference)
    kinds |= {name: timed(name, usual[name]) for name in ("task_eval", "features", "progress")}
    kinds["last"] = at("on_step", lambda: spans["stop"].append(time.process_time()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = experiment(folder, context=2048, micro=micro, steps=steps, rate=1, tasks=5)
        often = {"every": steps - 1, "steps": "first"}
        config["callbacks"] = {
            "interference": often | {"tasks": ["cmp0"]},
            "interference_subset": often | {"instances": subset},
            "task_eval": {"every": 10**6, "at_start": False},
            "features": {"every": 10**6, "at_start": False},
            **{name: {} for name in ("first", "peak", "last")},
        }
        folder = run(config, folder, kinds)
        records = read_records(folder)
    both = zip(spans["start"], spans["stop"], strict=True)
    step = median(
        stop - start - sum(seconds[index + 1] for seconds in inside.values())
        for index, (start, stop) in enumerate(both)
        if index  # the first step warms up
    )
    seconds = {name: of_steps[steps] for name, of_steps in inside.items()}
    cosines = records[(records.metric == "subset_cosine")]
    shared = seconds["task_eval"] + seconds["features"]
    one = seconds["interference"] + shared / 5 + seconds["progress"]
    five = seconds["interference_subset"] + shared + seconds["progress"]
    return {
        "geometry": "32 x 2048, one row of each of five tasks injected",
        "median step, CPU s": step,
        "CPU s inside": seconds,
        "one task, all instances: % of training": 100 * one / (every * step),
        f"five tasks, {subset} instances each: % of training": 100 * five / (every * step),
        "cosine of the subset's g_r with the full one": cosines.groupby("group")
        .value.min()
        .to_dict(),
        "peak extra memory, MiB": {name: max(values) for name, values in memory.items()},
    }


# -- the budget ----------------------------------------------------------------------------------


def micro_experiment(folder: Path, *, width: int, steps: int) -> dict:
    """A run of the findings on random tokens, one task at rate 4."""
    config = yaml.safe_load(MICRO.read_text())
    train = config["train"]
    num = train["global_train_batch_size"] * train["model"]["max_sequence_length"] * steps
    tokens = np.random.default_rng(0).integers(2, train["model"]["vocab_size"], size=num)
    tokens.astype(np.uint16).tofile(folder / "tokens.npy")
    train["model"] |= {"d_model": width, "eos_token_id": 0, "pad_token_id": 1}
    train["data"] |= {"paths": [str(folder / "tokens.npy")]}
    train |= {"save_folder": str(folder / "run"), "max_duration": steps}
    train |= {"no_pre_train_checkpoint": True, "save_interval_unsharded": 10**6}
    config["injection"]["tasks"][0]["schedule"]["rate"] = 4
    return config


def budget(steps: int, micro: int) -> dict[str, Any]:
    def cost(make: Callable[[Path], dict], every: int) -> dict[str, Any]:
        inside: dict[int, float] = defaultdict(float)
        spans: Timings = defaultdict(list)
        measured: set[int] = set()

        @dataclass
        class Watched(LossBudget):
            def on_gradients(self, trainer: Any, batch: dict[str, Any]) -> None:
                if self._stands_for(trainer):
                    measured.add(trainer.global_step)
                super().on_gradients(trainer, batch)

        kinds = {"first": at("on_batch", lambda: spans["start"].append(time.process_time()))}
        kinds["loss_budget"] = timed_inside(Watched, inside)
        kinds["last"] = at("on_step", lambda: spans["stop"].append(time.process_time()))
        kinds["progress"] = Progress
        with tempfile.TemporaryDirectory() as name:
            config = make(Path(name))
            often = {"every": every, "record": 10 * every}
            config["callbacks"] = {"first": {}, "loss_budget": often, "last": {}}
            run(config, Path(name), kinds)
        warm = range(2, len(spans["stop"]) + 1)
        whole = dict(enumerate(zip(spans["start"], spans["stop"], strict=True), 1))
        step = median(whole[i][1] - whole[i][0] - inside[i] for i in warm)
        found, followed = (
            median(inside[i] for i in warm if (i in measured) is there) for there in (True, False)
        )
        told = {"step": step, "measured": found, "followed": followed}
        return {f"{name}, CPU s": value for name, value in told.items()} | {
            "% of training at every: 20": 100 * (found + 19 * followed) / (20 * step)
        }

    found = {
        f"width {width}": cost(lambda f, w=width: micro_experiment(f, width=w, steps=steps), 20)
        for width in (16, 64)
    }
    rung = {"context": 2048, "micro": micro, "steps": 5, "rate": 1, "tasks": 1}
    return found | {"4M rung, 32 x 2048": cost(lambda f: experiment(f, **rung), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["split", "total", "budget"])
    parser.add_argument("--steps", type=int, help="steps (split: 8, total: 4, budget: 200)")
    parser.add_argument("--micro", type=int, help="rows of a micro-batch (split: 8, total: 2)")
    parser.add_argument("--subset", type=int, default=1000, help="instances a task of five")
    args = parser.parse_args()
    if args.part == "split":
        result = split(args.steps or 8, args.micro or 8)
    elif args.part == "budget":
        result = budget(args.steps or 200, args.micro or 2)
    else:
        result = total(args.steps or 4, args.micro or 2, args.subset)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
