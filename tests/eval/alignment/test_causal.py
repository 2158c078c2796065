"""Patching and ablation point at the parts that do the work, and read what the engine computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from refusals import refuses
from torch import nn

from data_injection.errors import ConfigError, DivergedError
from data_injection.tasks.base import Task
from eval.alignment.causal import causal_effects
from eval.alignment.das import chosen_labels
from eval.alignment.interventions import (
    Site,
    label_logits,
    num_blocks,
    patched,
    read_states,
    starting_at,
)
from eval.features.activations import residual_stream

Make = Callable[..., nn.Module]

PLACE = ["variable", "component", "layer", "position"]


@pytest.fixture
def effects(planted: Make, ranks: Task) -> pd.DataFrame:
    return pd.DataFrame(causal_effects(planted(ranks), ranks, seed=0))


# What block 1's attention moves and block 2's MLP combines; (variable, component, layer, position).
CARRIERS = {
    ("tok1", "residual", 0, 0), ("tok1", "residual", 1, 1), ("tok1", "residual", 2, 1),
    ("tok1", "attention", 1, 1), ("tok1", "mlp", 2, 1),
    ("tok2", "residual", 0, 1), ("tok2", "residual", 1, 1), ("tok2", "residual", 2, 1),
    ("tok2", "mlp", 2, 1),
}  # fmt: skip


@pytest.mark.parametrize("metric", ["causal_share", "causal_recovered"])
def test_patching_carries_the_answer_at_the_planted_places_and_nowhere_else(
    effects: pd.DataFrame, metric: str
) -> None:
    values = effects[(effects.metric == metric) & (effects.subset == "all")]
    values = values.set_index(PLACE).value
    assert {place for place, value in values.items() if value > 0.5} == CARRIERS
    np.testing.assert_allclose(values[values > 0.5], 1, atol=1e-5)
    np.testing.assert_allclose(values[values <= 0.5], 0, atol=1e-5)
    # Every place but those before the operand's own token.
    assert len(values) == 2 * (3 + 2 + 2) + (3 + 2 + 2)


def test_only_the_parts_that_carry_something_are_missed(effects: pd.DataFrame) -> None:
    drops = effects[effects.metric == "ablation_drop"]
    drops = drops.set_index(["component", "layer", "position"])
    missed = set(drops.index[drops.value > 0])
    assert missed == {("attention", 1, 1), ("mlp", 2, 1)}
    assert (drops.intact == 1).all()
    assert (drops.low[drops.value > 0] > 0).all()


def test_the_interval_holds_the_value_and_a_right_model_answers_all(effects: pd.DataFrame) -> None:
    assert (effects.low <= effects.value + 1e-9).all()
    assert (effects.value <= effects.high + 1e-9).all()
    patched_rows = effects[effects.metric == "causal_share"]
    both = patched_rows.pivot_table(index=PLACE, columns="subset", values="n")
    assert (both["all"] == both["answered"]).all()


# -- on the engine's own model ---------------------------------------------------------------------


def olmo(**settings: object) -> nn.Module:
    from olmo.config import ModelConfig
    from olmo.model import OLMo

    config = ModelConfig(
        d_model=16, n_heads=2, n_layers=3, mlp_ratio=4, rope=True, flash_attention=False,
        vocab_size=64, embedding_size=64, max_sequence_length=8, include_bias=False,
        init_device="cpu", attention_dropout=0.0, residual_dropout=0.0, embedding_dropout=0.0,
        init_fn="normal", init_std=0.3, weight_tying=False,
    )  # fmt: skip
    for name, value in settings.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return OLMo(config).eval()


IDS_BT = torch.tensor([[5, 9], [8, 3], [60, 61]])


@pytest.mark.parametrize("norm_after", [False, True])
def test_attention_and_mlp_add_up_to_the_residual_stream(norm_after: bool) -> None:
    model = olmo(norm_after=norm_after)
    sites = [Site(layer, 1) for layer in range(4)]
    parts = [Site(layer, 1, part) for layer in (1, 2, 3) for part in ("attention", "mlp")]
    states = read_states(model, IDS_BT, [*sites, *parts])
    stream_LBD = torch.stack([states[site] for site in sites])
    torch.testing.assert_close(stream_LBD, residual_stream(model, IDS_BT))
    for layer in (1, 2, 3):
        added = sum(states[Site(layer, 1, part)] for part in ("attention", "mlp"))
        torch.testing.assert_close(stream_LBD[layer], stream_LBD[layer - 1] + added)


@pytest.mark.parametrize("site", [Site(0, 0), Site(2, 1), Site(1, 1, "mlp"), Site(2, 0, "mlp")])
def test_a_patch_with_the_models_own_state_changes_nothing_and_with_another_something(
    site: Site,
) -> None:
    model, labels_L = olmo(), torch.arange(64)
    own = read_states(model, IDS_BT, [site])[site]
    plain = label_logits(model, IDS_BT, labels_L)
    with patched(model, site, lambda hidden_BD: own):
        torch.testing.assert_close(label_logits(model, IDS_BT, labels_L), plain)
    with patched(model, site, lambda hidden_BD: own.flip(0)):
        assert not torch.allclose(label_logits(model, IDS_BT, labels_L), plain)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("weight_tying", [False, True])
@pytest.mark.parametrize("site", [Site(0, 0), Site(1, 1), Site(3, 1)])
def test_what_starts_behind_a_block_answers_as_the_whole_model_with_that_state(
    site: Site, weight_tying: bool
) -> None:
    """And has the same gradient, which is what a search follows."""
    model, labels_L = olmo(weight_tying=weight_tying), torch.tensor([40, 3, 7])
    places = [Site(site.layer, position) for position in range(2)]
    states = read_states(model, IDS_BT, places)
    change_BD = states[site].flip(0).requires_grad_()
    with patched(model, site, lambda hidden_BD: change_BD):
        whole_BL = label_logits(model, IDS_BT, labels_L)
    (slow_BD,) = torch.autograd.grad(whole_BL.logsumexp(-1).sum(), change_BD)
    given = states | {site: change_BD}
    blocks, head = model.transformer.blocks, dict(model.transformer.named_children())
    with starting_at(model, site.layer, labels_L) as logits:
        tail_BL = logits(torch.stack([given[place] for place in places], dim=1))
    torch.testing.assert_close(tail_BL, whole_BL)
    (fast_BD,) = torch.autograd.grad(tail_BL.logsumexp(-1).sum(), change_BD)
    torch.testing.assert_close(fast_BD, slow_BD)
    assert model.transformer.blocks is blocks
    assert dict(model.transformer.named_children()) == head


@pytest.mark.parametrize("weight_tying", [False, True])
def test_label_logits_are_those_of_the_whole_vocabulary(weight_tying: bool) -> None:
    model, labels_L = olmo(weight_tying=weight_tying), torch.tensor([40, 3, 7])
    whole = model(IDS_BT, last_logits_only=True).logits[:, -1]
    torch.testing.assert_close(label_logits(model, IDS_BT, labels_L), whole[:, labels_L])
    assert model(IDS_BT, last_logits_only=True).logits.shape[-1] == 64


def test_blocks_in_groups_are_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        num_blocks(olmo(n_layers=4, block_group_size=2))
    assert refused.value.key == "train.model.block_group_size"


def test_a_diverged_model_is_refused(planted: Make, ranks: Task) -> None:
    model = planted(ranks)
    next(model.parameters()).data[:] = torch.nan
    told = {"key": "the model's logits", "rule": "diverged", "kind": DivergedError}
    with refuses(**told):
        causal_effects(model, ranks, seed=0)
    with refuses(**told):
        chosen_labels(model, ranks, ranks.test)
