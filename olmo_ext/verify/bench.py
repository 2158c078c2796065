"""How fast is this machine: stock's trainer and ours in turns, on an experiment's own model.

    told = bench(TrialRuns(folder, experiment=path, rows=num_rows(40, 8)), steps=40, seconds=9, ...)

Turns of a few steps share the card's clocks and whatever else the machine does, so that the ratio
says more than either time.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from statistics import median
from typing import Any

import torch

from olmo_ext.verify.runs import Stepper, TrialRuns, free, ours, stock

BLOCK = 5
"""Steps of one trainer before the other's turn."""

WARM = 3
"""Steps of each before the clock counts: kernels are chosen, memory is taken."""


def num_rows(steps: int, batch: int) -> int:
    """Rows that each trainer reads at most, in batches of `batch`."""
    return (WARM + BLOCK + steps) * batch


def bench(
    runs: TrialRuns, *, steps: int, seconds: float, peak_tflops: float, **settings: Any
) -> dict[str, Any]:
    """Steps of both in turns, at most `steps` each and about `seconds` in all; see `turns`.

    runs: with `num_rows` rows at least. settings: of `TrialRuns.experiment`, such as
    train__global_train_batch_size. One task of one instance a step is spliced into our batches and
    none into stock's.
    """
    task = {"name": "bench", "num_symbols": 20, "schedule": {"rate": 1}}
    with ExitStack() as stack:
        free()
        both = [stock(runs.experiment("stock", steps=10 * steps, **settings))]
        settings |= {"injection__tasks": [task]}
        both.append(ours(runs.experiment("ours", steps=10 * steps, **settings), stack))
        return turns(*both, steps=steps, seconds=seconds, peak_tflops=peak_tflops)


def turns(
    a: Any, b: Any, *, steps: int, seconds: float, peak_tflops: float
) -> dict[str, float | int]:
    """Medians of the steps of stock's trainer `a` and ours `b`.

    Returns: card ("" on a CPU); steps of each; stock_s, ours_s a step; ratio, the median over pairs
    of ours over stock's; tokens/s of each; FLOPs a token as the engine counts, both ways;
    our MFU of `peak_tflops`; peak memory of both on the card, GB (0 without one); last losses.
    """
    steppers = Stepper(a), Stepper(b)
    for stepper in steppers:
        for _ in range(WARM):
            stepper.step(timed=False)
    free()
    until = time.monotonic() + seconds
    for number in range(max(steps // BLOCK, 1)):
        for stepper in steppers if number % 2 else steppers[::-1]:
            for _ in range(min(BLOCK, steps)):
                stepper.step()
        if time.monotonic() > until:
            break
    times = [stepper.seconds for stepper in steppers]
    tokens = b.cfg.global_train_batch_size * b.cfg.model.max_sequence_length
    flops = flops_per_token(b)
    return {
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "steps": len(times[0]),
        "stock_s": median(times[0]),
        "ours_s": median(times[1]),
        "ratio": median(y / x for x, y in zip(*times, strict=True)),
        "stock_tok_s": tokens / median(times[0]),
        "ours_tok_s": tokens / median(times[1]),
        "flops_per_token": flops,
        "ours_mfu": flops * tokens / median(times[1]) / (peak_tflops * 1e12),
        "peak_gb_both": peak_gb(),
        "loss_stock": steppers[0].losses[-1],
        "loss_ours": steppers[1].losses[-1],
    }


def flops_per_token(trainer: Any) -> float:
    """The engine's own count, forward and backward."""
    return float(trainer.model.num_fwd_flops + trainer.model.num_bck_flops)


def peak_gb() -> float:
    """Of this process on the card since `free`; 0 without a card."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
