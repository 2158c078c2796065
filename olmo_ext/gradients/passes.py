"""Gradients of other losses beside a training step's own, which is left exactly as it was.

    with beside_the_step(trainer, params):
        vector = gradient_of(trainer, params, [loss])

Called from a callback's `on_gradients`: `.grad` then holds the gradient of the whole batch before
clipping, averaged over ranks. All ranks must take the same number of passes, as FSDP gathers and
reduces in each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from data_injection.errors import check_equal
from eval.interference.gradients import MLP, Shard, Vector
from olmo_ext.engines.host import Host, MLPWeights, local
from olmo_ext.engines.ranks import get_world_size

if TYPE_CHECKING:
    from olmo.config import TrainConfig

Loss = Callable[[], torch.Tensor]
"""A forward pass: this rank's share of a loss, to be averaged over ranks."""

LAYER = re.compile(r"\bblocks\.(\d+)\.")


def check_exact(train: TrainConfig, *, key: str) -> None:
    """Raise ConfigError for models whose task gradient short rows do not give."""
    model, remedy = train.model, f"change it or remove {key}"
    why = f" for {key}: a second pass draws another dropout, so that gradients cannot be subtracted"
    dropouts = ("attention_dropout", "residual_dropout", "embedding_dropout")
    check_equal(why, *((f"train.model.{n}", getattr(model, n), 0) for n in dropouts), remedy=remedy)
    settings = [
        ("train.model.alibi", model.alibi, False),
        ("train.model.block_group_size", model.block_group_size, 1),
        ("train.data.generate_doc_lengths", train.data.generate_doc_lengths, False),
    ]
    if train.distributed_strategy == "fsdp" and train.fsdp is not None:
        settings += [("train.fsdp.use_orig_params", train.fsdp.use_orig_params, True)]
    check_equal(f" for {key}", *settings, remedy=remedy)


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

    of_model: list[torch.nn.Parameter]
    """All of the model's, measured or not. Listed before any forward pass: FSDP2's root lists its
    unsharded ones from then on, and to set their gradients aside would corrupt the training without
    an error."""

    offload: bool = False
    """Keep what `gradient_of` gives in the host's memory, pinned beside a card."""

    def flat(self, values: Iterable[torch.Tensor | None]) -> Vector:
        """Tensors of the parameters' shapes as a vector; None, as of an empty shard, is zeros.

        No copy is made of what is in fp32 already.
        """
        return [
            torch.zeros(shard.size, device=tensor.device)
            if value is None
            else local(value.detach()).reshape(-1).float()
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

    def clear(self) -> None:
        for tensor in self.of_model:  # `zero_grad` walks all modules, for a small pass's time
            tensor.grad = None

    def values(self) -> Vector:
        """What the parameters are now, not copied."""
        return self.flat(self.tensors)

    def mlp(self, weights: MLPWeights) -> MLP:
        """Where the MLP of a layer is among them."""
        first, *gates, down = (
            next(i for i, name in enumerate(self.names) if name.endswith(end))
            for end in weights.names
        )
        where = (first, *gates, down)
        neurons, size = weights.num_neurons, sum(self.total_sizes[i] for i in where)
        return MLP(
            ff_proj=first,
            ff_out=down,
            num_neurons=neurons,
            d_model=weights.d_model,
            width=size // neurons,
            shards=tuple(self.shards[i] for i in where),
            gates=tuple(gates),
        )


def num_neurons(model: Any) -> int:
    """Neurons of a block's MLP: half of mlp_ratio x d_model under SwiGLU."""
    hidden = model.mlp_hidden_size or model.mlp_ratio * model.d_model
    return hidden // 2 if model.activation_type == "swiglu" else hidden


def measured_parameters(
    trainer: Host, keep: Callable[[str], bool] = lambda name: True
) -> Parameters:
    """The parameters whose names `keep` accepts. Call it where FSDP holds shards: after a backward
    pass. All ranks must call it."""
    named = {name: one for name, one in trainer.engine.named_parameters().items() if keep(name)}
    layout = trainer.engine.layout(list(named.values()))
    sizes = [local(tensor).numel() for tensor in named.values()]
    found = [LAYER.search(name) for name in named]
    return Parameters(
        names=list(named),
        tensors=list(named.values()),
        shards=[Shard(at, at + size) for at, size in zip(layout.starts, sizes, strict=True)],
        layers=[int(match[1]) if match else -1 for match in found],
        group=layout.group,
        total_sizes=layout.total_sizes,
        of_model=list(trainer.dist_model.parameters()),
    )


@contextmanager
def beside_the_step(trainer: Host, params: Parameters) -> Iterator[None]:
    """Room for more forward and backward passes; `.grad` and the RNG are then as they were.

    The step's gradients are set aside, not copied. What is in `.grad` inside is nobody's.
    """
    kept = [(tensor, tensor.grad) for tensor in params.of_model]
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), trainer.engine.passes():
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
    trainer: Host,
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
        with at_values(params, there), beside_the_step(trainer, params):
            for name, gradient in at().items():
                torch._foreach_add_(list(mean[name]), list(gradient), alpha=weight)
    return mean


def mean_over_ranks(values: Iterable[torch.Tensor]) -> float:
    """The sum of this rank's shares of a loss, averaged over ranks."""
    total = torch.stack([value.detach().double() for value in values]).sum()
    if get_world_size() > 1:
        dist.all_reduce(total)
    return float(total) / get_world_size()


def gradient_of(
    trainer: Host,
    params: Parameters,
    losses: Iterable[Loss],
    values: list[torch.Tensor] | None = None,
) -> Vector:
    """Gradient of the sum of `losses`, averaged over ranks: one forward and backward pass each.

    Inside `beside_the_step` only. What the losses are is appended to `values`.
    """
    params.clear()
    for loss in losses:
        with trainer.engine.autocast():
            value = loss()
        value.backward()
        if values is not None:
            values.append(value.detach())
    vector = params.gradient()
    params.clear()
    trainer.engine.average(vector)
    return [on_host(part) for part in vector] if params.offload else vector


def on_host(part: torch.Tensor) -> torch.Tensor:
    """A copy in the host's memory, pinned where there is a card."""
    host = torch.empty(part.shape, dtype=part.dtype, pin_memory=torch.cuda.is_available())
    host.copy_(part)
    return host
