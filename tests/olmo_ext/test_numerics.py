"""Settings that change how a step is computed: what it comes to is the engine's, to rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import warm
from refusals import refuses

from data_injection.errors import ConfigError
from eval.checkpoints.checkpoint import load_model
from eval.records import identity, read_records
from eval.run import differences
from eval.scores.rows import one_precision
from olmo_ext.config import load_experiment
from olmo_ext.numerics import chunked_loss
from olmo_ext.prepare import prepare
from olmo_ext.train import train
from olmo_ext.verify.runs import ours

Write = Callable[..., Path]
CHECKPOINTED = "train.activation_checkpointing=whole_layer"
ON, FUSED, COMPILED = "chunked_loss=true", "fused_optimizer=true", "train.compile={}"
BF16 = ["train.precision=amp_bf16", "bf16_on_cpu=true"]


def losses_and_gradient(
    path: Path, overrides: list[str], *, precision: str = "fp32", masked: bool = False
) -> tuple[list[float], torch.Tensor]:
    """Cross-entropy, z-loss and flat gradient of the first batch, with accumulation."""
    given = BF16 if precision == "amp_bf16" else [f"train.precision={precision}"]
    with ExitStack() as stack:
        given = [*given, *overrides, "train.device_train_microbatch_size=2"]
        experiment = load_experiment(path, given)
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
@pytest.mark.parametrize(
    ("precision", "of_loss", "of_gradient"),
    # torch's own sum in bf16 would be off by up to 4e-3.
    [("fp32", 1e-6, 1e-6), ("amp_bf16", 1e-3, 1e-2)],
)
def test_loss_and_gradient_are_the_engines(
    write_experiment: Write,
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
    masked: bool,
    z_loss: str,
    precision: str,
    of_loss: float,
    of_gradient: float,
) -> None:
    monkeypatch.setattr(chunked_loss, "CHUNK", 7)  # of 2 rows of 16: a last chunk that is not full
    settings = [f"train.softmax_auxiliary_loss={z_loss}", f"train.distributed_strategy={strategy}"]
    path = write_experiment()
    asked: dict[str, Any] = {"precision": precision, "masked": masked}
    losses, whole = losses_and_gradient(path, settings, **asked)
    chunked, gradient = losses_and_gradient(path, [*settings, ON], **asked)
    assert len(losses) == 1 + (z_loss == "true")
    assert chunked == pytest.approx(losses, rel=of_loss)
    assert float((gradient - whole).norm() / whole.norm()) < of_gradient


MEASURED: dict[str, Any] = {
    "interference": {"every": 3, "top_k": 4, "window": 6, "instances": 6},
    "loss_budget": {"every": 1, "record": 3, "instances": 10},
    "task_eval": {"every": 1},
    "retention": {"lags": [1], "min_gap": 1},
    "features": {"every": 3},
}


def measured(run: Path) -> pd.Series:
    """Every measurement of a run by its step and what it is of, but for seconds."""
    rows = read_records(run)
    return pd.Series(
        {(row["step"], identity(row)): row["value"] for row in rows.to_dict("records")}
    ).sort_index()


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


def test_activations_made_again_change_neither_loss_nor_gradient(write_experiment: Write) -> None:
    path = write_experiment()
    losses, whole = losses_and_gradient(path, [])
    again, gradient = losses_and_gradient(path, [CHECKPOINTED])
    assert again == losses
    assert float((gradient - whole).norm() / whole.norm()) < 1e-6


@pytest.mark.parametrize(("asked", "error"), [([ON], 1e-6), ([CHECKPOINTED], 1e-6), (BF16, 1e-2)])
def test_the_gradient_split_stays_exact(
    write_experiment: Write, asked: list[str], error: float
) -> None:
    def edit(config: dict) -> None:
        config["train"]["max_duration"] = 6
        config["callbacks"] = {"interference": {"every": 3, "top_k": 4}, "task_eval": {"every": 6}}

    table = read_records(train(load_experiment(write_experiment(edit), asked)))
    rows = table[table.metric == "cos_g_nt"]
    # 0 where a processor rounds both ways alike; a wrong split: test_verify.py.
    assert rows.split_error.between(0, error).all()
    # In every record: no table may mix two.
    assert set(table.precision) == {"amp_bf16" if asked == BF16 else "fp32"}


def test_a_budget_closes_by_the_fused_kernel_as_by_the_plain_one(
    write_experiment: Write, tmp_path: Path
) -> None:
    """Its derivation takes AdamW's moments and the step that was taken, whoever computes them."""

    def edit(config: dict) -> None:
        config["train"] |= {"max_duration": 6, "no_pre_train_checkpoint": True}
        config["train"]["optimizer"] |= {"learning_rate": 2e-3, "weight_decay": 0.1}
        settings = {"every": 1, "record": 6, "instances": 10, "layers": False}
        config["callbacks"] = {"loss_budget": settings, "progress": None}

    path, tables = write_experiment(edit), []
    for asked in ("fused_optimizer=false", FUSED):
        folder = train(load_experiment(path, [asked, f"train.save_folder={tmp_path / asked}"]))
        tables.append(read_records(folder).query("metric == 'budget'"))
        assert (tables[-1].closure < 0.05).all()
    parts, fused = (one.set_index(["task", "source"]).value for one in tables)
    assert len(parts) == 2 * 4
    assert fused.to_numpy() == pytest.approx(parts[fused.index].to_numpy(), rel=1e-2, abs=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_resumed_run_is_the_same_and_all_but_stocks(
    write_experiment: Write, tmp_path: Path, strategy: str
) -> None:
    def trained(name: str, *overrides: str, resume: bool = False) -> Path:
        given = [f"train.save_folder={tmp_path / name}", f"train.distributed_strategy={strategy}"]
        return train(load_experiment(path, [*given, *overrides]), resume=resume)

    path = write_experiment()
    whole, plain = trained("whole", ON, FUSED), trained("plain")
    trained("parts", ON, FUSED, "train.stop_at=6")
    again = read_weights(trained("parts", ON, FUSED, resume=True), 12)
    for name, tensor in read_weights(whole, 12).items():
        assert torch.equal(tensor, again[name]), name
    assert_trained_alike(whole, plain, 12)


@pytest.mark.slow
def test_compiled_blocks_train_as_plain_ones_and_resume_as_themselves(
    write_experiment: Write, tmp_path: Path
) -> None:
    """One test, since compiling is most of its time. Callbacks look at rows of other shapes: they
    run the blocks uncompiled, for kernels of any size did not compile here."""

    def edit(config: dict) -> None:
        config["train"] |= {"max_duration": 6, "save_interval_unsharded": 3}
        config["train"]["model"]["n_layers"] = 2
        burst = {"kind": "burst", "rate": 1, "every": 3, "phase": 1}
        config["injection"]["tasks"][0]["schedule"] = burst
        config["callbacks"] = MEASURED

    def trained(name: str, *overrides: str, resume: bool = False) -> Path:
        given = [f"train.save_folder={tmp_path / name}", *overrides]
        return train(load_experiment(path, given), resume=resume)

    path, asked = write_experiment(edit), (COMPILED, "deterministic=true")
    plain, whole = trained("plain"), trained("whole", *asked)
    parts = trained("parts", *asked, "train.stop_at=3")
    with refuses(key=parts, rule="cannot be resumed") as refused:
        trained("parts", "deterministic=true", resume=True)
    assert [name for name, *_ in refused.value.value] == ["train.compile"]
    trained("parts", *asked, resume=True)
    weights, again = read_weights(whole, 6), read_weights(parts, 6)
    assert list(weights) == list(read_weights(plain, 6))  # the engine's names
    assert not [name for name in weights if not torch.equal(weights[name], again[name])]
    assert_trained_alike(whole, plain, 6)
    compiled = measured(whole)
    pd.testing.assert_series_equal(compiled, measured(parts), check_exact=True)
    # At the first steps the runs are one but for rounding.
    before = measured(plain)
    assert list(before.index) == list(compiled.index)
    first = [place for place in before.index if place[0] <= 2]
    told = before[first].to_numpy()
    assert compiled[first].to_numpy() == pytest.approx(told, abs=1e-3, nan_ok=True)
    load_model(whole / "step6-unsharded")  # as any checkpoint


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


@pytest.mark.parametrize("key", ["chunked_loss", "fused_optimizer", "compile"])
def test_it_is_part_of_the_run_and_not_of_its_plan(write_experiment: Write, key: str) -> None:
    path, asked = write_experiment(), COMPILED if key == "compile" else f"{key}=true"
    plain, on = prepare(load_experiment(path)), prepare(load_experiment(path, [asked]))
    found = [(one, before) for one, _, before in differences(on.identity, plain.identity)]
    assert found == [(f"train.{key}" if key == "compile" else key, None)]
    assert on.stream.plan.hash == plain.stream.plan.hash


@pytest.mark.parametrize("key", ["weight_tying", "scale_logits", "include_bias"])
def test_an_output_layer_that_is_no_layer_of_its_own_is_refused(
    write_experiment: Write, key: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        prepare(load_experiment(write_experiment(), [ON, f"train.model.{key}=true"]))
    assert refused.value.key == f"train.model.{key}"


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        (["bf16_on_cpu=true"], "bf16_on_cpu"),
        ([COMPILED, "train.model.block_group_size=2"], "train.model.block_group_size"),
        (
            [COMPILED, "train.distributed_strategy=fsdp", "train.fsdp.use_orig_params=false"],
            "train.fsdp.use_orig_params",
        ),
        (["train.compile.mode=max-autotune", "deterministic=true"], "deterministic"),
        ([FUSED, "train.optimizer.name=lionw"], "train.optimizer.name"),
        ([FUSED, "train.optimizer.selective_updates=true"], "train.optimizer.selective_updates"),
        (
            [FUSED, "train.optimizer.record_update_metrics=true"],
            "train.optimizer.record_update_metrics",
        ),
    ],
)
def test_what_cannot_be_compiled_or_fused_is_refused(
    write_experiment: Write, asked: list[str], key: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load_experiment(write_experiment(), asked)
    assert refused.value.key == key


def test_a_machine_that_cannot_compile_is_told_so_before_any_work(
    write_experiment: Write, tmp_path: Path
) -> None:
    experiment = load_experiment(write_experiment(), ["train.compile.backend=nonsense"])
    with refuses(key="train.compile", rule="nonsense", remedy="train.compile=null") as refused:
        train(experiment)
    assert refused.value.value["backend"] == "nonsense"
    assert not (tmp_path / "run").exists()


def test_runs_in_two_precisions_are_in_no_table_together() -> None:
    rows = pd.DataFrame({"precision": ["fp32", None, "amp_bf16"]})
    assert one_precision(rows[:2]) is not None
    with refuses(key="precision", value="fp32, amp_bf16"):
        one_precision(rows)


def test_a_torch_without_it_is_refused(
    write_experiment: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(F, "linear_cross_entropy")
    with refuses(key="chunked_loss", value=True, rule="torch 2.13"):
        prepare(load_experiment(write_experiment(), [ON]))
