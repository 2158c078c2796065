"""Stage variants: which ways to be faster pay on this card, each alone and then together.

    stage_variants.py CORPUS --rungs 4M:32:16,300M:16:8 --seconds 150
A variant is a list of switches: `fused` and `blocks` are settings (fused_optimizer, train.compile),
the others are tried here alone: `model` (torch.compile of the whole model), `loss` (the
cross-entropy compiled, so that the fp32 copy of the logits is not written), `linear` (output layer
and loss together, in chunks of rows: the logits never stand whole; as chunked_loss, for a torch
before 2.13), `graphs` (the model in CUDA graphs).
Losses of the first steps stand beside eager's: a variant that is faster and another model is none.
A rehearsal (--dry) compiles by aot_eager, which makes no kernels: it shows that every variant runs,
and to the same losses. --backend inductor rehearses the kernels too, at minutes of g++ a variant.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from gpu_common import (
    GPU,
    PEAK,
    attempt,
    experiment,
    run_stage,
    say,
    stage_parser,
)

from olmo_ext.verify.bench import flops_per_token, peak_gb
from olmo_ext.verify.runs import Stepper, free, ours

VARIANTS = {
    "4M": [
        "",
        "model+loss+fused",
        "linear+model+fused",
        "blocks",
        "loss",
        "fused",
        "model",
        "linear+graphs+fused",
    ],
    "20M": ["", "model+loss+fused", "linear+model+fused"],
    "300M": ["", "blocks+loss+fused", "linear+model+fused", "blocks", "loss", "fused"],
    "1B": ["", "blocks+loss+fused", "linear+blocks+fused"],
}
IGNORED = -100
BACKEND = "inductor"
"""Of torch.compile, in this process."""
CHUNK = 8192
"""Rows of hidden states whose logits stand at a time."""


class ChunkedLoss(torch.autograd.Function):
    """Sum of cross-entropies of hidden_ND @ weight_VD.T by chunks; the gradients come at once."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        labels_N: torch.Tensor,
        chunk_loss: Callable[..., Any],
    ) -> torch.Tensor:
        weight = weight_VD.to(torch.bfloat16) if GPU else weight_VD
        d_hidden = torch.empty_like(hidden_ND)
        d_weight = torch.zeros_like(weight_VD, dtype=torch.float32)
        total = torch.zeros((), device=hidden_ND.device)
        for start in range(0, len(hidden_ND), CHUNK):
            part = slice(start, start + CHUNK)
            hidden = hidden_ND[part].to(weight.dtype)
            loss, d_logits = chunk_loss(hidden @ weight.T, labels_N[part])
            total += loss
            d_hidden[part] = d_logits @ weight
            d_weight += d_logits.T @ hidden
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * grad, d_weight * grad, None, None


def loss_and_gradient(
    logits_NV: torch.Tensor, labels_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy, and its gradient by the logits: softmax minus the one hot label."""
    logits = logits_NV.float()
    norm_N = logits.logsumexp(-1)
    kept_N, at_N = labels_N != IGNORED, labels_N.clamp_min(0)
    loss = ((norm_N - logits.gather(-1, at_N[:, None]).squeeze(-1)) * kept_N).sum()
    p_NV = (logits - norm_N[:, None]).exp()
    hot_NV = torch.arange(logits.shape[-1], device=logits.device)[None] == at_N[:, None]
    return loss, ((p_NV - hot_NV.float()) * kept_N[:, None]).to(logits_NV.dtype)


def linear_loss(weight_VD: torch.Tensor) -> Callable[..., Any]:
    chunk_loss = torch.compile(loss_and_gradient, dynamic=False, backend=BACKEND)

    def loss(hidden: Any, labels: Any, reduction: str = "sum", **settings: Any) -> Any:
        assert reduction == "sum", reduction
        assert not settings.get("compute_z_loss")
        return ChunkedLoss.apply(hidden, weight_VD, labels, chunk_loss), None

    return loss


def compiled_loss() -> Callable[..., Any]:
    @torch.compile(dynamic=False, backend=BACKEND)
    def cross_entropy(logits: Any, labels: Any, reduction: str) -> Any:
        return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction=reduction)

    def loss(logits: Any, labels: Any, reduction: str = "sum", **settings: Any) -> Any:
        return cross_entropy(logits, labels, reduction), None

    return loss


def switch(trainer: Any, names: set[str]) -> None:
    """Make a trainer of ours, just built, into a variant."""
    model = trainer.model
    if "linear" in names:
        out = model.transformer.ff_out
        trainer.loss_fn = linear_loss(out.weight)
        out.forward = lambda hidden: hidden
    if "loss" in names:
        trainer.loss_fn = compiled_loss()
    if "model" in names:
        model.compile(dynamic=False, backend=BACKEND)
    if "graphs" in names:
        graphs = {"mode": "reduce-overhead"} if BACKEND == "inductor" else {}
        model.compile(dynamic=False, backend=BACKEND, **graphs)


def measure(
    args: argparse.Namespace, name: str, batch: int, micro: int, variant: str, eager: list[float]
) -> list[float]:
    """Time a variant of a rung beside the losses of `eager`, and return its own."""
    torch._dynamo.reset()
    rows: dict[str, Any] = {"batch": batch, "micro": micro, "steps": 1000, "warmup": 20, "rate": 1}
    rows |= {"workers": args.workers, "dry": args.dry}
    names, blocks = set(variant.split("+")), {"dynamic": False, "backend": BACKEND}
    rows |= {"ours": {"fused_optimizer": "fused" in names}}
    rows |= {"train": {"compile": blocks if "blocks" in names else None}}
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        free()
        trainer = ours(experiment(name, Path(folder) / "v", args.corpus, **rows), stack)
        switch(trainer, names)
        stepper = Stepper(trainer)
        began = time.time()
        for _ in range(4):
            stepper.step(timed=False)
        warm = time.time() - began
        if GPU:
            torch.cuda.reset_peak_memory_stats()
        until = time.time() + args.each
        while len(stepper.seconds) < 4 or (time.time() < until and len(stepper.seconds) < 60):
            stepper.step()
        tokens, seconds = batch * trainer.cfg.model.max_sequence_length, median(stepper.seconds)
        pairs = list(zip(eager or stepper.losses, stepper.losses, strict=False))[:8]
        say(
            "variants",
            rung=name,
            variant=variant or "eager",
            rows=batch,
            micro=micro,
            steps=len(stepper.seconds),
            step_s=seconds,
            tok_s=tokens / seconds,
            mfu=flops_per_token(trainer) * tokens / seconds / PEAK,
            peak_gb=peak_gb(),
            warm_s=warm,
            loss_diff=max(abs(a - b) for a, b in pairs),
            losses=[loss for _, loss in pairs],
        )
        losses = stepper.losses
    del trainer, stepper
    free()
    return losses


def run() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--rungs", default="4M:32:16,300M:16:8,20M:64:16,1B:8:4")
    parser.add_argument("--seconds", type=float, default=170, help="of the whole stage")
    parser.add_argument("--each", type=float, default=4, help="of each variant's timed part")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--backend", help="of torch.compile: inductor, in a rehearsal aot_eager")
    args = parser.parse_args()
    global BACKEND
    BACKEND = args.backend or ("aot_eager" if args.dry else "inductor")
    torch._dynamo.config.cache_size_limit = 128
    until = time.time() + args.seconds
    for text in args.rungs.split(","):
        name, batch, micro = text.split(":")
        eager: list[float] = []
        for variant in VARIANTS[name]:
            if time.time() > until:
                say("variants", rung=name, variant=variant, error="no time left")
                continue
            with attempt("variants", rung=name, variant=variant):
                losses = measure(args, name, int(batch), int(micro), variant, eager)
                eager = eager if variant else losses


if __name__ == "__main__":
    run_stage("variants", run)
