"""By which kernels a step is computed: precision, train.compile, fused_optimizer: true.

    check_kernels(experiment)                           # before any work

Blocks are compiled one by one and in place, as the engine's own script does: parameters keep their
names. Callbacks' passes run them as they are (`uncompiled`): for rows of other shapes torch
compiles again, for any size, and on a CPU that failed (torch 2.13, g++).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from data_injection.errors import ConfigError, check_equal
from olmo_ext.numerics.chunked_loss import chunk_loss

if TYPE_CHECKING:
    from olmo.config import TrainConfig
    from olmo.model import OLMo

    from olmo_ext.config import ExperimentConfig


def check_kernels(experiment: ExperimentConfig) -> None:
    """Raise ConfigError for what the engine or torch would not compile, or not fuse."""
    train, optimizer = experiment.train, experiment.train.optimizer
    if experiment.bf16_on_cpu and train.precision == "fp32":
        rule = "allows bf16 without a GPU and does nothing in train.precision=fp32"
        remedy = "set train.precision=amp_bf16, or bf16_on_cpu=false"
        raise ConfigError(key="bf16_on_cpu", value=True, rule=rule, remedy=remedy)
    if train.compile is not None:
        settings = [("train.model.block_group_size", train.model.block_group_size, 1)]
        if train.distributed_strategy == "fsdp" and train.fsdp is not None:
            settings += [("train.fsdp.use_orig_params", train.fsdp.use_orig_params, True)]
        check_equal(" with train.compile, as the engine asks", *settings)
        if (mode := str(train.compile.mode)).startswith("max-autotune"):
            why = f" with train.compile.mode={mode}, which chooses kernels by the clock"
            check_equal(why, ("deterministic", experiment.deterministic, False))
    if experiment.fused_optimizer:
        why = " with fused_optimizer=true, a kernel of torch's AdamW"
        check_equal(why, ("train.optimizer.name", str(optimizer.name), "adamw"))
        why = " with fused_optimizer=true: the engine's own step (optim.py:522) takes over, unfused"
        for name in ("selective_updates", "record_update_metrics"):
            check_equal(why, (f"train.optimizer.{name}", getattr(optimizer, name), False))


def check_compiler(settings: dict[str, Any], device: torch.device) -> None:
    """Compile a line: whether there is a compiler, and such a backend and mode, torch knows."""
    try:
        torch.compile(lambda x: x.sin() + 1, **settings)(torch.ones(8, device=device))
    except RuntimeError as error:
        why = next(filter(str.strip, str(error).splitlines()), type(error).__name__)
        rule = f"cannot compile on this machine ({why})"
        remedy = "install a C++ compiler (g++), correct the setting, or set train.compile=null"
        raise ConfigError(key="train.compile", value=settings, rule=rule, remedy=remedy) from error
    torch.compiler.reset()  # what this process has compiled before shall not matter


def has_flash_attention() -> bool:
    """Whether attention can run in the flash-attn package here: it imports, and there is CUDA.

    `train.model.flash_attention: ${flash_attn_available:}` asks for it. The engine falls back where
    the import fails, but on a CPU it would call the package and fail in the first step.
    """
    if not torch.cuda.is_available():
        return False
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        return False
    return True


def compile_blocks(model: OLMo, train: TrainConfig) -> None:
    """Before the model is wrapped, as in the engine's scripts/train.py."""
    if train.compile is not None:
        for block in model.transformer.blocks:
            block.compile(**train.compile.asdict())


def uncompiled(train: TrainConfig) -> AbstractContextManager[Any]:
    """Within, compiled blocks run as they are."""
    return nullcontext() if train.compile is None else torch.compiler.set_stance("force_eager")


def computing_as_asked(trainer: Any, experiment: ExperimentConfig) -> Any:
    """A trainer whose steps are computed as the experiment's own settings say; returns it."""
    if experiment.fused_optimizer:
        fuse(trainer.optim)
    if experiment.train.precision != "fp32" and trainer.device.type == "cpu":
        # As autocast does on CUDA; a CPU's leaves log_softmax in bf16, of steps of 1/32 at 8.
        stock = trainer.loss_fn
        trainer.loss_fn = lambda logits, *args, **kwargs: stock(logits.float(), *args, **kwargs)
    return chunk_loss(trainer) if experiment.chunked_loss else trainer


def fuse(optim: torch.optim.Optimizer) -> None:
    """Let AdamW take its step in one kernel, also after a checkpoint of one that did not."""

    def fused(groups: list[dict[str, Any]]) -> None:
        for group in groups:
            group["fused"], group["foreach"] = True, False

    fused(optim.param_groups)
    # load_state_dict then moves the counts of steps to the device, where the kernel wants them.
    optim.register_load_state_dict_pre_hook(lambda _, state: fused(state["param_groups"]))
