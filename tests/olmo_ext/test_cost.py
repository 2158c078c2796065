"""A run's cost: known answers by hand, and the memory that torch itself counts."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from olmo.config import (
    DistributedStrategy,
    FSDPPrecision,
    FSDPWrapStrategy,
    ModelConfig,
    OptimizerType,
    TrainConfig,
)
from olmo.model import OLMo
from refusals import refuses
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.fsdp import ShardingStrategy
from torch.nn.attention import SDPBackend, sdpa_kernel

from launch.train import _warn_of_memory
from olmo_ext.config import load_experiment
from olmo_ext.cost import (
    Cost,
    extra_bytes,
    num_shards,
    run_cost,
    run_memory,
    too_large,
    wrapped_units,
)

LADDER = Path(__file__).parent.parent.parent / "configs" / "olmo_4M_to_4B"

TINY = ModelConfig(
    d_model=64,
    n_heads=2,
    n_layers=2,
    mlp_ratio=8,
    rope=True,
    flash_attention=False,
    attention_dropout=0.0,
    residual_dropout=0.0,
    embedding_dropout=0.0,
    layer_norm_type="rms",
    include_bias=False,
    weight_tying=False,
    max_sequence_length=128,
    vocab_size=512,
    embedding_size=512,
)


def ladder(rung: str, **settings: Any) -> TrainConfig:
    """A ladder file's train section; its corpus is not needed here."""
    tokens = LADDER / "README.md"  # any file: it is not read
    overrides = ["corpus=", f"train.data.paths=[{tokens}]"]
    overrides += [f"train.{key}={value}" for key, value in settings.items()]
    return load_experiment(LADDER / "ladder" / f"{rung}.yaml", overrides).train


def test_the_cost_of_the_4m_rung_is_as_reckoned_by_hand() -> None:
    cost = run_cost(ladder("4M"), num_steps=50_000)
    # Per layer 3 d^2 + d^2 attention, 8 d^2 + 4 d^2 MLP, two norms of d; a last norm; both
    # embeddings of 50,304 x 64.
    blocks = 8 * (16 * 64**2 + 2 * 64) + 64
    assert cost.num_params == blocks + 50_304 * 64 == 3_744_832
    assert cost.num_params_total == 6_964_288
    assert cost.num_tokens == 50_000 * 32 * 2048 == 3_276_800_000
    forward = 2 * 3_744_832 + 8 * 4 * 64 * 2048
    backward = 4 * 6_964_288 + 8 * 8 * 64 * 2048
    assert cost.flops == (forward + backward) * 3_276_800_000 == 47_929_728 * 3_276_800_000
    assert cost.flops_6nd == 6 * 3_744_832 * 3_276_800_000
    assert cost.hours == pytest.approx(47_929_728 * 3_276_800_000 / (989e12 * 0.4) / 3600)
    assert cost.hours * 3600 == pytest.approx(397, abs=1)
    # 22 bytes a parameter, and 16 rows of 2,048 tokens.
    assert cost.microbatch == 16
    assert cost.memory.state == 22 * 6_964_288
    assert cost.memory.logits == 16 * 2048 * 12 * 50_304
    assert cost.memory.activations == 16 * 2048 * 66 * 64 * 8
    assert cost.memory.total / 1e9 == pytest.approx(21.0, abs=0.05)


@pytest.mark.parametrize(("rung", "gigabytes"), [("300M", 36), ("1B", 50), ("4B", 52)])
def test_memory_on_eight_gpus_is_the_ladder_pages(rung: str, gigabytes: int) -> None:
    cost = run_cost(ladder(rung), num_steps=1, gpus=8)
    assert round(cost.memory.total / 1e9) == gigabytes


def test_more_gpus_take_less_time_and_the_same_gpu_hours() -> None:
    one, eight = (run_cost(ladder("20M"), num_steps=100, gpus=gpus) for gpus in (1, 8))
    assert eight.hours == pytest.approx(one.hours / 8)
    assert eight.gpu_hours == pytest.approx(one.gpu_hours)
    assert (one.microbatch, eight.microbatch) == (16, 8), "a rank's share is 8 rows"
    half = run_cost(ladder("20M"), num_steps=100, peak_tflops=312, mfu=0.2)
    assert half.hours == pytest.approx(one.hours * 989 / 312 * 0.4 / 0.2)


@pytest.mark.parametrize(
    ("strategy", "replicas", "gpus", "shards"),
    [
        ("FULL_SHARD", None, 16, 16),
        ("SHARD_GRAD_OP", None, 4, 4),
        ("NO_SHARD", None, 16, 1),
        ("HYBRID_SHARD", None, 16, 8),
        ("HYBRID_SHARD", 4, 16, 4),
    ],
)
def test_fsdp_spreads_the_state_over_its_shards(
    strategy: str, replicas: int | None, gpus: int, shards: int
) -> None:
    train = ladder("1B")
    assert train.fsdp is not None
    train.fsdp.sharding_strategy = ShardingStrategy[strategy]
    train.fsdp.hybrid_sharding_num_model_replicas = replicas
    assert num_shards(train, gpus=gpus) == shards
    model = OLMo(replace(TINY, init_device="meta"))
    memory = run_memory(train, model, gpus=gpus, microbatch=1)
    assert memory.state - memory.working_copies == 16 * model.num_params() / shards
    train.distributed_strategy = DistributedStrategy.ddp
    assert num_shards(train, gpus=gpus) == 1


BLOCK = 4 * 64**2 + 3 * 64 * 256 + 2 * 64  # TINY: mlp_ratio 8 is SwiGLU's two of 4 and one back
ROOT = 2 * 512 * 64 + 64  # both embeddings and the last norm


@pytest.mark.parametrize(
    ("sharding", "precision", "expected"),
    [
        # bf16 weights of the root and two blocks; of the root and one, gradients in bf16 and fp32.
        ("FULL_SHARD", "mixed", 2 * (ROOT + 2 * BLOCK) + 6 * (ROOT + BLOCK)),
        ("HYBRID_SHARD", "pure", 2 * (ROOT + 2 * BLOCK) + 2 * (ROOT + BLOCK)),
        ("SHARD_GRAD_OP", "mixed", 2 * (ROOT + 4 * BLOCK) + 6 * (ROOT + BLOCK)),
        ("FULL_SHARD", None, 4 * (ROOT + 2 * BLOCK) + 4 * (ROOT + BLOCK)),
    ],
)
def test_a_step_under_fsdp_holds_what_is_gathered_at_a_time(
    sharding: str, precision: str | None, expected: int
) -> None:
    train = ladder("1B")
    assert train.fsdp is not None
    train.fsdp.sharding_strategy = ShardingStrategy[sharding]
    train.fsdp.precision = FSDPPrecision(precision) if precision else None
    model = OLMo(replace(TINY, n_layers=4, init_device="meta"))
    assert model.num_params() == ROOT + 4 * BLOCK
    assert wrapped_units(train, model) == (BLOCK, ROOT)
    memory = run_memory(train, model, gpus=8, microbatch=1)
    assert memory.working_copies == expected
    train.fsdp.wrapping_strategy = None
    assert wrapped_units(train, model) == (0, ROOT + 4 * BLOCK)
    train.fsdp.wrapping_strategy = FSDPWrapStrategy.by_block_and_size
    assert wrapped_units(train, model) == (BLOCK, 64)


def test_the_start_and_a_step_are_two_peaks_of_which_the_larger_counts() -> None:
    """The whole model in fp32 is gone before a step gathers anything."""
    train = ladder("1B")
    model = OLMo(replace(TINY, n_layers=4, init_device="meta"))
    memory = run_memory(train, model, gpus=8, microbatch=1)
    assert memory.start == 4 * (ROOT + 4 * BLOCK + max(ROOT, BLOCK))
    assert memory.total == memory.step == memory.state + memory.activations + memory.logits
    assert replace(memory, start=2 * memory.step).total == 2 * memory.step


@pytest.mark.parametrize("optimizer", ["adamw", "lionw"])
def test_the_state_is_what_torch_holds_after_a_step(optimizer: str) -> None:
    train = TrainConfig(model=TINY, precision="fp32", distributed_strategy="ddp")
    train.optimizer.name = OptimizerType(optimizer)
    model = OLMo(replace(TINY, init_device="cpu"))
    if optimizer == "adamw":
        stepper: torch.optim.Optimizer = torch.optim.AdamW(model.parameters())
    else:
        from olmo.optim import LionW

        stepper = LionW(model.parameters())
    model(torch.zeros(1, 8, dtype=torch.long)).logits.sum().backward()
    stepper.step()
    held = [t for state in stepper.state.values() for t in state.values() if t.numel() > 1]
    memory = run_memory(train, model, gpus=1, microbatch=1)
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    assert memory.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert memory.optimizer == sum(t.nbytes for t in held)


def saved_bytes(shape: ModelConfig, *, rows: int, mixed: bool) -> int:
    """Bytes that autograd keeps for the backward pass of the model, weights left out."""
    model = OLMo(replace(shape, init_device="cpu"))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(saved: torch.Tensor) -> torch.Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved
        return saved

    ids = torch.zeros(rows, shape.max_sequence_length, dtype=torch.long)
    with (
        saved_tensors_hooks(pack, lambda saved: saved),
        torch.autocast("cpu", enabled=mixed, dtype=torch.bfloat16),
    ):
        output = model(ids).logits
    total = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)
    assert output.requires_grad
    matrices = sum(p.numel() for p in model.transformer.blocks.parameters() if p.dim() > 1)
    return total - 2 * mixed * matrices  # their bf16 copies are counted with the state


@pytest.mark.parametrize("precision", ["fp32", "amp_bf16"])
@pytest.mark.parametrize("mlp_ratio", [4, 8])
def test_activations_of_a_block_are_what_autograd_saves(precision: str, mlp_ratio: int) -> None:
    shapes = [replace(TINY, mlp_ratio=mlp_ratio, n_layers=layers) for layers in (1, 3)]
    one, three = (saved_bytes(s, rows=4, mixed=precision == "amp_bf16") for s in shapes)
    estimates = []
    for shape in shapes:
        train = TrainConfig(model=shape, precision=precision)
        train.distributed_strategy = DistributedStrategy.ddp
        meta = OLMo(replace(shape, init_device="meta"))
        estimates.append(run_memory(train, meta, gpus=1, microbatch=4).activations)
    assert estimates[1] - estimates[0] == pytest.approx(three - one, rel=0.06)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("gpus", 7, "train.global_train_batch_size 32"),
        ("gpus", 0, "train.global_train_batch_size 32"),
        ("mfu", 40.0, "in (0, 1]"),
        ("mfu", 0.0, "in (0, 1]"),
        ("peak_tflops", 0.0, "positive"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(name: str, value: Any, rule: str) -> None:
    with refuses(key=f"--{name.replace('_', '-')}", value=value, rule=rule):
        run_cost(ladder("4M"), num_steps=1, **{name: value})


def test_counting_4b_does_not_allocate_it() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cost: Cost = run_cost(ladder("4B"), num_steps=50_000, gpus=64)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert cost.num_params == 3_968_167_680
    assert grown < 2**20, "more than 1 GiB, in KiB; the weights alone are 16"


def test_every_optimizer_of_the_engine_is_known() -> None:
    from olmo_ext.cost import OPTIMIZER_BYTES

    assert set(OPTIMIZER_BYTES) == {str(name.value) for name in OptimizerType}


def test_the_ladder_page_states_the_same_bytes() -> None:
    text = (LADDER / "README.md").read_text()
    assert "state + m x 2,048 x (12 x 50,304 + 66 x d_model x n_layers)" in text


def on_ladder(rung: str, callbacks: str, *overrides: str) -> tuple[Any, Cost]:
    given = ["corpus=", f"train.data.paths=[{LADDER / 'README.md'}]", "callbacks=null"]
    given += [f"callbacks={callbacks}", *overrides]
    experiment = load_experiment(LADDER / "ladder" / f"{rung}.yaml", given)
    return experiment, run_cost(experiment.train, num_steps=10)


def test_a_callback_over_the_whole_model_is_told_before_it_is_paid() -> None:
    experiment, cost = on_ladder("1B", "{interference: {}}", "train.distributed_strategy=ddp")
    # One task: 4 T + 2 copies of the parameters in fp32.
    assert extra_bytes(experiment, cost) == {
        "callbacks.interference.groups": 6 * 4 * cost.num_params_total
    }
    enough = cost.memory.step + 24 * cost.num_params_total
    assert list(too_large(experiment, cost, gpu_bytes=enough)) == []
    ((key, _, reason, remedy),) = too_large(experiment, cost, gpu_bytes=enough - 1)
    assert key == "callbacks.interference.groups"
    assert f"{24 * cost.num_params_total / 1e9:.0f} GB" in reason
    assert "mlp_top" in remedy
    # Not even the step alone: its activations can be made again.
    (*_, (key_2, _, reason, _)) = too_large(experiment, cost, gpu_bytes=cost.memory.step - 1)
    assert key_2 == "train.activation_checkpointing"
    assert f"{cost.memory.activations / 1e9:.0f} GB of the step's" in reason
    plain, _ = on_ladder("1B", "{}")
    without = cost.memory.step - cost.memory.activations
    assert [key for key, *_ in too_large(plain, cost, gpu_bytes=without)] == [key_2]
    assert list(too_large(plain, cost, gpu_bytes=without - 1)) == []  # they alone do not help
    again, _ = on_ladder("1B", "{}", "train.activation_checkpointing=whole_layer")
    assert list(too_large(again, cost, gpu_bytes=without)) == []
    offloaded, _ = on_ladder("1B", "{interference: {offload: true}}")
    assert extra_bytes(offloaded, cost) == {key: 4 * cost.num_params_total}


@pytest.mark.parametrize(
    ("callbacks", "copies"),
    [
        ("{interference: {groups: [mlp_top]}, task_eval: {}}", 0),
        ("{interference: null, loss_budget: {}}", 3 + 3 + 5),
    ],
)
def test_what_copies_one_mlp_or_nothing_is_not_counted(callbacks: str, copies: int) -> None:
    experiment, cost = on_ladder("4M", callbacks)
    assert sum(extra_bytes(experiment, cost).values()) == copies * 4 * cost.num_params_total


def test_fp32_keeps_its_attention_which_torch_counts_as_reckoned() -> None:
    experiment, cost = on_ladder("4M", "{}", "train.precision=fp32")
    matrix = 4 * 16 * 8 * 2048**2
    assert extra_bytes(experiment, cost) == {"train.precision": (8 + 2) * matrix}
    assert extra_bytes(*on_ladder("4M", "{}")) == {}

    q = torch.randn(2, 4, 256, 16, requires_grad=True)
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[-2:] == (256, 256):
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor), sdpa_kernel(SDPBackend.MATH):
        F.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert list(kept.values()) == [4 * 2 * 4 * 256**2]


def test_train_says_what_its_card_has_no_room_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, cost = on_ladder("4M", "{interference: {}}")
    _warn_of_memory(experiment)  # no card
    # The engine's model would look for the card.
    monkeypatch.setattr("olmo_ext.cost.run_cost", lambda train, **settings: cost)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for room, told in ((100 * cost.memory.step, False), (cost.memory.step, True)):
        card = SimpleNamespace(total_memory=room)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index, card=card: card)
        _warn_of_memory(experiment)
        assert ("warning: callbacks.interference.groups" in capsys.readouterr().err) == told
