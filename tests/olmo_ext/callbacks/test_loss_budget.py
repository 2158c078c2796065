"""The loss budget in a run: it closes, sums to what happened, resumes, and leaves the run alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import warm
from olmo.config import ModelConfig, TrainConfig
from olmo.model import OLMo

from data_injection.errors import ConfigError
from eval.records import read_records
from olmo_ext.callbacks.loss_budget import LossBudget
from olmo_ext.config import load_experiment
from olmo_ext.engines.stock import StockEngine
from olmo_ext.train import train

Write = Callable[..., Path]
EVERY_STEP = {"every": 1, "record": 6, "instances": 0}


def edited(write: Write, *, settings: dict | None = None, **train_settings: Any) -> Path:
    def edit(config: dict) -> None:
        config["train"]["model"]["n_layers"] = 2
        config["train"].update(train_settings)
        config["callbacks"] |= {"task_eval": {"every": 6}, "loss_budget": settings}

    return write(edit)


def run(path: Path, folder: Path, *overrides: str, **how: Any) -> pd.DataFrame:
    train(load_experiment(path, [f"train.save_folder={folder}", *overrides]), **how)
    return read_records(folder)


def budget(frame: pd.DataFrame, task: str = "cmp") -> pd.DataFrame:
    """By step and source, the whole model."""
    rows = frame[(frame.metric == "budget") & (frame.task == task) & frame.layer.isna()]
    return rows.pivot_table("value", index="step", columns="source")


def weights(folder: Path, step: int = 12) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"step{step}-unsharded" / "model.pt", weights_only=True)


def assert_same_weights(one: Path, two: Path) -> None:
    first, second = weights(one), weights(two)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_sources_add_up_to_what_happened_to_the_choice_loss(
    strategy: str, write_experiment: Write, tmp_path: Path
) -> None:
    """Over all steps, at a learning rate at which a step's third order is small."""
    path = edited(
        write_experiment,
        settings=EVERY_STEP,
        distributed_strategy=strategy,
        optimizer={"name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.1},
        max_grad_norm=0.5,
    )
    frame = run(path, tmp_path / "run")
    for task, other in (("cmp", "add"), ("add", "cmp")):
        table = budget(frame, task)
        assert set(table) == {"host", "task", "decay", f"task/{other}"}
        actual = frame[(frame.metric == "budget_actual") & (frame.task == task)]
        assert actual.step.tolist() == [6, 12]
        assert set(actual.n) == {6}
        assert (actual.closure < 0.05).all()
        losses = frame[
            (frame.metric == "choice_loss") & (frame.task == task) & (frame.split == "test")
        ].query("subset == 'all'")
        at = losses.set_index("step").value
        change = at[12] - at[0]
        assert actual.value.sum() == pytest.approx(change, abs=2e-6)
        turnover = table.abs().to_numpy().sum()
        assert abs(table.to_numpy().sum() - change) < 0.05 * turnover
    layers = frame[(frame.metric == "budget") & frame.layer.notna()]
    assert set(layers.layer) == {-1, 0, 1}
    whole = layers.groupby(["task", "source", "step"]).value.sum()
    for task in ("cmp", "add"):
        for step, row in budget(frame, task).iterrows():
            for source, value in row.items():
                assert whole[task, source, step] == pytest.approx(value, abs=1e-9)


def test_a_point_in_the_middle_closes_large_steps(write_experiment: Write, tmp_path: Path) -> None:
    closures = {}
    for points in (2, 3):
        path = edited(
            write_experiment,
            settings=EVERY_STEP | {"points": points},
            optimizer={"name": "adamw", "learning_rate": 3e-2},
        )
        frame = run(path, tmp_path / str(points))
        closures[points] = frame[frame.metric == "budget_actual"].closure.max()
    assert closures[3] < 0.05
    assert closures[3] < closures[2] / 3


def test_a_row_that_is_all_task_leaves_the_host_nothing(
    write_experiment: Write, tmp_path: Path
) -> None:
    """A context of 4 tokens, an example in every row: nothing is forgotten, whatever Adam does."""

    def edit(config: dict) -> None:
        config["train"]["model"]["max_sequence_length"] = 4
        config["injection"]["tasks"] = [{"name": "cmp", "num_symbols": 10, "schedule": {"rate": 8}}]
        config["callbacks"] = {"loss_budget": EVERY_STEP, "progress": None}

    table = budget(run(write_experiment(edit), tmp_path / "run"))
    assert (table.task.abs() > 1e-3).all()
    assert (table.host.abs() < 1e-4 * table.task.abs()).all()


def test_tasks_may_be_called_as_sources_and_sums_are(
    write_experiment: Write, tmp_path: Path
) -> None:
    def edit(config: dict) -> None:
        for task, name in zip(config["injection"]["tasks"], ("host", "actual"), strict=True):
            task["name"] = name
        config["train"]["max_duration"] = 6
        config["callbacks"] = {"loss_budget": EVERY_STEP, "progress": None}

    frame = run(write_experiment(edit), tmp_path / "run")
    assert set(budget(frame, "host")) == {"host", "task", "decay", "task/actual"}
    assert set(budget(frame, "actual")) == {"host", "task", "decay", "task/host"}


def test_before_the_first_instance_nothing_is_gained(
    write_experiment: Write, tmp_path: Path
) -> None:
    def edit(config: dict) -> None:
        config["injection"]["tasks"] = [
            {
                "name": "cmp",
                "num_symbols": 10,
                "schedule": {"kind": "window", "rate": 2, "start": 5, "stop": 7},
            }
        ]
        config["callbacks"] = {"loss_budget": EVERY_STEP | {"record": 1}, "progress": None}

    table = budget(run(write_experiment(edit), tmp_path / "run"))
    gained = table.task != 0
    assert not gained.all()
    # From there on its gradient is in the momentum: every later step has a part of it.
    assert gained[gained.idxmax() :].all()
    assert (table.host != 0).all()


def test_bursts_at_one_gap_are_neither_all_measured_nor_all_missed() -> None:
    every, gap, steps = 20, 20, 4007
    found = LossBudget(every=every, record=every)
    stands = {
        step: num
        for step in range(1, steps + 1)
        if (num := found._stands_for(SimpleNamespace(global_step=step, max_steps=steps)))
    }
    assert sum(stands.values()) == steps
    assert [(step - 1) // every for step in stands] == list(range(-(-steps // every)))
    for phase in range(gap):
        seen = sum(num for step, num in stands.items() if step % gap == phase)
        assert 0 < seen < 3 * steps / gap


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_measuring_changes_nothing_and_a_resumed_run_has_the_same_budget(
    exactly: list[str], strategy: str, write_experiment: Write, tmp_path: Path
) -> None:
    settings = {"every": 3, "record": 9, "instances": 20}
    slow = {"optimizer": {"name": "adamw", "learning_rate": 1e-4}}
    settings |= {"exact": 1} if strategy == "ddp" else {}
    bare = edited(write_experiment, distributed_strategy=strategy, **slow)
    run(bare, tmp_path / "bare", *exactly)
    path = edited(write_experiment, settings=settings, distributed_strategy=strategy, **slow)
    whole = run(path, tmp_path / "whole", *exactly)
    assert_same_weights(tmp_path / "bare", tmp_path / "whole")
    run(path, tmp_path / "cut", "train.stop_at=6", *exactly)
    cut = run(path, tmp_path / "cut", *exactly, resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    last = budget(cut).loc[12]
    assert last.to_dict() == budget(whole).loc[12].to_dict()
    if strategy == "ddp":
        steps = whole[whole.metric == "host_step"]
        assert len(steps) == 2 * 4
        assert (steps.value - steps.first_order).abs().max() < 0.1 * steps.value.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_have_the_budget_of_one_and_one_goes_on_from_their_moments(
    strategy: str, write_experiment: Write, tmp_path: Path
) -> None:
    path = edited(write_experiment, settings=EVERY_STEP, distributed_strategy=strategy)
    alone = budget(run(path, tmp_path / "one"))
    folder = tmp_path / "two"
    overrides = ["-o", f"train.save_folder={folder}", "-o", "train.stop_at=6"]
    done = warm.run("train", path, *overrides, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    both = budget(run(path, folder, resume=True))
    for step in (6, 12):
        for source, value in alone.loc[step].items():
            assert both.loc[step, source] == pytest.approx(value, rel=0.01, abs=1e-5)


def test_a_run_that_begins_to_measure_late_waits_for_momentum_that_it_did_not_see(
    write_experiment: Write, tmp_path: Path
) -> None:
    run(edited(write_experiment), tmp_path / "run", "train.stop_at=6")
    path = edited(write_experiment, settings=EVERY_STEP)
    assert "budget" not in set(run(path, tmp_path / "run", resume=True).metric)


def small_engine(precision: str, **settings: Any) -> tuple[OLMo, StockEngine]:
    """Not fsdp, the engine's default, of whose head the whole is taken in any case."""
    torch.manual_seed(0)
    config = ModelConfig(
        d_model=16, n_heads=2, n_layers=1, mlp_ratio=2, max_sequence_length=8, vocab_size=64,
        embedding_size=64, rope=True, attention_dropout=0.0, residual_dropout=0.0,
        embedding_dropout=0.0, init_device="cpu", **settings,
    )  # fmt: skip
    model = OLMo(config)
    cfg = TrainConfig(model=config, precision=precision, distributed_strategy="ddp")
    cfg.device_train_microbatch_size = 1
    where: Any = SimpleNamespace(cfg=cfg, model=model, dist_model=model, device=torch.device("cpu"))
    return model, StockEngine(where)


@pytest.mark.parametrize("precision", ["fp32", "amp_bf16"])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_some_tokens_are_the_heads_and_so_are_their_gradients(
    tied: bool, precision: str
) -> None:
    settings = {"weight_tying": tied, "scale_logits": True, "include_bias": False}
    model, engine = small_engine(precision, **settings)
    ids_BT = torch.randint(64, (5, 3))
    found = []
    for of in (torch.tensor([3, 7, 60]), None):
        model.zero_grad(set_to_none=True)
        with engine.autocast():
            logits_BV = engine.logits(ids_BT, of=of)
        logits_BC = logits_BV if of is not None else logits_BV[:, [3, 7, 60]]
        logits_BC.logsumexp(-1).sum().backward()
        found.append([logits_BC, *(p.grad for p in model.parameters())])
    near = 1e-6 if precision == "fp32" else 1e-2
    for some, whole in zip(*found, strict=True):
        assert whole.abs().max() > 0
        assert (some - whole).abs().max() <= near * whole.abs().max()


def test_a_head_with_a_bias_is_taken_whole() -> None:
    """Its labels' rows alone, and `cut`, know the weight and would drop the bias in silence."""
    model, engine = small_engine("fp32", weight_tying=False, include_bias=True)
    torch.nn.init.normal_(model.transformer.ff_out.bias)
    ids_BT, of = torch.randint(64, (5, 3)), torch.tensor([3, 7, 60])
    assert torch.equal(engine.logits(ids_BT, of=of), model(ids_BT).logits[:, -1, of])
    assert engine.cut() is None


@pytest.mark.parametrize(
    ("settings", "train_settings", "key"),
    [
        ({"every": 3, "record": 10}, {}, "callbacks.loss_budget.record"),
        ({"every": 0}, {}, "callbacks.loss_budget.every"),
        ({"split": "valid"}, {}, "callbacks.loss_budget.split"),
        ({"points": 1}, {}, "callbacks.loss_budget.points"),
        ({"tasks": ["nope"]}, {}, "callbacks.loss_budget.tasks"),
        ({"instances": 10**6}, {}, "callbacks.loss_budget.instances"),
        ({"exact": 1}, {"distributed_strategy": "fsdp"}, "callbacks.loss_budget.exact"),
        ({}, {"optimizer": {"name": "lionw"}}, "train.optimizer.name"),
        ({}, {"max_grad_norm_ratio": 0.1}, "train.max_grad_norm_ratio"),
    ],
)
def test_what_the_split_is_not_derived_for_is_refused(
    settings: dict, train_settings: dict, key: str, write_experiment: Write, tmp_path: Path
) -> None:
    path = edited(write_experiment, settings=settings, **train_settings)
    with pytest.raises(ConfigError) as caught:
        run(path, tmp_path / "run", dry_run=True)
    assert caught.value.key == key
