"""What of OLMo-core 3.0.0 is used, and the ways around its warts.

Beside ai2-olmo 0.6.0 stands ai2-olmo-core 0.1.0, which has the same import name and none of this.
The modules of this folder import there too, so that tools may list them, and refuse to work.
"""

from __future__ import annotations

from typing import Any

from data_injection.errors import ConfigError

try:
    from olmo_core.data import NumpyFSLDataLoader
    from olmo_core.data.composable import ComposableDataLoader, ShuffleStrategy
    from olmo_core.data.utils import get_labels
    from olmo_core.nn.transformer import TransformerConfig
    from olmo_core.optim import SkipStepOptimizer
    from olmo_core.train.callbacks import (
        BatchSizeSchedulerCallback,
        Callback,
        SequenceLengthSchedulerCallback,
    )
    from olmo_core.train.train_module import TransformerTrainModule
    from olmo_core.utils import move_to_device

    MISSING = ""
except ImportError as error:
    MISSING = str(error)
    NumpyFSLDataLoader = ComposableDataLoader = Callback = object
    ShuffleStrategy = get_labels = SkipStepOptimizer = TransformerTrainModule = move_to_device = (
        None
    )
    TransformerConfig = BatchSizeSchedulerCallback = SequenceLengthSchedulerCallback = None


def require_core() -> None:
    """Raise ConfigError where OLMo-core 3 is not installed."""
    if MISSING:
        remedy = "`pip install '.[core]'` in an environment without ai2-olmo, which pins another "
        remedy += "version of it"
        rule = f"needs ai2-olmo-core 3.0.0 ({MISSING})"
        raise ConfigError(key="olmo_ext.core", rule=rule, remedy=remedy)


def kept(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    """A batch for later, on the device.

    Wart: train_batch takes "input_ids" and "labels" out of the dict it is given where it is one
    micro-batch (train_module.py, _prepare_batch). Goes when it copies.
    """
    return move_to_device(dict(batch), device)


def resharded(model: Any) -> None:
    """Let FSDP2 hold shards again.

    Wart: after a forward pass without a backward one the root keeps its parameters whole; what then
    looks at `.parameters()` sees others than the optimizer's. Goes when FSDP2 reshards its root.
    """
    for module in model.modules():
        if hasattr(module, "reshard") and hasattr(module, "unshard"):
            module.reshard()


def plain_name(name: str) -> str:
    """A parameter's name without what torch.compile and activation checkpointing put into it."""
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")
