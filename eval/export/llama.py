"""OLMo's configuration and weights as those of a LLaMA, and back: tables, nothing written.

    check_llama_shaped(model)                  # `model`: the engine's ModelConfig as plain values
    config, tensors = llama_config(model), llama_weights(model, state)

Every field of ModelConfig stands in one of three tables: REQUIRED (LLaMA has one value of it),
TRANSLATED, or WITHOUT_EFFECT. A field in none of them, as of a newer engine, is refused by name.
Lines in brackets are of ai2-olmo 0.6.0's model.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from data_injection.errors import ConfigError

Tensors = dict[str, torch.Tensor]

REQUIRED: dict[str, tuple[tuple[Any, ...], str]] = {
    "activation_type": (("swiglu",), "LLaMA's MLP is silu(gate) * up"),
    "alibi": ((False,), "LLaMA adds nothing to its attention scores"),
    "attention_layer_norm": ((False,), "LLaMA has no norm of queries and keys"),
    "bias_for_layer_norm": ((False, None), "LLaMA's norms have no bias"),
    "block_type": (("sequential",), "the weights of the engine's other block have other names"),
    "clip_qkv": ((None,), "LLaMA does not clip queries, keys and values"),
    "embedding_layer_norm": ((False,), "LLaMA has no norm of the embedding"),
    "include_bias": ((False,), "LLaMA's head has no bias"),
    "layer_norm_type": (("rms",), "LLaMA's norms are root mean squares"),
    "layer_norm_with_affine": ((True,), "LLaMA's norms have gains"),
    "norm_after": ((False,), "LLaMA's norms come before attention and MLP"),
    "rope": ((True,), "LLaMA knows no other positions"),
    "scale_logits": ((False,), "LLaMA does not scale its logits"),
}
"""Field: the values that LLaMA can compute, the one to write first, and why no other."""

TRANSLATED = (
    *("d_model", "n_heads", "n_kv_heads", "multi_query_attention", "n_layers", "mlp_ratio"),
    *("mlp_hidden_size", "block_group_size", "rope_theta", "layer_norm_eps"),
    *("max_sequence_length", "vocab_size", "embedding_size", "weight_tying", "eos_token_id"),
    "pad_token_id",
)

WITHOUT_EFFECT = {
    "alibi_bias_max": "there is no ALiBi",
    "attention_dropout": "training alone",
    "attention_layer_norm_with_affine": "there is no norm of queries and keys",
    "embedding_dropout": "training alone",
    "emb_init_std": "the first weights alone",
    "flash_attention": "another kernel for the same attention",
    "init_cutoff_factor": "the first weights alone",
    "init_device": "the first weights alone",
    "init_fn": "the first weights alone",
    "init_std": "the first weights alone",
    "precision": "that of training; weights are kept and compared in fp32",
    "residual_dropout": "training alone",
    "rope_full_precision": "in fp32 both are the same; LLaMA turns in the weights' own precision",
    "scale_emb_init": "the first weights alone",
}
"""Field: why it can have any value."""

Module = tuple[dict[str, str], str]
"""LLaMA's modules, each with its rows, that the engine holds one after the other in one; and its
columns, "" for a gain."""

TOP: dict[str, Module] = {
    "wte": ({"model.embed_tokens": "vocabulary"}, "width"),
    "ln_f": ({"model.norm": "width"}, ""),
    "ff_out": ({"lm_head": "vocabulary"}, "width"),
}

LAYER: dict[str, Module] = {
    "att_proj": (
        {"self_attn.q_proj": "width", "self_attn.k_proj": "kv", "self_attn.v_proj": "kv"},
        "width",
    ),
    "attn_out": ({"self_attn.o_proj": "width"}, "width"),
    "ff_proj": ({"mlp.up_proj": "mlp", "mlp.gate_proj": "mlp"}, "width"),  # silu of gate [363]
    "ff_out": ({"mlp.down_proj": "width"}, "mlp"),
    "attn_norm": ({"input_layernorm": "width"}, ""),
    "ff_norm": ({"post_attention_layernorm": "width"}, ""),
}
"""By the engine's module in a block. Both turn the halves of a head in RoPE [298], so that no row
changes its place."""

LLAMA_REQUIRED: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "model_type": (None, ("llama",), "another architecture"),
    "hidden_act": ("silu", ("silu", "swish"), "the engine's SwiGLU is silu(gate) * up"),
    "attention_bias": (False, (False,), "biases are not exported, so none are read"),
    "mlp_bias": (False, (False,), "biases are not exported, so none are read"),
    "quantization_config": (None, (None,), "its weights are not numbers one by one"),
    "rope_scaling": (None, (None,), "the engine's RoPE knows theta alone"),
}
"""Key of config.json: its value where it is absent, the values OLMo can compute, and why."""

LLAMA_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "vocab_size",
)
"""Keys of config.json without which nobody knows the model."""


@dataclass(frozen=True)
class Weight:
    """One matrix or gain of the engine and the parts of it that LLaMA names."""

    olmo: str
    llama: tuple[str, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    """Empty for a gain."""


def check_llama_shaped(model: Mapping[str, Any]) -> None:
    """Raise ConfigError naming every field of the engine's that LLaMA cannot compute."""
    problems = []
    for name, value in model.items():
        if name in REQUIRED:
            allowed, reason = REQUIRED[name]
            if value not in allowed:
                problems.append(f"model.{name} is {value!r}, must be {allowed[0]!r}: {reason}")
        elif name not in TRANSLATED and name not in WITHOUT_EFFECT:
            problems.append(f"model.{name} is {value!r}: a field this release does not know")
    if problems:
        rule = (
            "is not LLaMA-shaped, so no stock architecture of transformers would compute the same:"
        )
        rule = "\n  ".join([rule, *problems])
        remedy = (
            "evaluate it with `olmo-ext eval`, or train one of that shape (configs/olmo_4M_to_4B)"
        )
        raise ConfigError(key="the model", rule=rule, remedy=remedy)


def llama_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of LlamaForCausalLM for a checked model.

    BOS is null (transformers would take 1) and so is padding (its embedding would never be trained
    again): both are the tokenizer's and generation's business.
    """
    heads, rows = model["n_heads"], _embeddings(model)
    theta = float(model["rope_theta"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model["d_model"],
        "intermediate_size": _mlp_width(model),
        "num_hidden_layers": model["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": _kv_heads(model),
        "head_dim": model["d_model"] // heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": model["max_sequence_length"],
        "rms_norm_eps": model["layer_norm_eps"],
        "rope_theta": theta,  # as transformers 4 reads it
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": model["weight_tying"],
        "vocab_size": rows,
        "bos_token_id": None,
        "eos_token_id": model["eos_token_id"] if model["eos_token_id"] < rows else None,
        "pad_token_id": None,
    }


def olmo_config(config: Mapping[str, Any], saved: Mapping[str, Any] | None) -> dict[str, Any]:
    """The engine's ModelConfig as plain values for a LLaMA's config.json.

    Args:
        config: config.json as transformers 4 or 5 writes it.
        saved: the ModelConfig it was exported from, which is given back as it was if it still means
            the same; None for a stranger's LLaMA.

    Raises:
        ConfigError: OLMo cannot compute this LLaMA; names key, value and reason.
    """
    found = _read_llama_config(config)
    if saved is not None:
        check_llama_shaped(saved)
        before = llama_config(saved)
        if all(before[name] == value for name, value in found.items()):
            return dict(saved)
    eos = found["eos_token_id"]
    return {name: allowed[0] for name, (allowed, _) in REQUIRED.items()} | {
        "d_model": found["hidden_size"],
        "n_heads": found["num_attention_heads"],
        "n_kv_heads": found["num_key_value_heads"],
        "n_layers": found["num_hidden_layers"],
        "mlp_hidden_size": 2 * found["intermediate_size"],
        "rope_theta": int(found["rope_theta"]),
        "layer_norm_eps": found["rms_norm_eps"],
        "max_sequence_length": found["max_position_embeddings"],
        "vocab_size": found["vocab_size"],
        "embedding_size": found["vocab_size"],
        "weight_tying": found["tie_word_embeddings"],
        "eos_token_id": found["vocab_size"] - 1 if eos is None else eos,
        "pad_token_id": found["vocab_size"] - 1 if eos is None else eos,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
    }


def _read_llama_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that decide what a LLaMA computes, with transformers' defaults, checked."""
    problems = [
        f"{key} is {config.get(key, default)!r}, must be {allowed[0]!r}: {reason}"
        for key, (default, allowed, reason) in LLAMA_REQUIRED.items()
        if config.get(key, default) not in allowed
    ]
    if problems:
        rule = "\n  ".join(["is of no LLaMA that OLMo computes:", *problems])
        raise ConfigError(key="config.json", rule=rule)
    if missing := [key for key in LLAMA_SIZES if key not in config]:
        rule = f"lacks {', '.join(missing)}"
        raise ConfigError(key="config.json", rule=rule, remedy="is it of a LLaMA?")
    rope = config.get("rope_parameters") or {}
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))
    width, heads = config["hidden_size"], config["num_attention_heads"]
    found = {key: config[key] for key in LLAMA_SIZES} | {
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or width // heads,
        "max_position_embeddings": config.get("max_position_embeddings", 2048),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "eos_token_id": config.get("eos_token_id", 2),
    }
    for wrong, what in (
        (rope.get("rope_type", "default") != "default", f"rope_parameters are {rope}"),
        (theta != int(theta), f"rope_theta is {theta}, and the engine's is a whole number"),
        (found["head_dim"] * heads != width, f"head_dim is {found['head_dim']}, not width / heads"),
        (isinstance(found["eos_token_id"], list), "eos_token_id is a list"),
    ):
        if wrong:
            raise ConfigError(key="config.json", rule=f"is of no LLaMA that OLMo computes: {what}")
    return found


def llama_weights(model: Mapping[str, Any], state: Tensors) -> Tensors:
    """The engine's state dict under LLaMA's names, every number as it is.

    Raises ConfigError if a tensor is missing, not expected or of another shape.
    """
    weights = list(_weights(model))
    _check(state, {w.olmo: (sum(w.rows), *w.columns) for w in weights}, what="model.pt")
    tensors: Tensors = {}
    for weight in weights:
        parts = state[weight.olmo].split(weight.rows)
        # Cloned where they are slices of one tensor: a file of tensors shares no memory.
        copies = [part.clone() for part in parts] if len(parts) > 1 else parts
        tensors |= zip(weight.llama, copies, strict=True)
    return tensors


def olmo_weights(model: Mapping[str, Any], tensors: Tensors) -> Tensors:
    """A LLaMA's tensors as the engine's state dict, every number as it is.

    Raises ConfigError if a tensor is missing, not expected or of another shape.
    """
    weights = list(_weights(model))
    expected = {
        name: (rows, *w.columns)
        for w in weights
        for name, rows in zip(w.llama, w.rows, strict=True)
    }
    _check(tensors, expected, what="model.safetensors")
    return {w.olmo: torch.cat([tensors[name] for name in w.llama]) for w in weights}


def _weights(model: Mapping[str, Any]) -> Iterator[Weight]:
    """All weights of a model in the engine's order."""
    width, group = model["d_model"], model.get("block_group_size", 1)
    kv = width // model["n_heads"] * _kv_heads(model)
    size = {"width": width, "kv": kv, "mlp": _mlp_width(model), "vocabulary": _embeddings(model)}

    def weight(olmo: str, prefix: str, module: Module) -> Weight:
        parts, columns = module
        return Weight(
            f"transformer.{olmo}.weight",
            tuple(f"{prefix}{part}.weight" for part in parts),
            tuple(size[rows] for rows in parts.values()),
            (size[columns],) if columns else (),
        )

    for name, module in TOP.items():
        if name != "ff_out" or not model["weight_tying"]:
            yield weight(name, "", module)
    for layer in range(model["n_layers"]):
        block = f"block_groups.{layer // group}.{layer % group}" if group > 1 else f"blocks.{layer}"
        for name, module in LAYER.items():
            yield weight(f"{block}.{name}", f"model.layers.{layer}.", module)


def _check(tensors: Tensors, expected: dict[str, tuple[int, ...]], *, what: str) -> None:
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is not expected" for name in tensors if name not in expected]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, its configuration says {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        rule = f"does not fit its configuration: {'; '.join(problems[:3])}{more}"
        raise ConfigError(key=what, rule=rule, remedy="take both from one checkpoint")


def _embeddings(model: Mapping[str, Any]) -> int:
    """Rows of the embedding: the vocabulary, often padded to a multiple of 128 [1102]."""
    return model["embedding_size"] or model["vocab_size"]


def _mlp_width(model: Mapping[str, Any]) -> int:
    """Of one of the two halves, up and gate; `mlp_hidden_size` is of both [454]."""
    return (model["mlp_hidden_size"] or model["mlp_ratio"] * model["d_model"]) // 2


def _kv_heads(model: Mapping[str, Any]) -> int:
    """As ModelConfig.effective_n_kv_heads, which has refused settings that disagree."""
    if model["n_kv_heads"] is not None:
        return model["n_kv_heads"]
    return 1 if model.get("multi_query_attention") else model["n_heads"]
