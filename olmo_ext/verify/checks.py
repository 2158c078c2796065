"""What is checked on a machine: a row each of what was measured, its bound, and whether it holds.

    for check in verify(TrialRuns(folder), say=print): ...

To add one: a generator of `Check`s over `TrialRuns`, a line in LOOKS.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils._pytree import keystr, tree_leaves_with_path

from eval.checkpoints.sharded import first_line
from olmo_ext.build import init_process_group
from olmo_ext.callbacks.base import Callback
from olmo_ext.cost import extra_bytes, run_cost
from olmo_ext.numerics.deterministic import deterministic
from olmo_ext.train import train
from olmo_ext.verify.runs import (
    BATCH,
    Check,
    Stepper,
    TrialRuns,
    digest,
    equal,
    free,
    most,
    ours,
    stock,
    sync,
)
from olmo_ext.verify.split import device, split

Say = Callable[[str], None]

STEPS = 6
"""Of each run."""

CALLBACKS: dict[str, dict[str, Any]] = {
    "interference": {"every": 3, "top_k": 4, "window": 6, "instances": 20},
    "loss_budget": {"every": 3, "record": 6, "instances": 20},
    "task_eval": {"every": 3},
    "retention": {"lags": [1], "min_gap": 1, "tasks": ["burst"]},
    "features": {"every": 6},
}
MEMORY = 1.1
"""The most that a step may need of what `plan --cost` reckons."""


def verify(runs: TrialRuns, *, say: Say) -> Iterator[Check]:
    """All checks in turn; `say` is told what comes next. One that raises has failed."""
    for name, look in LOOKS.items():
        say(name)
        try:
            yield from look(runs)
        except Exception as error:
            note = f"{type(error).__name__}: {first_line(error)}"
            yield Check(name, "an error", "none", passed=False, note=note)
        free()


def machine(runs: TrialRuns) -> Iterator[Check]:
    """What all other rows are of."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    yield Check(
        "device", device or "CPU", note=f"torch {torch.__version__}, numpy {np.__version__}"
    )
    start = time.perf_counter()
    one = torch.ones(4, device=init_process_group())
    dist.all_reduce(one)
    dist.broadcast_object_list([{"a": 1}])
    took = f"formed in {time.perf_counter() - start:.1f} s without torchrun"
    world = dist.get_world_size()
    yield equal(f"process group ({dist.get_backend()})", float(one.sum()), 4.0 * world, took)


def kernels(runs: TrialRuns) -> Iterator[Check]:
    """Which attention the model's shape may take on a card."""
    if not torch.cuda.is_available():
        return
    from torch.backends.cuda import SDPAParams, can_use_cudnn_attention, can_use_flash_attention

    model = runs.experiment("kernels", steps=1).train.model
    shape = (4, model.n_heads, model.max_sequence_length, model.d_model // model.n_heads)
    for dtype in (torch.bfloat16, torch.float32):
        q = torch.empty(*shape, device="cuda", dtype=dtype, requires_grad=True)
        asked = SDPAParams(q, q, q, None, 0.0, True, False)
        can = {"flash": can_use_flash_attention(asked), "cuDNN": can_use_cudnn_attention(asked)}
        found = ", ".join(name for name, able in can.items() if able)
        yield Check(f"attention kernels, {dtype}".replace("torch.", ""), found or "neither")


class Timed:
    """A callback and the seconds of each step that it took part in."""

    def __init__(self, inner: Callback) -> None:
        self.inner, self.seconds = inner, 0.0
        self.steps: list[float] = []
        self.on_batch, self.wants_global_loss = inner.on_batch, inner.wants_global_loss

    def on_gradients(self, trainer: Any, batch: dict[str, Any]) -> None:
        sync()
        start = time.perf_counter()
        self.inner.on_gradients(trainer, batch)
        sync()
        self.seconds = time.perf_counter() - start

    def on_step(self, trainer: Any, metrics: dict[str, float]) -> None:
        sync()
        start = time.perf_counter()
        self.inner.on_step(trainer, metrics)
        sync()
        self.steps.append(self.seconds + time.perf_counter() - start)


def first_steps(runs: TrialRuns) -> Iterator[Check]:
    """The first steps with every callback: that they measure, and what a measurement costs."""
    with ExitStack() as stack:
        trainer = ours(runs.experiment("first", steps=STEPS, rate=2, callbacks=CALLBACKS), stack)
        trainer.callbacks = timed = {n: Timed(c) for n, c in trainer.callbacks.items()}
        seen: set[str] = set()
        record = trainer.record

        def noted(name: str, **fields: Any) -> None:
            seen.add(name)
            record(name, **fields)

        trainer.record = noted
        stepper = Stepper(trainer)
        for _ in range(STEPS):
            stepper.step()
    fell = stepper.losses[-1] - stepper.losses[0]
    yield most("loss after the first steps less before", fell, 0.0)
    yield equal("callbacks that recorded", sorted(seen), sorted(CALLBACKS), ", ".join(seen))
    # The first step pays for what is made once.
    alone = min(
        seconds - sum(one.steps[step] for one in timed.values())
        for step, seconds in enumerate(stepper.seconds)
    )
    for name, one in timed.items():
        cost = max(one.steps[1:])
        note = f"{cost:.3f} s a measurement, {alone:.3f} s a step"
        yield Check(f"cost of {name}, in steps", cost / alone, note=note)


def same_weights(runs: TrialRuns) -> Iterator[Check]:
    """Ours, ours again and stock's over the host text alone, by deterministic algorithms."""
    found = {}
    for name in ("ours", "again", "stock"):
        with ExitStack() as stack:
            experiment = runs.experiment(
                f"twin-{name}", steps=STEPS, precision="amp_bf16", deterministic=True
            )
            stack.enter_context(deterministic(experiment))
            stepper = Stepper(stock(experiment) if name == "stock" else ours(experiment, stack))
            for _ in range(STEPS):
                stepper.step()
            found[name] = digest(stepper.trainer.model)
        del stepper
        free()
    after = f"weights after {STEPS} steps"
    yield equal("ours against ours", found["again"], found["ours"], after)
    yield equal("ours against stock ai2-olmo", found["stock"], found["ours"], after)


def resumed(runs: TrialRuns) -> Iterator[Check]:
    """A deterministic run, stopped in its middle and resumed, against itself uninterrupted."""
    half = STEPS // 2

    def experiment() -> Any:
        return runs.experiment(
            "resume",
            steps=STEPS,
            rate=2,
            precision="amp_bf16",
            callbacks=CALLBACKS,
            deterministic=True,
            train__save_interval_unsharded=half,
            train__save_num_unsharded_checkpoints_to_keep=-1,
        )

    last = train(experiment()) / f"step{STEPS}-unsharded"
    whole = _tensors(last)
    shutil.rmtree(last)
    (last.parent / "latest-unsharded").unlink(missing_ok=True)
    train(experiment(), resume=True)
    again = _tensors(last)
    differ = [name for name in whole if not torch.equal(whole[name], again[name])]
    yield equal("resumed against uninterrupted", differ, [], f"{len(whole)} tensors")


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint's weights and optimizer by their path."""
    files = {
        name: torch.load(folder / name, map_location="cpu", weights_only=True)
        for name in ("model.pt", "optim.pt")
    }
    leaves = tree_leaves_with_path(files)
    return {keystr(path): one for path, one in leaves if isinstance(one, torch.Tensor)}


def memory(runs: TrialRuns) -> Iterator[Check]:
    """What a step needed at its peak beside what `plan --cost` reckons, callbacks off and on."""
    now = {n: s | dict.fromkeys({"every", "record"} & s.keys(), 1) for n, s in CALLBACKS.items()}
    for what, callbacks in {"callbacks off": {}, "all callbacks": now}.items():
        asked: dict[str, Any] = {"precision": "amp_bf16", "callbacks": callbacks, "rate": 2}
        asked |= {"train__device_train_microbatch_size": BATCH}
        experiment = runs.experiment(what.replace(" ", "-"), steps=3, **asked)
        with ExitStack() as stack:
            stepper = Stepper(ours(experiment, stack))
            stepper.step()
            free()
            peak = step_peak(stepper)
        cost = run_cost(experiment.train, num_steps=3)
        extra = extra_bytes(experiment, cost)
        reckoned = cost.memory.step + sum(extra[key] for key in extra if "callbacks" in key)
        note = f"{MEMORY} times what plan --cost reckons, {reckoned / 1e6:,.1f}"
        yield most(f"peak MB of a step, {what}", peak / 1e6, MEMORY * reckoned / 1e6, note)


def step_peak(stepper: Stepper) -> float:
    """Bytes of all tensors that were alive at once in a step, the model's and optimizer's too."""
    if torch.cuda.is_available():
        stepper.step()
        return float(torch.cuda.max_memory_allocated())
    from torch.distributed._tools.mem_tracker import MemTracker

    trainer, tracker = stepper.trainer, MemTracker()
    tracker.track_external(trainer.dist_model, trainer.optim)
    for name in ("pre_fw", "post_fw", "pre_bw", "post_bw"):
        # By module it would follow one forward pass a step, no callback's beside it.
        setattr(tracker, f"_{name}_hook", lambda *args: None)
    with tracker:
        stepper.step()
    return float(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


LOOKS: dict[str, Callable[[TrialRuns], Iterator[Check]]] = {
    "machine and process group": machine,
    "attention kernels": kernels,
    "first steps with all callbacks": first_steps,
    "the card against the CPU": device,
    "the gradient split": split,
    "equal weights": same_weights,
    "resume": resumed,
    "memory": memory,
}
