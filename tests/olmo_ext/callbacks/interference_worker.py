"""Train an experiment while comparing the cheap split of each step's gradient with full passes.

    torchrun --standalone --nproc-per-node=2 interference_worker.py experiment.yaml errors.json

The reference is independent of the engine's trainer and wrappers: a plain model with the run's
weights, the whole global batch, losses by PyTorch alone, one full backward pass for each part.
errors.json: {step: {vector: relative error}} over the whole model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from olmo.model import OLMo
from olmo.torch_util import get_global_rank, get_world_size

import olmo_ext.callbacks.build
from eval.interference.gradients import Vector
from eval.interference.measure import instances_of, permuted_labels
from olmo_ext.callbacks.base import Callback
from olmo_ext.config import load_experiment
from olmo_ext.gradients.passes import Parameters, beside_the_step, measured_parameters
from olmo_ext.gradients.tasks import reference_of, rest_of_half, step_parts
from olmo_ext.train import train


@dataclass
class Exactness(Callback):
    """Writes the errors of every step below `steps`."""

    path: str = ""
    steps: int = 4

    def on_gradients(self, trainer: Any, batch: dict[str, Any]) -> None:
        if trainer.global_step > self.steps:
            return
        params = measured_parameters(trainer)
        mlp = params.mlp(trainer.engine.mlp(0))
        tasks = trainer.plan.tasks
        cheap = {"g": params.gradient()}
        with beside_the_step(trainer, params):
            cheap |= step_parts(trainer, params, batch, measured=[t.name for t in tasks])
            cheap["h"], _ = rest_of_half(trainer, params, batch)  # type: ignore[misc]
            for task in tasks:
                instances = instances_of(task, split="all", num=0, seed=0)
                found = reference_of(trainer, params, mlp, task, instances, seed=0)
                cheap |= {f"r/{task.name}": found.r, f"p/{task.name}": found.p}
        parts = [cheap[name] for name in cheap if name.startswith("t/")]
        cheap["nt"] = [part.clone() for part in cheap["g"]]
        for part in parts:
            for whole, piece in zip(cheap["nt"], part, strict=True):
                whole.sub_(piece)
        full = full_passes(trainer, params, batch)
        assert cheap.keys() == full.keys(), (cheap.keys(), full.keys())
        errors = {name: relative_error(params, cheap[name], full[name]) for name in cheap}
        if get_global_rank() == 0:
            path = Path(self.path)
            rows = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(rows | {trainer.global_step: errors}))


def full_passes(trainer: Any, params: Parameters, batch: dict[str, Any]) -> dict[str, Vector]:
    """The same vectors, each by its own full pass; whole, on every rank."""
    cfg, plan, world = trainer.cfg, trainer.plan, get_world_size()
    model = plain_model(trainer, params)
    parts = [torch.zeros_like(batch["input_ids"]) for _ in range(world)]
    dist.all_gather(parts, batch["input_ids"])
    ids_BT = torch.stack(parts, dim=1).flatten(0, 1)  # row j of rank r is slot j * world + r
    rows = plan.at(trainer.global_step - 1)
    masks = {"g": torch.ones_like(ids_BT[:, 1:], dtype=torch.bool)}
    masks["nt"] = masks["g"].clone()
    row_B = torch.arange(len(ids_BT), device=trainer.device)
    of_half = row_B[:, None] // world < len(ids_BT) // world // 2
    for index, task in enumerate(plan.tasks):
        slots = rows.slots[rows.tasks == index]
        if len(slots) == 0:
            continue
        # A prediction stands at the position before its target: TOK2, LABEL, EOS at 0, 1, 2.
        own, label = torch.zeros_like(masks["g"]), torch.zeros_like(masks["g"])
        own[slots, plan.offset : plan.offset + task.length] = True
        label[slots, plan.offset + task.length - 2] = True
        masks["nt"] &= ~own
        masks |= {f"t/{task.name}": own, f"label/{task.name}": label}

    # As if half of every rank's rows were all.
    masks["h"] = masks["nt"] & of_half

    def step_loss(mask_BT: torch.Tensor) -> torch.Tensor:
        logits_BTV = model(ids_BT).logits[:, :-1]
        each = F.cross_entropy(logits_BTV.transpose(1, 2), ids_BT[:, 1:], reduction="none")
        if cfg.softmax_auxiliary_loss:
            each = each + 1e-4 * logits_BTV.logsumexp(-1).square()
        return (each * mask_BT).sum() / ids_BT.numel()

    out = {name: gradient(model, lambda mask=mask: step_loss(mask)) for name, mask in masks.items()}
    out["h"] = [part / of_half.double().mean() for part in out["h"]]
    for task in plan.tasks:
        instances = instances_of(task, split="all", num=0, seed=0)
        halves = instances[0::2], instances[1::2]
        permuted = [permuted_labels(task, half, seed=0) for half in halves]
        tokens = torch.as_tensor(task.tokens[[*halves[0], *halves[1]]], device=trainer.device)
        null = torch.as_tensor([*permuted[0], *permuted[1]], device=trainer.device)
        for name, labels in (("r", tokens[:, -1]), ("p", null)):
            out[f"{name}/{task.name}"] = gradient(
                model,
                lambda labels=labels, tokens=tokens: F.cross_entropy(
                    model(tokens[:, :-1]).logits[:, -1], labels
                ),
            )
    return out


def plain_model(trainer: Any, params: Parameters) -> OLMo:
    """The model without a wrapper, with the run's present weights."""
    model = OLMo(trainer.cfg.model.update_with(init_device="cpu")).to(trainer.device)
    own = dict(model.named_parameters())
    assert own.keys() == set(params.names)
    for name, part, shard, total in zip(
        params.names, params.values(), params.shards, params.total_sizes, strict=True
    ):
        flat = torch.zeros(total, device=trainer.device)
        flat[shard.start : shard.stop] = part
        if params.group is not None:
            dist.all_reduce(flat)
        own[name].data.copy_(flat.view_as(own[name]))
    return model.train()


def gradient(model: OLMo, loss: Callable[[], torch.Tensor]) -> Vector:
    return [part.reshape(-1) for part in torch.autograd.grad(loss(), list(model.parameters()))]


def relative_error(params: Parameters, cheap: Vector, full: Vector) -> float:
    sums = torch.zeros(2, dtype=torch.float64, device=cheap[0].device)
    for one, whole, shard in zip(cheap, full, params.shards, strict=True):
        two = whole[shard.start : shard.stop]
        sums += torch.stack([(one - two).double().square().sum(), two.double().square().sum()])
    if params.group is not None:
        dist.all_reduce(sums)
    return float((sums[0] / sums[1]).sqrt())


def main(experiment: str, path: str, *overrides: str) -> None:
    olmo_ext.callbacks.build.CALLBACKS["exactness"] = Exactness
    loaded = load_experiment(experiment, list(overrides))
    loaded.callbacks["exactness"] = {"path": path}
    train(loaded)


if __name__ == "__main__":
    main(*sys.argv[1:])
