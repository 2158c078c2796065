"""chunked_loss: true, output layer and cross-entropy in one: the logits never stand whole.

    chunk_loss(trainer)                     # from now on its steps' losses are made so

The engine makes all logits, copies them without the last position, and its slice's backward fills
as many zeros. torch's F.linear_cross_entropy makes loss and gradients a chunk of rows at a time, in
memory that fits the cache. Sums in another order: equal to rounding, not to the bit.

The loss is made inside the output layer's own forward, where FSDP has its weights gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.utils.checkpoint import checkpoint

from data_injection.errors import ConfigError, check_equal

if TYPE_CHECKING:
    from olmo.train import Trainer

    from olmo_ext.config import ExperimentConfig

CHUNK = 128
"""Rows at a time; torch's own choice is twice slower at width 16 (benchmarks/RESULTS.md)."""

IGNORED = -100
Z_LOSS = 1e-4
"""The engine's multiplier (train.py:129), which no setting of its changes."""


def check_chunked(experiment: ExperimentConfig) -> None:
    """Raise ConfigError where it is asked for and torch or the model's output layer has none."""
    if not experiment.chunked_loss:
        return
    remedy = "set chunked_loss=false"
    if not hasattr(F, "linear_cross_entropy"):
        rule = f"needs torch 2.13's linear_cross_entropy, and torch is {torch.__version__}"
        raise ConfigError(key="chunked_loss", value=True, rule=rule, remedy=remedy)
    model, why = experiment.train.model, " with chunked_loss=true, which replaces the output layer"
    for name in ("weight_tying", "scale_logits", "include_bias"):
        check_equal(why, (f"train.model.{name}", getattr(model, name), False), remedy=remedy)


def chunk_loss(trainer: Any) -> Any:
    """Let a trainer, ours or the engine's, make its micro-batches' losses in chunks; returns it."""
    trainer.train_micro_batch = partial(chunked_micro_batch, trainer)
    return trainer


def chunked_micro_batch(
    trainer: Trainer, micro_batch: dict[str, Any], batch_size_in_tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """What the engine's train_micro_batch gives (train.py:748)."""
    # The last position predicts nothing: ignored, where the engine copies all logits without it.
    labels_N = F.pad(trainer.get_labels(micro_batch), (0, 1), value=IGNORED).view(-1)
    with_z = trainer.cfg.softmax_auxiliary_loss

    def losses(hidden_BTD: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
        hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
        asked: dict[str, Any] = {"reduction": "sum", "ignore_index": IGNORED}
        chunked: dict[str, Any] = {"batch_chunk_size": CHUNK, "acc_policy": "accurate"}
        if torch.is_autocast_enabled(hidden_ND.device.type):  # as it would cast a linear layer's
            dtype = torch.get_autocast_dtype(hidden_ND.device.type)
            hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
        if hidden_ND.dtype != torch.float32:  # CUDA's autocast is on in fp32 too
            # torch's sum would be rounded to 8 bits: each row's loss, to be added in fp32 here.
            asked["reduction"], chunked["acc_dtype"] = "none", torch.float32
        asked["options"] = torch.nn.LinearCrossEntropyOptions(**chunked)
        ce = F.linear_cross_entropy(hidden_ND, weight_VD, labels_N, **asked).float().sum()
        z = _z_squared(hidden_ND, weight_VD, labels_N) if with_z else torch.zeros_like(ce)
        return torch.stack([ce, z])

    with _output_layer(trainer.model, losses):
        names = ("attention_mask", "attention_bias", "doc_lens", "max_doc_lens")
        given = {name: micro_batch.get(name) for name in names}
        ce, z = trainer.dist_model(input_ids=micro_batch["input_ids"], **given).logits
    ce_loss = ce / batch_size_in_tokens
    if not with_z:
        return ce_loss, ce_loss, None
    z_loss = Z_LOSS * z / batch_size_in_tokens
    return ce_loss + z_loss, ce_loss, z_loss


def _z_squared(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, labels_N: torch.Tensor
) -> torch.Tensor:
    """Sum of logsumexp(logits)^2 over the positions that count, chunk by chunk."""

    def of_chunk(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        norms = F.linear(hidden, weight_VD).float().logsumexp(-1)
        return (norms.square() * (labels != IGNORED)).sum()

    chunks = zip(hidden_ND.split(CHUNK), labels_N.split(CHUNK), strict=True)
    # Made again in the backward pass: kept, they would be the logits.
    return torch.stack([checkpoint(of_chunk, *c, use_reentrant=False) for c in chunks]).sum()


@contextmanager
def _output_layer(
    model: Any, forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Let the output layer give `forward` of its input and weight."""
    head = model.transformer.ff_out
    head = head.module if isinstance(head, FSDP) else head
    head.forward = lambda hidden: forward(hidden, head.weight)  # type: ignore[arg-type]
    try:
        yield
    finally:
        del head.forward
