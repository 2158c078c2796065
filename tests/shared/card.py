"""A card without a card: tensors that say "cuda", compute on the CPU, and mix with no other.

    with card():
        model = on_card(model)
        model(ids.to("cuda"))                  # a CPU tensor among its own raises Mixed

What CUDA allows is allowed: numbers of no dimension, and indices that live on the CPU. torch's CPU
build has fake CUDA tensors too (FakeTensorMode), but neither their numbers nor their gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda")
INDEXED = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default}
MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Mixed(RuntimeError):
    """A tensor of the CPU among those of the card: on CUDA the step would have ended here."""


class Card(torch.Tensor):
    """A tensor of the card around one of the CPU, which autograd sees."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Card:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=inner.device,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner.detach()
        return made

    def __repr__(self, **settings: Any) -> str:  # type: ignore[override]
        return f"Card({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            plain = isinstance(leaf, torch.Tensor) and not isinstance(leaf, Card)
            if plain and leaf.dim() and func not in INDEXED | MOVES:
                raise Mixed(f"{func} has a tensor of the CPU, {tuple(leaf.shape)}")
        inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
        out = tree_map(_outer, func(*inner_args, **inner_kwargs))
        return return_and_correct_aliasing(func, args, kwargs, out)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Card) else value


def _outer(value: Any) -> Any:
    return Card(value) if isinstance(value, torch.Tensor) else value


class _Move(torch.autograd.Function):
    """To the card or back, with the gradient the other way."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, there: bool) -> torch.Tensor:
        ctx.there = there
        return Card(value.detach().clone()) if there else _inner(value).clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (_inner(grad) if ctx.there else _outer(grad)), None


def _attention(
    q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False
) -> Any:
    """torch's own makes its mask on the device that autograd sees, the CPU."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if is_causal:
        hidden = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(Card(hidden), -torch.inf)
    return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ v


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class _Devices(TorchFunctionMode):
    """What asks for a device, or for a tensor's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return CUDA if isinstance(first, Card) else func(*args, **kwargs)
        if func == torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return isinstance(first, Card)
        if func in (torch.Tensor.cpu, torch.Tensor.cuda, torch.Tensor.to):
            return self._moved(func, first, args[1:], kwargs)
        if func is F.scaled_dot_product_attention and isinstance(first, Card):
            return _attention(*args, **kwargs)
        if func is torch.Tensor.tolist:
            return _inner(first).tolist()
        if _is_cuda(kwargs.get("device")) and not isinstance(first, Card):
            return _outer(func(*args, **kwargs | {"device": "cpu"}))
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)

    def _moved(self, func: Any, value: torch.Tensor, rest: Any, kwargs: Any) -> Any:
        devices = [a for a in (*rest, kwargs.get("device")) if isinstance(a, str | torch.device)]
        there = func is torch.Tensor.cuda or any(map(_is_cuda, devices))
        named = func is not torch.Tensor.to or bool(devices)
        rest = [a for a in rest if not isinstance(a, str | torch.device)]
        kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking")}
        if named and there != isinstance(value, Card):
            value = _Move.apply(value, there)
        return value.to(*rest, **kwargs) if func is torch.Tensor.to and (rest or kwargs) else value


@contextmanager
def card() -> Iterator[None]:
    with _Devices():
        yield


def on_card(model: torch.nn.Module) -> torch.nn.Module:
    """A model's own parameters and buffers, moved."""
    for module in model.modules():
        for name, weights in module._parameters.items():
            if weights is not None:
                module._parameters[name] = torch.nn.Parameter(Card(weights.detach().clone()))
        for name, values in module._buffers.items():
            module._buffers[name] = None if values is None else Card(values)
    return model
