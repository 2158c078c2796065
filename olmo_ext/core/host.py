"""OLMo-core's trainer as a `Host`, its model and its loss as an `Engine` (olmo_ext/engines)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn import Parameter

from data_injection.beat import Beat
from eval.records import RecordWriter
from olmo_ext.core.compat import get_labels, plain_name, resharded
from olmo_ext.engines.host import Layout, MLPWeights, evaluating, local, write_record
from olmo_ext.gradients.moments import norm_of


class CoreEngine:
    """See `olmo_ext.engines.host.Engine`."""

    def __init__(self, train_module: Any) -> None:
        self.train, self.model = train_module, train_module.model
        dtype = str(self.model.dtype).replace("torch.float32", "fp32")
        self.precision = "amp_bf16" if train_module.autocast_precision else dtype
        self.sharded = any(isinstance(one, DTensor) for one in self.model.parameters())
        self.num_layers = len(self.model.blocks)
        self.taken_norm: float | None = None
        self.microbatch_tokens = train_module.rank_microbatch_size
        self.microbatch_rows = self.microbatch_tokens // train_module.max_sequence_length

    @property
    def optim(self) -> torch.optim.Optimizer:
        return self.train.optim

    def watch_clipping(self) -> Any:
        """Note `taken_norm` at each step; returns the handle. The Trainer clips inside the
        optimizer's step and has no gradient left when a callback's turn comes."""

        def note(*_: Any) -> None:
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            self.taken_norm = norm_of([local(one).flatten().float() for one in grads])

        return self.optim.register_step_pre_hook(note)

    def mlp(self, layer: int) -> MLPWeights:
        # SwiGLU: w2(silu(w1 x) * w3 x), each a tensor of its own.
        up, gate, down = (
            f"blocks.{layer}.feed_forward.{name}.weight" for name in ("w1", "w3", "w2")
        )
        neurons, d_model = self.model.blocks[str(layer)].feed_forward.w1.weight.shape
        return MLPWeights((up, gate), down, num_neurons=neurons, d_model=d_model)

    def autocast(self) -> torch.autocast:
        precision = self.train.autocast_precision
        return torch.autocast(
            self.train.device.type, enabled=precision is not None, dtype=precision
        )

    def logits(self, ids_BT: Tensor, *, last: bool = True, of: Tensor | None = None) -> Tensor:
        logits = self.model(ids_BT, logits_to_keep=int(last)).float()
        logits = logits if of is None else logits[..., of]
        return logits[:, -1] if last else logits

    def cut(self) -> None:
        return None

    def residual_stream(self, input_ids_BT: Tensor) -> Tensor:
        states: list[Tensor] = []

        def enters(module: Any, args: tuple[Tensor, ...]) -> None:
            states.append(args[0])

        def leaves(module: Any, args: Any, output: Tensor) -> None:
            states.append(output)

        blocks = list(self.model.blocks.values())
        hooks = [blocks[0].register_forward_pre_hook(enters)]
        hooks += [block.register_forward_hook(leaves) for block in blocks]
        try:
            self.model(input_ids_BT, logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack([state[:, -1].float() for state in states])

    def training_loss(self, rows: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        ignored = self.train.label_ignore_index
        # As train_batch counts: a filtered row counts whole, though it has no loss.
        num = (self._labels(batch) != ignored).sum()
        if "instance_mask" in batch:
            num = num + (~batch["instance_mask"]).sum() * batch["input_ids"].shape[1]
        output = self.model(
            rows["input_ids"],
            labels=self._labels(rows),
            ignore_index=ignored,
            loss_reduction="sum",
            loss_div_factor=num,
            z_loss_multiplier=self.train.z_loss_multiplier,
            return_logits=False,
        )
        return output.loss

    def _labels(self, batch: dict[str, Any]) -> Tensor:
        return get_labels(batch, label_ignore_index=self.train.label_ignore_index)

    def named_parameters(self) -> dict[str, Parameter]:
        return {plain_name(name): tensor for name, tensor in self.model.named_parameters()}

    def layout(self, tensors: Sequence[Parameter]) -> Layout:
        group, starts = None, []
        for tensor in tensors:
            start = 0
            if isinstance(tensor, DTensor):
                # FSDP2 cuts the first axis, so that a part is contiguous in the flattened whole.
                (cut,) = tensor.placements
                assert cut == Shard(0), "another sharding than FSDP2's"
                group = tensor.device_mesh.get_group()
                _, offset = compute_local_shape_and_global_offset(
                    tensor.shape, tensor.device_mesh, tensor.placements
                )
                start = offset[0] * math.prod(tensor.shape[1:])
            starts.append(start)
        return Layout(group, starts, [math.prod(tensor.shape) for tensor in tensors])

    @contextmanager
    def passes(self) -> Iterator[None]:
        # Both DDP and FSDP2 reduce in the hooks of backward(): the mean over ranks, in every pass.
        if hasattr(self.model, "set_is_last_backward"):
            self.model.set_is_last_backward(True)
        yield

    def average(self, gradient: Sequence[Tensor]) -> None:
        """It is the mean already."""


class CoreHost:
    """See `olmo_ext.engines.host.Host`."""

    def __init__(self, trainer: Any, *, run_fields: dict[str, Any], writer: RecordWriter | None):
        self.trainer, self.run_fields, self.writer = trainer, run_fields, writer
        self.plan = trainer.data_loader.plan
        self.dist_model, self.device = trainer.train_module.model, trainer.train_module.device
        self.engine = CoreEngine(trainer.train_module)
        self.beat = Beat(None)

    @property
    def global_step(self) -> int:
        return self.trainer.global_step

    @property
    def max_steps(self) -> int:
        return self.trainer.max_steps

    @property
    def last_step(self) -> int:
        stop = self.trainer.hard_stop
        steps = self.max_steps if stop is None else self.trainer.convert_duration_to_steps(stop)
        return min(self.max_steps, steps)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        try:
            with evaluating(self.dist_model):
                yield
        finally:
            resharded(self.dist_model)

    def record(self, callback: str, **measured: Any) -> None:
        write_record(self, callback, tokens=self.trainer.global_train_tokens_seen, **measured)
