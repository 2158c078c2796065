"""The study's sizes in OLMo-core's own config style: configs/olmo_4M_to_4B without its optimizer.

ladder("20M").build(init_device="meta").num_params
"""

from __future__ import annotations

from typing import Any

from data_injection.errors import ConfigError
from olmo_ext.core.compat import TransformerConfig, require_core

RUNGS = {
    "4M": (64, 8, 8),
    "20M": (192, 16, 8),
    "300M": (1024, 16, 16),
    "1B": (2048, 16, 16),
    "4B": (3840, 16, 30),
}
"""Width, blocks and heads."""


def ladder(rung: str, *overrides: str, vocab_size: int = 50_304, **settings: Any) -> Any:
    """A TransformerConfig of one size: pre-norm blocks, RMS norms, SwiGLU of width 4 d_model, RoPE.

    Args:
        overrides: dotted, as OLMo-core's scripts take them: "block.feed_forward.hidden_size=512".
        vocab_size: rows of the embedding, padded.
        settings: of `TransformerConfig.llama_like`, such as attn_backend.
    """
    require_core()
    if rung not in RUNGS:
        raise ConfigError(key="rung", value=rung, rule=f"must be one of {', '.join(RUNGS)}")
    d_model, n_layers, n_heads = RUNGS[rung]
    shape = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads}
    # llama_like's MLP is 8/3 d_model wide: times 3/2, and up to the next multiple.
    width = {"hidden_size_multiplier": 1.5, "hidden_size_multiple_of": 64}
    config = TransformerConfig.llama_like(
        vocab_size=vocab_size, **shape, **width, rope_theta=10_000, layer_norm_eps=1e-6, **settings
    )
    try:
        return config.merge(list(overrides))
    except Exception as error:  # of many kinds
        rule = "must be dotted fields of a TransformerConfig with their values"
        raise ConfigError(key="overrides", value=overrides, rule=f"{rule} ({error})") from error
