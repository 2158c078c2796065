"""Short runs of a model on drawn tokens: ours and stock's, stepped by hand.

    runs = TrialRuns(folder, experiment=None)
    with ExitStack() as stack:
        stepper = Stepper(ours(runs.experiment("a", steps=4, rate=2), stack))
        stepper.step()

No corpus is needed: the text is drawn, some tokens far oftener than others, as in a language.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from olmo.data import build_train_dataloader
from olmo.optim import build_optimizer, build_scheduler

from olmo_ext.build import build_model, init_process_group, wrap
from olmo_ext.compat import Trainer, cpu_shield
from olmo_ext.config import ExperimentConfig, load_experiment
from olmo_ext.numerics.deterministic import deterministic
from olmo_ext.prepare import build_trainer, prepare
from olmo_ext.shipped import shipped

RUNG = "configs/olmo_4M_to_4B/ladder/4M.yaml"
ON_CPU: dict[str, Any] = {
    "d_model": 32,
    "n_heads": 2,
    "n_layers": 2,
    "max_sequence_length": 64,
    "vocab_size": 1024,
}
ON_CPU |= {"embedding_size": 1024, "eos_token_id": 1023, "flash_attention": "false"}
"""The model where no other is asked for and there is no GPU: seconds, not minutes."""

BATCH, MICRO = 8, 4
"""Rows of a step and of a micro-batch."""


class TrialRuns:
    """Experiments over one drawn text, each in a folder of its own below `folder`.

    Args:
        experiment: whose model, optimizer and strategy are taken; None for the ladder's smallest
            rung, on rows of 512 tokens, and on a CPU smaller still.
        rows: of the drawn text; more than a run reads.
    """

    def __init__(self, folder: Path, *, experiment: Path | None = None, rows: int = 512) -> None:
        self.folder, self.path = folder, experiment or shipped(RUNG)
        self._given = [] if experiment else ["train.model.max_sequence_length=512"]
        if experiment is None and not torch.cuda.is_available():
            self._given = [f"train.model.{name}={value}" for name, value in ON_CPU.items()]
        model = load_experiment(self.path, [*self._given, "corpus=null"], corpus=False).train.model
        shares = 1 / np.arange(1, model.vocab_size + 1)
        drawn = np.random.default_rng(0).choice(
            model.vocab_size, size=rows * model.max_sequence_length, p=shares / shares.sum()
        )
        self.text = folder / "text.npy"
        drawn.astype(np.uint32).tofile(self.text)

    def experiment(
        self,
        name: str,
        *,
        steps: int,
        rate: int = 0,
        precision: str = "fp32",
        bf16_on_cpu: bool = False,
        callbacks: dict[str, Any] | None = None,
        **settings: Any,
    ) -> ExperimentConfig:
        """An experiment of `steps` steps with two tasks, `often` at `rate` instances a step and
        `burst`; none of either at rate 0. `settings` are overrides, by key with `__` for dots. A
        CPU takes fp32 whatever the precision, unless `bf16_on_cpu`."""
        often = {"name": "often", "num_symbols": 20, "schedule": {"rate": rate}}
        burst = {"kind": "burst", "rate": 1, "every": 5, "phase": 2}
        tasks = [often, {"name": "burst", "num_symbols": 20, "schedule": burst}] if rate else []
        values = {
            "corpus": None,
            "injection.tasks": tasks,
            "callbacks": {"progress": None, **(callbacks or {})},
            "train.run_name": name,
            "train.save_folder": str(self.folder / name),
            "train.data.paths": [str(self.text)],
            "train.data.memmap_dtype": "uint32",
            "train.data.num_workers": 0,
            "train.data.prefetch_factor": None,
            "train.data.persistent_workers": False,
            "train.data.pin_memory": False,
            "train.scheduler.t_warmup": 1,
            "train.precision": precision if torch.cuda.is_available() or bf16_on_cpu else "fp32",
            "bf16_on_cpu": bf16_on_cpu and precision != "fp32",
            "train.max_duration": steps,
            "train.global_train_batch_size": BATCH,
            "train.device_train_microbatch_size": MICRO,
            "train.save_interval_unsharded": 10**6,
            "train.no_pre_train_checkpoint": True,
            "train.console_log_interval": 10**6,
            "train.wandb": None,
        } | {key.replace("__", "."): value for key, value in settings.items()}
        written = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        # Sections are merged: what the file has there must go first.
        cleared = ["injection.tasks=null", "callbacks=null"]
        return load_experiment(self.path, [*self._given, *cleared, *written], corpus=False)


def ours(experiment: ExperimentConfig, stack: ExitStack) -> Any:
    """The trainer that `olmo_ext.train.train` would build, without its folder's claims.

    Deterministic, if asked for, as long as the stack is open.
    """
    stack.enter_context(deterministic(experiment))
    prepared, device = prepare(experiment), init_process_group()
    Path(experiment.train.save_folder).mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(prepared, device=device, stack=stack)
    for callback in trainer.callbacks.values():
        callback.on_start(trainer)
    return trainer


def stock(experiment: ExperimentConfig) -> Trainer:
    """Stock ai2-olmo's trainer over its own loader, its model built as ours."""
    cfg = copy.deepcopy(experiment.train)
    cfg.save_folder = cfg.save_folder + "-stock"
    cfg.device_train_batch_size = cfg.global_train_batch_size
    cfg.device_train_grad_accum = max(
        cfg.device_train_batch_size // cfg.device_train_microbatch_size, 1
    )
    device = init_process_group()
    Path(cfg.save_folder).mkdir(parents=True, exist_ok=True)
    loader = build_train_dataloader(cfg)
    model = build_model(cfg, device)
    dist_model = wrap(model, cfg, device)
    optim, scheduler = build_optimizer(cfg, dist_model), build_scheduler(cfg)
    return Trainer(
        cfg=cfg, epoch=0, model=model, dist_model=dist_model, optim=optim, scheduler=scheduler,
        train_loader=loader, device=device, evaluators=[],
    )  # fmt: skip


class Stepper:
    """Takes steps of a trainer by hand, as `fit` does, so that two can take turns."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.batches = trainer, iter(trainer.train_loader)
        trainer.dist_model.train()
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def step(self, *, timed: bool = True) -> None:
        trainer = self.trainer
        sync()
        start = time.perf_counter()
        batch = next(self.batches)
        trainer.global_step += 1
        trainer.global_train_tokens_seen += batch["input_ids"].numel()
        with cpu_shield():
            metrics = trainer.train_step(batch)
        sync()
        if timed:
            self.seconds.append(time.perf_counter() - start)
        self.losses.append(metrics["train/CrossEntropyLoss"])


def sync() -> None:
    """Wait for the card, so that a clock read next has what was asked for so far."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free() -> None:
    """Give back what nothing holds, and count the peak from here."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def digest(model: torch.nn.Module) -> str:
    """SHA-256 of all weights."""
    found = hashlib.sha256()
    for _, weights in sorted(model.named_parameters()):
        found.update(weights.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    name: str
    value: float | str
    bound: float | str = ""
    passed: bool | None = None
    """None: told, not judged."""

    note: str = ""


def most(name: str, value: float, bound: float, note: str = "") -> Check:
    return Check(name, value, bound, value <= bound, note)


def equal(name: str, one: Any, two: Any, note: str = "") -> Check:
    same = one == two
    return Check(name, "equal" if same else "different", "equal", same, note)
