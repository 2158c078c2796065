"""A checkpoint of OLMo-core 3, stepN/ with config.json and model_and_optim/, as a model to ask.

    logits = core_logits("run/step100")
    logits(input_ids_BT, keep=1)                     # (B, 1, V), of the last position

config.json is what its ConfigSaverCallback writes: `{"model": config.as_config_dict(), ...}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data_injection.errors import ConfigError
from eval.checkpoints.sharded import RESTORE, first_line, read_sharded
from eval.run import read_object

CONFIG = "config.json"

HF = "convert it with its convert_checkpoint_to_hf and give the folder of transformers"


def core_config(path: Path) -> dict[str, Any]:
    """The model in a checkpoint's config.json; ConfigError if it has none, or asks for code."""
    model = dict(read_object(path / CONFIG)).get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab_size"), int):
        rule = "has no model; it is of OLMo-core 2 or later where its ConfigSaverCallback was "
        rule += 'given {"model": config.as_config_dict()}'
        raise ConfigError(key=f"{path}/{CONFIG}", rule=rule, remedy=f"otherwise {HF}")
    # OLMo-core imports what stands there.
    named = re.findall(r'"_CLASS_": "([^"]*)"', json.dumps(model))
    if foreign := [name for name in named if not name.startswith("olmo_core.")]:
        rule = f"asks for {foreign[0]}, which is not OLMo-core's"
        raise ConfigError(key=f"{path}/{CONFIG}", rule=rule, remedy=HF)
    return model


def core_logits(path: Path, *, device: str = "cpu") -> Callable[..., torch.Tensor]:
    """The model in fp32 with torch's attention: from input_ids_BT to logits, of all or `keep`.

    Raises ConfigError where OLMo-core 3 is not installed, or the files are not of one model.
    """
    try:
        from olmo_core.config import DType
        from olmo_core.nn.attention import AttentionBackendName
        from olmo_core.nn.transformer import TransformerConfig
    except ImportError:
        rule = "is a checkpoint of OLMo-core 2 or later; it is read where ai2-olmo-core 3 is "
        rule += "installed, which excludes ai2-olmo (docs/olmo_core.md)"
        raise ConfigError(key=path, rule=rule, remedy=f"here {HF}") from None

    def in_fp32(part: Any) -> None:
        if hasattr(part, "dtype"):
            part.dtype = DType.float32
        if hasattr(part, "backend"):  # the others take half precision alone
            part.backend, part.use_flash = AttentionBackendName.torch, None

    saved = core_config(path)
    try:
        config = TransformerConfig.from_dict(saved)
        config.apply(in_fp32)
        model = config.build(init_device="meta")
    except Exception as error:  # of many kinds
        rule = f"is no model of OLMo-core: {first_line(error)}"
        raise ConfigError(key=f"{path}/{CONFIG}", rule=rule, remedy=RESTORE) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    state = read_sharded(path, "torch_new", shapes)
    model.load_state_dict({name: one.float() for name, one in state.items()}, assign=True)
    # The weights go on asking for gradients, as in training and in transformers: torch multiplies
    # by those that do not in another order.
    model.to(device).eval()
    return torch.no_grad()(lambda ids_BT, keep=0: model(ids_BT.to(device), logits_to_keep=keep))
