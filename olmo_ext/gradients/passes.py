"""Gradients of other losses beside a training step's own, which is left exactly as it was.

    with beside_the_step(trainer):
        vector = gradient_of(trainer, params, [loss])

Called from a callback's `on_gradients`: `.grad` then holds the gradient of the whole batch before
clipping, averaged over ranks. All ranks must take the same number of passes, as FSDP gathers and
reduces in each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from olmo.config import DistributedStrategy, TrainConfig
from olmo.torch_util import get_world_size
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import ShardingStrategy
from torch.nn.parallel import DistributedDataParallel as DDP

from data_injection.errors import ConfigError
from eval.interference.gradients import MLP, Shard, Vector
from olmo_ext.compat import cpu_shield

if TYPE_CHECKING:
    from olmo_ext.trainer import ExperimentTrainer

Loss = Callable[[], torch.Tensor]
"""A forward pass: this rank's share of a loss, to be averaged over ranks."""

LAYER = re.compile(r"\bblocks\.(\d+)\.")


def check_exact(train: TrainConfig, *, key: str) -> None:
    """Raise ConfigError for models whose task gradient short rows do not give."""
    model = train.model
    dropouts = ("attention_dropout", "residual_dropout", "embedding_dropout")
    if used := [name for name in dropouts if getattr(model, name)]:
        raise ConfigError(
            key=f"train.model.{used[0]}",
            value=getattr(model, used[0]),
            rule=f"must be 0 for {key}: a second pass draws another dropout, so that gradients "
            "cannot be subtracted",
            remedy=f"set it to 0 or remove {key}",
        )
    unfit = {
        "train.model.alibi": (model.alibi, False),
        "train.model.block_group_size": (model.block_group_size, 1),
        "train.data.generate_doc_lengths": (train.data.generate_doc_lengths, False),
    }
    if train.distributed_strategy == DistributedStrategy.fsdp and train.fsdp is not None:
        unfit["train.fsdp.use_orig_params"] = (train.fsdp.use_orig_params, True)
    for name, (value, needed) in unfit.items():
        if value != needed:
            rule, remedy = f"must be {str(needed).lower()} for {key}", f"change it or remove {key}"
            raise ConfigError(key=name, value=value, rule=rule, remedy=remedy)


@dataclass(frozen=True)
class Parameters:
    """The parameters that are measured, and which part of each this rank holds."""

    names: list[str]
    """As in the unwrapped model."""

    tensors: list[torch.nn.Parameter]
    shards: list[Shard]
    layers: list[int]
    """The block of each, -1 for embedding, final norm and output."""

    group: Any
    """The process group over which the parts make the whole; None if every rank holds it."""

    total_sizes: list[int]
    """Entries over all ranks."""

    def flat(self, values: Iterable[torch.Tensor | None]) -> Vector:
        """Tensors of the parameters' shapes as a vector; None, as of an empty shard, is zeros.

        No copy is made of what is in fp32 already.
        """
        return [
            torch.zeros(shard.size, device=tensor.device)
            if value is None
            else value.detach().reshape(-1).float()
            for value, shard, tensor in zip(values, self.shards, self.tensors, strict=True)
        ]

    def whole(self, vector: Vector) -> dict[str, torch.Tensor]:
        """A vector over all ranks, flat, on the CPU, by name; all ranks must call it."""
        parts = {}
        for name, part, shard, size in zip(
            self.names, vector, self.shards, self.total_sizes, strict=True
        ):
            if self.group is not None:
                # Zeros where other ranks have numbers: their sum is the whole, to the last bit.
                full = part.new_zeros(size)
                full[shard.start : shard.stop] = part
                dist.all_reduce(full, group=self.group)
                part = full
            parts[name] = part.cpu()
        return parts

    def part_of(self, whole: dict[str, torch.Tensor]) -> Vector:
        """This rank's part of what `whole` gave."""
        return [
            whole[name][shard.start : shard.stop].to(tensor.device, copy=True)
            for name, shard, tensor in zip(self.names, self.shards, self.tensors, strict=True)
        ]

    def gradient(self) -> Vector:
        """What `.grad` holds now, not copied."""
        return self.flat(tensor.grad for tensor in self.tensors)

    def values(self) -> Vector:
        """What the parameters are now, not copied."""
        return self.flat(self.tensors)

    def mlp(self, layer: int, model: Any) -> MLP:
        """Where the MLP of a layer is among them; `model` is the engine's model config."""
        of_layer = f"blocks.{layer}."
        proj, out = (
            next(i for i, name in enumerate(self.names) if of_layer in name and part in name)
            for part in ("ff_proj.weight", "ff_out.weight")
        )
        neurons, size = num_neurons(model), self.total_sizes[proj] + self.total_sizes[out]
        return MLP(
            ff_proj=proj,
            ff_out=out,
            num_neurons=neurons,
            d_model=model.d_model,
            width=size // neurons,
            shards=(self.shards[proj], self.shards[out]),
        )


def num_neurons(model: Any) -> int:
    """Neurons of a block's MLP: half of mlp_ratio x d_model under SwiGLU."""
    hidden = model.mlp_hidden_size or model.mlp_ratio * model.d_model
    return hidden // 2 if model.activation_type == "swiglu" else hidden


def measured_parameters(
    trainer: ExperimentTrainer, keep: Callable[[str], bool] = lambda name: True
) -> Parameters:
    """The parameters whose names `keep` accepts. Call it where FSDP holds shards: after a backward
    pass. All ranks must call it."""
    named = {
        name.replace("_fsdp_wrapped_module.", "").removeprefix("module."): tensor
        for name, tensor in trainer.dist_model.named_parameters()
    }
    named = {name: tensor for name, tensor in named.items() if keep(name)}
    sizes_P = torch.tensor([tensor.numel() for tensor in named.values()], device=trainer.device)
    group, starts_P, totals_P = None, torch.zeros_like(sizes_P), sizes_P
    if _sharded(trainer.dist_model):
        group = trainer.dist_model.process_group
        sizes_RP = [torch.zeros_like(sizes_P) for _ in range(dist.get_world_size(group))]
        dist.all_gather(sizes_RP, sizes_P, group=group)
        # A flattened parameter is cut into contiguous parts in the order of the ranks.
        starts_P = torch.stack(sizes_RP)[: dist.get_rank(group)].sum(0)
        totals_P = torch.stack(sizes_RP).sum(0)
    starts, sizes = starts_P.tolist(), sizes_P.tolist()
    found = [LAYER.search(name) for name in named]
    return Parameters(
        names=list(named),
        tensors=list(named.values()),
        shards=[Shard(start, start + size) for start, size in zip(starts, sizes, strict=True)],
        layers=[int(match[1]) if match else -1 for match in found],
        group=group,
        total_sizes=totals_P.tolist(),
    )


def _sharded(dist_model: DDP | FSDP) -> bool:
    strategy = getattr(dist_model, "sharding_strategy", ShardingStrategy.NO_SHARD)
    return strategy != ShardingStrategy.NO_SHARD


@contextmanager
def beside_the_step(trainer: ExperimentTrainer) -> Iterator[None]:
    """Room for more forward and backward passes; `.grad` and the RNG are then as they were.

    The step's gradients are set aside, not copied. What is in `.grad` inside is nobody's.
    """
    model = trainer.dist_model
    kept = [(tensor, tensor.grad) for tensor in model.parameters()]
    # FSDP reduces in every pass, as in the engine's own accumulation; DDP must not.
    no_sync = model.no_sync if isinstance(model, DDP) else nullcontext
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), no_sync(), cpu_shield():
        try:
            yield
        finally:
            for tensor, grad in kept:
                tensor.grad = grad


@contextmanager
def at_values(params: Parameters, values: Vector) -> Iterator[None]:
    """The model with other parameters, which are put back to the last bit; not under FSDP."""
    kept = [tensor.detach().clone() for tensor in params.tensors]

    def put(them: Iterable[torch.Tensor]) -> None:
        with torch.no_grad():
            for tensor, value in zip(params.tensors, them, strict=True):
                tensor.copy_(value.view_as(tensor))

    try:
        put(values)
        yield
    finally:
        put(kept)


def mean_along(
    trainer: ExperimentTrainer,
    params: Parameters,
    before: Vector,
    points: Sequence[tuple[float, float]],
    *,
    ends: Sequence[Mapping[str, Vector]],
    at: Callable[[], Mapping[str, Vector]],
) -> dict[str, Vector]:
    """Mean gradients on the straight line from `before` to what the parameters are, by name.

    Args:
        points: (place, weight), the first and the last of the line's ends.
        ends: the gradients there.
        at: the gradients where the parameters are; called for each point between, not under FSDP.
    """
    first, *inner, last = points
    mean: dict[str, Vector] = {}
    for name, start in ends[0].items():
        mean[name] = [part * first[1] for part in start]
        torch._foreach_add_(list(mean[name]), list(ends[1][name]), alpha=last[1])
    after = [part.clone() for part in params.values()] if inner else []
    for place, weight in inner:
        there = [one.lerp(two, place) for one, two in zip(before, after, strict=True)]
        with at_values(params, there), beside_the_step(trainer):
            for name, gradient in at().items():
                torch._foreach_add_(list(mean[name]), list(gradient), alpha=weight)
    return mean


def value_and_gradient(
    trainer: ExperimentTrainer, params: Parameters, losses: Iterable[Loss]
) -> tuple[float, Vector]:
    """The sum of `losses`, averaged over ranks, and its gradient: see `gradient_of`."""
    values: list[torch.Tensor] = []

    def noted(loss: Loss) -> Loss:
        def call() -> torch.Tensor:
            values.append(value := loss())
            return value

        return call

    vector = gradient_of(trainer, params, [noted(loss) for loss in losses])
    return mean_over_ranks(values), vector


def mean_over_ranks(values: Iterable[torch.Tensor]) -> float:
    """The sum of this rank's shares of a loss, averaged over ranks."""
    total = torch.stack([value.detach().double() for value in values]).sum()
    if get_world_size() > 1:
        dist.all_reduce(total)
    return float(total) / get_world_size()


def gradient_of(trainer: ExperimentTrainer, params: Parameters, losses: Iterable[Loss]) -> Vector:
    """Gradient of the sum of `losses`, averaged over ranks: one forward and backward pass each.

    Inside `beside_the_step` only.
    """
    model = trainer.dist_model
    model.zero_grad(set_to_none=True)
    for loss in losses:
        # As the engine's train_batch (train.py:799).
        with torch.autocast("cuda", enabled=True, dtype=trainer.cfg.autocast_precision):
            value = loss()
        value.backward()
    vector = params.gradient()
    model.zero_grad(set_to_none=True)
    if isinstance(model, DDP) and get_world_size() > 1:
        for part in vector:
            part.div_(get_world_size())
            dist.all_reduce(part)
    return vector
