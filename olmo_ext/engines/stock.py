"""ai2-olmo 0.6.0 as an `Engine`: what callbacks need of its model, its wrappers and its loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import ShardingStrategy
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel as DDP

from eval.features.activations import residual_stream
from eval.scores.fast_answers import CutModel, cut
from olmo_ext.compat import cpu_shield
from olmo_ext.engines.host import Layout, MLPWeights, evaluating
from olmo_ext.engines.ranks import get_world_size
from olmo_ext.gradients.passes import num_neurons
from olmo_ext.numerics.kernels import uncompiled

if TYPE_CHECKING:
    from olmo_ext.trainer import ExperimentTrainer


class StockEngine:
    """See `olmo_ext.engines.host.Engine`."""

    def __init__(self, trainer: ExperimentTrainer) -> None:
        self.trainer, self.cfg = trainer, trainer.cfg
        self.precision, self.taken_norm = str(self.cfg.precision), None
        self.sharded = self.cfg.distributed_strategy == "fsdp"
        self.num_layers = self.cfg.model.n_layers
        self.microbatch_rows = self.cfg.device_train_microbatch_size
        self.microbatch_tokens = self.microbatch_rows * self.cfg.model.max_sequence_length

    @property
    def optim(self) -> torch.optim.Optimizer:
        return self.trainer.optim

    def mlp(self, layer: int) -> MLPWeights:
        up, down = (f"blocks.{layer}.{name}.weight" for name in ("ff_proj", "ff_out"))
        model = self.cfg.model
        return MLPWeights((up,), down, num_neurons=num_neurons(model), d_model=model.d_model)

    def autocast(self) -> torch.autocast:
        return torch.autocast(
            self.trainer.device.type,
            enabled=self.cfg.precision != "fp32",
            dtype=self.cfg.autocast_precision,
        )

    def logits(self, ids_BT: Tensor, *, last: bool = True, of: Tensor | None = None) -> Tensor:
        if of is not None and last and not (self.sharded or self.cfg.model.include_bias):
            # A few rows of the head: the whole of it costs a small model more than its blocks.
            model = cut(self.trainer.model)
            return F.linear(model.last_states(ids_BT, None), model.unembedding_VD[of]).float()
        logits = self.trainer.dist_model(ids_BT, last_logits_only=last).logits.float()
        logits = logits if of is None else logits[..., of]
        return logits[:, -1] if last else logits

    def cut(self) -> CutModel | None:
        whole = self.precision == "fp32" and not (self.sharded or self.cfg.model.include_bias)
        return cut(self.trainer.model) if whole else None

    def residual_stream(self, input_ids_BT: Tensor) -> Tensor:
        return residual_stream(self.trainer.dist_model, input_ids_BT)

    def training_loss(self, rows: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        return self.trainer.train_micro_batch(rows, batch["input_ids"].numel())[0]

    def named_parameters(self) -> dict[str, Parameter]:
        return {
            name.replace("_fsdp_wrapped_module.", "").removeprefix("module."): tensor
            for name, tensor in self.trainer.dist_model.named_parameters()
        }

    def layout(self, tensors: Sequence[Parameter]) -> Layout:
        model = self.trainer.dist_model
        sizes_P = torch.tensor([one.numel() for one in tensors], device=self.trainer.device)
        strategy = getattr(model, "sharding_strategy", ShardingStrategy.NO_SHARD)
        if strategy == ShardingStrategy.NO_SHARD:
            return Layout(None, [0] * len(tensors), sizes_P.tolist())
        group = model.process_group
        sizes_RP = [torch.zeros_like(sizes_P) for _ in range(dist.get_world_size(group))]
        dist.all_gather(sizes_RP, sizes_P, group=group)
        # A flattened parameter is cut into contiguous parts in the order of the ranks.
        starts_P = torch.stack(sizes_RP)[: dist.get_rank(group)].sum(0)
        return Layout(group, starts_P.tolist(), torch.stack(sizes_RP).sum(0).tolist())

    @contextmanager
    def passes(self) -> Iterator[None]:
        # FSDP reduces in every pass, as in the engine's own accumulation; DDP must not.
        model = self.trainer.dist_model
        no_sync = model.no_sync if isinstance(model, DDP) else nullcontext
        with no_sync(), cpu_shield(), uncompiled(self.cfg):
            yield

    @contextmanager
    def measuring(self) -> Iterator[None]:
        with uncompiled(self.cfg), evaluating(self.trainer.dist_model):
            yield

    def average(self, gradient: Sequence[Tensor]) -> None:
        if isinstance(self.trainer.dist_model, DDP) and get_world_size() > 1:
            for part in gradient:
                part.div_(get_world_size())
                dist.all_reduce(part)
