"""chunked_loss: true is the engine's loss, to rounding, wherever the engine's is."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import warm

from data_injection.errors import ConfigError
from eval.records import read_records
from olmo_ext.config import load_experiment
from olmo_ext.numerics import chunked_loss
from olmo_ext.prepare import prepare
from olmo_ext.train import train
from olmo_ext.verify.runs import computing_in, ours

Write = Callable[..., Path]
ON = "chunked_loss=true"


def losses_and_gradient(
    path: Path, overrides: list[str], *, precision: str = "fp32", masked: bool = False
) -> tuple[list[float], torch.Tensor]:
    """Cross-entropy, z-loss and flat gradient of the first batch, with accumulation."""
    with ExitStack() as stack, computing_in(precision):
        experiment = load_experiment(path, [*overrides, "train.device_train_microbatch_size=2"])
        trainer = ours(experiment, stack)
        batch = dict(next(iter(trainer.train_loader)))
        if masked:
            kept = torch.rand(batch["input_ids"].shape, generator=torch.manual_seed(0)) > 0.3
            batch |= {"label_mask": kept, "instance_mask": torch.arange(len(kept)) != 1}
        trainer.dist_model.train()
        trainer.global_step = 1
        trainer.callbacks = {}
        found = trainer.train_batch(batch)
        flat = torch.cat([p.grad.flatten() for p in trainer.dist_model.parameters()])
    return [float(one) for one in found if one is not None], flat


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("z_loss", ["false", "true"])
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-6), ("amp_bf16", 1e-2)])
def test_loss_and_gradient_are_the_engines(
    write_experiment: Write,
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
    masked: bool,
    z_loss: str,
    precision: str,
    bound: float,
) -> None:
    monkeypatch.setattr(chunked_loss, "CHUNK", 7)  # of 2 rows of 16: a last chunk that is not full
    settings = [f"train.softmax_auxiliary_loss={z_loss}", f"train.distributed_strategy={strategy}"]
    path = write_experiment()
    asked: dict[str, Any] = {"precision": precision, "masked": masked}
    losses, whole = losses_and_gradient(path, settings, **asked)
    chunked, gradient = losses_and_gradient(path, [*settings, ON], **asked)
    assert len(losses) == 1 + (z_loss == "true")
    assert chunked == pytest.approx(losses, rel=bound)
    assert float((gradient - whole).norm() / whole.norm()) < bound


def read_weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return torch.load(run / f"step{step}-unsharded" / "model.pt", weights_only=True)


def assert_trained_alike(one: Path, two: Path, step: int) -> None:
    """The runs part by rounding alone. AdamW makes a step of the whole learning rate of a gradient
    that is all rounding, so that single weights may differ by much on some processor: the losses
    and the way of all weights together are compared, by which a wrong loss parts at once."""
    losses = [
        read_records(run).query("metric == 'train_loss'").value.tolist() for run in (one, two)
    ]
    assert len(losses[0]) == step
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    start, ends = read_weights(one, 0), [read_weights(run, step) for run in (one, two)]
    way = math.hypot(*((ends[0][n] - start[n]).norm().item() for n in start))
    apart = math.hypot(*((ends[0][n] - ends[1][n]).norm().item() for n in start))
    assert apart < 0.01 * way


def test_the_gradient_split_stays_exact(write_experiment: Write) -> None:
    def edit(config: dict) -> None:
        config["chunked_loss"] = True
        config["callbacks"]["interference"] = {"every": 3, "top_k": 4}

    table = read_records(train(load_experiment(write_experiment(edit))))
    rows = table[table.metric == "cos_g_nt"]
    assert 0 < rows.split_error.max() < 1e-6


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_resumed_run_is_the_same_and_all_but_stocks(
    write_experiment: Write, tmp_path: Path, strategy: str
) -> None:
    def trained(name: str, *overrides: str, resume: bool = False) -> Path:
        given = [f"train.save_folder={tmp_path / name}", f"train.distributed_strategy={strategy}"]
        return train(load_experiment(path, [*given, *overrides]), resume=resume)

    path = write_experiment()
    whole, plain = trained("whole", ON), trained("plain")
    trained("parts", ON, "train.stop_at=6")
    again = read_weights(trained("parts", ON, resume=True), 12)
    for name, tensor in read_weights(whole, 12).items():
        assert torch.equal(tensor, again[name]), name
    assert_trained_alike(whole, plain, 12)


@pytest.mark.slow
@pytest.mark.parametrize("wrapping", ["by_block", "size_based"])
def test_two_ranks_that_share_the_output_layer_train_as_one(
    write_experiment: Write, tmp_path: Path, wrapping: str
) -> None:
    """FULL_SHARD: the layer's weights are whole within its forward pass alone."""
    fsdp = {
        "use_orig_params": True,
        "wrapping_strategy": wrapping,
        "sharding_strategy": "FULL_SHARD",
    }

    def edit(config: dict) -> None:
        config["train"] |= {"distributed_strategy": "fsdp", "fsdp": fsdp, "max_duration": 6}

    path = write_experiment(edit)
    overrides = ["-o", ON, "-o", f"train.save_folder={tmp_path / 'two'}"]
    done = warm.run("train", path, *overrides, ranks=2)
    assert done.returncode == 0, done.stderr
    one = train(load_experiment(path, [f"train.save_folder={tmp_path / 'one'}"]))
    assert_trained_alike(one, tmp_path / "two", 6)


def test_it_is_part_of_the_run_and_not_of_its_plan(write_experiment: Write) -> None:
    path = write_experiment()
    plain, on = prepare(load_experiment(path)), prepare(load_experiment(path, [ON]))
    assert on.identity == plain.identity | {"chunked_loss": True}
    assert on.stream.plan.hash == plain.stream.plan.hash


@pytest.mark.parametrize("key", ["weight_tying", "scale_logits"])
def test_an_output_layer_that_is_no_layer_of_its_own_is_refused(
    write_experiment: Write, key: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        prepare(load_experiment(write_experiment(), [ON, f"train.model.{key}=true"]))
    assert refused.value.key == f"train.model.{key}"


def test_a_torch_without_it_is_refused(
    write_experiment: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(F, "linear_cross_entropy")
    with pytest.raises(ConfigError, match=r"torch 2\.13") as refused:
        prepare(load_experiment(write_experiment(), [ON]))
    assert refused.value.key == "chunked_loss"
