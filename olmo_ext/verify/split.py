"""Rows on numbers: the card's gradient against the CPU's, and how exact the gradient split is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from eval.interference.gradients import Vector
from olmo_ext.build import build_model
from olmo_ext.callbacks.base import Callback
from olmo_ext.gradients.passes import Loss, beside_the_step, gradient_of, measured_parameters
from olmo_ext.gradients.tasks import rows_of_task, split_error, step_parts
from olmo_ext.verify.runs import MICRO, Check, Stepper, TrialRuns, most, ours

SPLIT = {"fp32": (5e-6, 1e-6), "amp_bf16": (2e-2, 1e-2)}
"""The most that a task's part may be off by, as a share of it, and the parts' sum from the whole.

Measured: 6.5e-7 and 8e-8, 2.1e-3 and 1.4e-3 on an H200 (docs/findings/gpu)."""


def device(runs: TrialRuns) -> Iterator[Check]:
    """The gradient of one pass on the card against the CPU's, same weights and rows."""
    if not torch.cuda.is_available():
        return
    for precision, bound in {"fp32": 1e-5, "amp_bf16": 3e-2}.items():
        gap = device_gap(runs, torch.device("cuda"), precision)
        yield most(f"gradient on the card, {precision}, from the CPU's fp32", gap, bound)


def device_gap(runs: TrialRuns, place: torch.device, precision: str) -> float:
    """How far a device's gradient is from that of the CPU in fp32, as a share of it."""
    cfg = runs.experiment("device", steps=1).train
    model = build_model(cfg, torch.device("cpu"))
    num_tokens = MICRO * cfg.model.max_sequence_length
    tokens = np.fromfile(runs.text, dtype=np.uint32, count=num_tokens).astype(np.int64)
    ids_BT = torch.from_numpy(tokens).view(MICRO, -1)

    def gradient(model: torch.nn.Module, place: torch.device, half: bool) -> Vector:
        rows_BT = ids_BT.to(place)
        with torch.autocast(place.type, enabled=half, dtype=torch.bfloat16):
            logits_BTV = model(rows_BT).logits[:, :-1].float()
            loss = F.cross_entropy(logits_BTV.flatten(0, 1), rows_BT[:, 1:].flatten())
        loss.backward()
        return [p.grad.flatten() for p in model.parameters() if p.grad is not None]

    return distance(
        gradient(copy.deepcopy(model).to(place), place, precision == "amp_bf16"),
        gradient(model, torch.device("cpu"), half=False),
    )


class _Split(Callback):
    """Holds the split of a step by short rows against full backward passes."""

    error: float | None = None
    gap: float = 0.0

    def on_gradients(self, trainer: Any, batch: dict[str, Any]) -> None:
        params = measured_parameters(trainer)
        whole = params.gradient()
        with beside_the_step(trainer, params):
            parts = step_parts(trainer, params, batch, measured=())
            self.error = split_error(trainer, params, batch, parts)
            rest = gradient_of(trainer, params, rest_losses(trainer, batch))
        self.gap = distance([sum(each) for each in zip(rest, *parts.values(), strict=True)], whole)


def rest_losses(trainer: Any, batch: dict[str, Any]) -> list[Loss]:
    """The part of a step's loss that is no task's, from whole rows; on one rank."""
    kept_BT = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    start = trainer.plan.offset + 1
    for index, task in enumerate(trainer.plan.tasks):
        kept_BT[rows_of_task(trainer, batch, index).local, start : start + task.length] = False
    tokens = batch["input_ids"].numel()
    micros = trainer.split_batch(batch | {"label_mask": kept_BT})
    return [lambda one=one: trainer.train_micro_batch(one, tokens)[0] for one in micros]  # type: ignore[misc]


def distance(ours: Vector, theirs: Vector) -> float:
    """|ours - theirs| / |theirs|."""
    one, two = (torch.cat([part.detach().cpu().double() for part in v]) for v in (ours, theirs))
    return float((one - two).norm() / two.norm())


def split(runs: TrialRuns) -> Iterator[Check]:
    """g = g_t + g_nt, and g_t by short rows against whole ones, in both precisions."""
    losses = {}
    for precision, (bound, bound_gap) in SPLIT.items():
        asked: dict[str, Any] = {"steps": 2, "rate": 4, "precision": precision}
        with ExitStack() as stack:
            trainer = ours(runs.experiment(f"split-{precision}", **asked, bf16_on_cpu=True), stack)
            trainer.callbacks = {"split": (found := _Split())}
            stepper = Stepper(trainer)
            stepper.step()
        losses[precision] = stepper.losses[0]
        assert found.error is not None
        yield most(f"g_t by short rows, {precision}", found.error, bound, "of the whole rows' g_t")
        yield most(f"g_t + g_nt from g, {precision}", found.gap, bound_gap, "of g")
    yield most("loss in bf16 from that in fp32", abs(losses["amp_bf16"] - losses["fp32"]), 0.02)
