"""Read and replace what a model computes at one place, without touching its weights.

    site = Site(layer=1, position=0)
    states_BD = read_states(model, input_ids_BT, [site])[site]
    with patched(model, site, lambda hidden_BD: states_BD):
        logits_BL = label_logits(model, input_ids_BT, labels_L)

Works on an OLMo, or on any module with `transformer.blocks` whose blocks return (state, cache) and
have `attn_out` and `ff_out`. Forward hooks alone: nothing of the engine is copied.

Axes: B rows, T tokens of an example without its label, D width, V vocabulary, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from data_injection.errors import ConfigError, DivergedError
from data_injection.tasks.base import FloatArray, Task

Component = Literal["residual", "attention", "mlp"]
COMPONENTS: tuple[Component, ...] = ("residual", "attention", "mlp")

ROWS_AT_ONCE = 256
"""The engine computes the last position's logits whether wanted or not: 50 MB at this many."""


@dataclass(frozen=True)
class Site:
    """A place in a model's computation."""

    layer: int
    """Residual: 0 is the embedding's output, l the stream after block l. Attention and MLP: what
    they add to the stream in block l, counted from 1."""

    position: int
    """Token of the example, counted from 0."""

    component: Component = "residual"


def num_blocks(model: nn.Module) -> int:
    """Number of blocks; ConfigError if the model hides them in groups."""
    transformer = model.transformer
    if "blocks" not in transformer._modules:  # type: ignore[union-attr]
        rule = "must be 1 for interventions, which reach every block"
        raise ConfigError(key="train.model.block_group_size", rule=rule, remedy="train with 1")
    return len(transformer.blocks)  # type: ignore[arg-type, union-attr]


@contextmanager
def _changed(
    model: nn.Module, site: Site, change: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """While open, states_BTD that pass the site are replaced by `change` of them."""
    blocks: Any = model.transformer.blocks  # type: ignore[union-attr]

    def after(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # a block also returns its cache
            return change(output[0]), *output[1:]
        return change(output)

    if site.component == "residual" and site.layer == 0:
        handle = blocks[0].register_forward_pre_hook(
            lambda module, inputs: (change(inputs[0]), *inputs[1:])
        )
    else:
        handle = _module(blocks[site.layer - 1], site.component).register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def _module(block: Any, component: Component) -> nn.Module:
    """The module whose output is added to the stream (before dropout), or the block itself."""
    if component == "residual":
        return block
    # With norm_after the norm stands between the component and the stream (model.py:705, 733).
    norm_after = getattr(getattr(block, "config", None), "norm_after", False)
    names = {"attention": ("attn_out", "attn_norm"), "mlp": ("ff_out", "ff_norm")}
    return getattr(block, names[component][bool(norm_after)])


@torch.no_grad()
def read_states(
    model: nn.Module, input_ids_BT: torch.Tensor, sites: Sequence[Site]
) -> dict[Site, torch.Tensor]:
    """The states_BD that pass the sites, in one forward pass."""
    found: dict[Site, torch.Tensor] = {}

    def keep(site: Site) -> Callable[[torch.Tensor], torch.Tensor]:
        def note(hidden_BTD: torch.Tensor) -> torch.Tensor:
            found[site] = hidden_BTD[:, site.position].clone()
            return hidden_BTD

        return note

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(_changed(model, site, keep(site)))
        model(input_ids_BT, last_logits_only=True)
    return found


@contextmanager
def patched(
    model: nn.Module, site: Site, replace: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """While open, the state_BD at a site is `replace` of what the model computed there."""

    def change(hidden_BTD: torch.Tensor) -> torch.Tensor:
        changed_BTD = hidden_BTD.clone()
        changed_BTD[:, site.position] = replace(hidden_BTD[:, site.position])
        return changed_BTD

    with _changed(model, site, change):
        yield


@contextmanager
def _asked(
    model: nn.Module, labels_L: torch.Tensor
) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """While open, from input_ids_BT to the logits_BL of some tokens after the rows' last.

    Of an untied model only those rows of the unembedding are there: with the vocabulary of the
    ladder all others together cost more than the rest of its smallest model.
    """
    transformer: Any = model.transformer
    head = getattr(transformer, "ff_out", None)
    if head is None:  # tied: the same matrix embeds
        yield lambda ids_BT: model(ids_BT, last_logits_only=True).logits[:, -1, labels_L]
        return
    rows = {name: p if p is None else p.detach()[labels_L] for name, p in head._parameters.items()}
    transformer.ff_out = copy(head)
    transformer.ff_out._parameters = rows
    try:
        yield lambda ids_BT: model(ids_BT, last_logits_only=True).logits[:, -1]
    finally:
        transformer.ff_out = head


def label_logits(
    model: nn.Module, input_ids_BT: torch.Tensor, labels_L: torch.Tensor
) -> torch.Tensor:
    """Logits of some tokens after the rows' last, shape (B, L)."""
    with _asked(model, labels_L) as ask:
        return ask(input_ids_BT)


class _Given(nn.Module):
    """In the place of the embedding and the first blocks: their outcome."""

    states_BTD: torch.Tensor

    def forward(self, x_BTD: torch.Tensor, **options: Any) -> tuple[torch.Tensor, None]:
        return self.states_BTD, None


@contextmanager
def starting_at(
    model: nn.Module, layer: int, labels_L: torch.Tensor
) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """While open, `label_logits` of the stream's states_BTD after block `layer` (0: embedded):
    what comes before is not run again."""
    transformer: Any = model.transformer
    blocks, given = transformer.blocks, _Given()

    def logits(states_BTD: torch.Tensor) -> torch.Tensor:
        given.states_BTD = states_BTD
        return ask(torch.zeros(states_BTD.shape[:2], dtype=torch.long, device=labels_L.device))

    transformer.blocks = nn.ModuleList([given, *blocks[layer:]])
    try:
        with _asked(model, labels_L) as ask:
            yield logits
    finally:
        transformer.blocks = blocks


@torch.no_grad()
def states_at(
    model: nn.Module, inputs_NT: torch.Tensor, sites: Sequence[Site]
) -> dict[Site, torch.Tensor]:
    """`read_states` of any number of rows; each (N, D), on the model's device."""
    device = next(model.parameters()).device
    parts = [read_states(model, part.to(device), sites) for part in inputs_NT.split(ROWS_AT_ONCE)]
    return {site: torch.cat([part[site] for part in parts]) for site in sites}


@torch.no_grad()
def answers(
    model: nn.Module,
    task: Task,
    inputs_NT: torch.Tensor,
    *,
    site: Site | None = None,
    states_ND: torch.Tensor | None = None,
) -> FloatArray:
    """Logits of the task's labels, with the states at a site replaced if one is given; (N, L)."""
    device = next(model.parameters()).device
    labels_L = torch.from_numpy(task.label_tokens).to(device)
    found = []
    for start in range(0, len(inputs_NT), ROWS_AT_ONCE):
        part = inputs_NT[start : start + ROWS_AT_ONCE].to(device)
        if site is None or states_ND is None:
            found.append(check_finite(label_logits(model, part, labels_L)))
            continue
        given_BD = states_ND[start : start + ROWS_AT_ONCE]
        with patched(model, site, lambda _, given_BD=given_BD: given_BD):  # type: ignore[misc]
            found.append(check_finite(label_logits(model, part, labels_L)))
    return torch.cat(found).double().cpu().numpy()


def check_finite(logits: torch.Tensor) -> torch.Tensor:
    """A model's logits. Raises DivergedError where one is not a number: the arg max of
    NaN would count as an answer, and of such a model there is nothing to explain."""
    if not bool(torch.isfinite(logits).all()):
        rule = "are not finite: it has diverged, and there is nothing to explain"
        remedy = "choose other checkpoints with --step"
        raise DivergedError(key="the model's logits", rule=rule, remedy=remedy)
    return logits


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While open, no gradient is computed for the model's own parameters, and dropout is off."""
    asked = {parameter: parameter.requires_grad for parameter in model.parameters()}
    training = model.training
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter, flag in asked.items():
            parameter.requires_grad_(flag)
