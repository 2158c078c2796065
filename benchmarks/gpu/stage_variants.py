"""Stage variants: which ways to be faster pay on this card, each alone and then together.

    stage_variants.py CORPUS --rungs 4M:32:16,300M:16:8 --seconds 150
A variant is a list of switches: `fused` (AdamW in one kernel), `blocks` (torch.compile per block, as
the engine's own script), `model` (torch.compile of the whole model), `loss` (the cross-entropy
compiled, so that the fp32 copy of the logits is not written), `linear` (output layer and loss
together, in chunks of rows: the logits never stand whole), `graphs` (the model in CUDA graphs).
Losses of the first steps stand beside eager's: a variant that is faster and another model is none.
"""

import argparse, tempfile, time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from gpu_common import GPU, PEAK, Stepper, experiment, flops_per_token, free, main_guard, ours, say

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


class ChunkedLoss(torch.autograd.Function):
    """Sum of cross-entropies of hidden_ND @ weight_VD.T, a chunk of rows at a time; gradients come at once."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(ctx, hidden_ND, weight_VD, labels_N, chunk):
        w = weight_VD.to(torch.bfloat16) if GPU else weight_VD
        dh, dw = torch.empty_like(hidden_ND), torch.zeros_like(weight_VD, dtype=torch.float32)
        total = torch.zeros((), device=hidden_ND.device)
        for start in range(0, len(hidden_ND), chunk):
            h = hidden_ND[start : start + chunk].to(w.dtype)
            loss, g = _chunk(h @ w.T, labels_N[start : start + chunk])
            total += loss
            dh[start : start + chunk] = g @ w
            dw += g.T @ h
        ctx.save_for_backward(dh, dw)
        return total

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        dh, dw = ctx.saved_tensors
        return dh * grad, dw * grad, None, None


def _chunk_plain(logits, labels):
    x = logits.float()
    lse = x.logsumexp(-1)
    kept = labels != -100
    at = labels.clamp_min(0)
    loss = ((lse - x.gather(-1, at[:, None]).squeeze(-1)) * kept).sum()
    p = (x - lse[:, None]).exp()
    hot = torch.arange(x.shape[-1], device=x.device)[None] == at[:, None]
    return loss, ((p - hot.float()) * kept[:, None]).to(logits.dtype)


_chunk = _chunk_plain


def switch(trainer, names: set[str], chunk: int) -> None:
    global _chunk
    model = trainer.model
    if "fused" in names:
        for group in trainer.optim.param_groups:
            group["fused"], group["foreach"] = True, False
    if "linear" in names:
        out = model.transformer.ff_out
        weight = out.weight
        out.forward = lambda hidden: hidden
        _chunk = torch.compile(_chunk_plain, dynamic=False)

        def loss(hidden, labels, ignore_index=-100, reduction="sum", compute_z_loss=False, **kw):
            assert reduction == "sum" and not compute_z_loss
            return ChunkedLoss.apply(hidden, weight, labels, chunk), None

        trainer.loss_fn = loss
    if "loss" in names:

        @torch.compile(dynamic=False)
        def ce(logits, labels, reduction):
            return F.cross_entropy(logits.float(), labels, ignore_index=-100, reduction=reduction)

        trainer.loss_fn = (
            lambda logits, labels, ignore_index=-100, reduction="sum", compute_z_loss=False, **kw: (
                ce(logits, labels, reduction),
                None,
            )
        )
    if "blocks" in names:
        for block in model.transformer.blocks:
            block.compile(dynamic=False)
    if "model" in names:
        model.compile(dynamic=False)
    if "graphs" in names:
        model.compile(dynamic=False, mode="reduce-overhead")


def one(args, name: str, batch: int, micro: int, variant: str, eager: list[float]) -> None:
    names = set(variant.split("+")) - {""}
    small = {"d_model": 32, "n_heads": 4, "n_layers": 2} if args.dry else {}
    context = 64 if args.dry else 2048
    torch._dynamo.reset()
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        free()
        exp = experiment(
            name,
            Path(folder) / "v",
            args.corpus,
            batch=batch,
            micro=micro,
            steps=1000,
            context=context,
            warmup=20,
            model=small,
            workers=args.workers,
            rate=1,
        )
        trainer = ours(exp, stack)
        switch(trainer, names, 256 if args.dry else 8192)
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
        peak = torch.cuda.max_memory_allocated() / 1e9 if GPU else 0.0
        tokens = batch * context
        if not names:
            eager[:] = stepper.losses
        s = median(stepper.seconds)
        n = min(len(eager), len(stepper.losses), 8)
        say(
            "variants",
            rung=name,
            variant=variant or "eager",
            rows=batch,
            micro=micro,
            steps=len(stepper.seconds),
            step_s=s,
            tok_s=tokens / s,
            mfu=flops_per_token(trainer) * tokens / s / PEAK,
            peak_gb=peak,
            warm_s=warm,
            loss_diff=max(
                (abs(a - b) for a, b in zip(eager[:n], stepper.losses[:n])), default=None
            ),
            losses=stepper.losses[:n],
        )
    del trainer, stepper
    free()


def run() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--rungs", default="4M:32:16,300M:16:8,20M:64:16,1B:8:4")
    parser.add_argument("--seconds", type=float, default=170, help="of the whole stage")
    parser.add_argument("--each", type=float, default=4, help="of each variant's timed part")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    torch._dynamo.config.cache_size_limit = 128
    until = time.time() + args.seconds
    for text in args.rungs.split(","):
        name, batch, micro = text.split(":")
        eager: list[float] = []
        for variant in VARIANTS[name]:
            if time.time() > until:
                say("variants", rung=name, variant=variant, error="no time left")
                continue
            try:
                one(args, name, int(batch), int(micro), variant, eager)
            except Exception as error:
                import traceback

                traceback.print_exc()
                say(
                    "variants",
                    rung=name,
                    variant=variant,
                    error=f"{type(error).__name__}: {str(error)[:400]}",
                )
                free()


if __name__ == "__main__":
    main_guard("variants", run)
