"""The interference callback: exact against full passes, invisible to the run, honest in records."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm

import olmo_ext.callbacks.build
from data_injection.errors import ConfigError
from eval.checkpoints.checkpoint import load_plan
from eval.records import read_records
from olmo_ext.callbacks.interference import Interference
from olmo_ext.config import load_experiment
from olmo_ext.train import train

Write = Callable[..., Path]

WORKER = Path(__file__).with_name("interference_worker.py")
SETTINGS = {"every": 3, "top_k": 4, "window": 6}


def edited(write: Write, *, settings: dict | None = None, **train_settings: Any) -> Path:
    """The tiny experiment with two layers, the callback (None: without) and engine settings."""

    def edit(config: dict) -> None:
        config["train"]["model"]["n_layers"] = 2
        config["train"].update(train_settings)
        config["callbacks"] |= {"task_eval": {"every": 6}, "interference": settings}

    return write(edit)


def run_worker(experiment: Path, *args: str, ranks: int) -> None:
    done = warm.run(WORKER, experiment, *args, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr


def state(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "step12-unsharded" / "model.pt", weights_only=True)


def assert_same_run(one: Path, two: Path) -> None:
    """Losses and final weights, bit for bit."""
    losses = [
        dict(zip(rows.step, rows.value, strict=True))
        for rows in (read_records(f).query("metric == 'train_loss'") for f in (one, two))
    ]
    assert losses[0] == losses[1]
    assert set(losses[0]) == {6, 12}
    first, second = state(one), state(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def assert_exact(path: Path) -> None:
    errors = json.loads(path.read_text())
    assert set(errors) == {"1", "2", "3", "4"}
    # Two rows of cmp in every step; one of add in every second, which one of two ranks has.
    assert {"g", "nt", "h", "t/cmp", "label/cmp", "r/cmp", "p/cmp", "r/add"} <= set(errors["1"])
    assert {"t/add", "label/add"} <= set(errors["2"])
    assert "t/add" not in errors["1"]
    for step, of_step in errors.items():
        for name, error in of_step.items():
            assert error < 1e-5, (step, name, error)


# -- exactness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(("offset", "z_loss"), [(0, False), (3, True)])
def test_the_cheap_split_is_that_of_full_backward_passes(
    device: torch.device,
    strategy: str,
    offset: int,
    z_loss: bool,
    write_experiment: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With accumulation: four micro-batches of 2 rows."""
    spec = importlib.util.spec_from_file_location("interference_worker", WORKER)
    assert spec is not None
    worker = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "interference_worker", worker)
    spec.loader.exec_module(worker)  # type: ignore[union-attr]
    monkeypatch.setattr(
        olmo_ext.callbacks.build, "CALLBACKS", dict(olmo_ext.callbacks.build.CALLBACKS)
    )
    experiment = edited(
        write_experiment, distributed_strategy=strategy, softmax_auxiliary_loss=z_loss
    )
    overrides = [f"injection.offset={offset}", "train.max_duration=4"]
    worker.main(str(experiment), str(tmp_path / "errors.json"), *overrides)
    assert_exact(tmp_path / "errors.json")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_split_is_exact_over_two_ranks_though_one_has_no_rows(
    device_each: torch.device, strategy: str, write_experiment: Write, tmp_path: Path
) -> None:
    """With accumulation, two micro-batches of 2 rows a rank, an offset and the z-loss; without
    those two, two ranks measure what one does (below), which is exact (above)."""
    experiment = edited(
        write_experiment, distributed_strategy=strategy, softmax_auxiliary_loss=True
    )
    overrides = ["injection.offset=3", "train.max_duration=4"]
    run_worker(experiment, str(tmp_path / "errors.json"), *overrides, ranks=2)
    assert_exact(tmp_path / "errors.json")


# -- invisibility --------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_measuring_changes_neither_losses_nor_weights(
    exactly: list[str], strategy: str, write_experiment: Write, tmp_path: Path
) -> None:
    folders = []
    for name, settings in (("with", SETTINGS | {"every": 1}), ("without", None)):
        experiment = edited(write_experiment, settings=settings, distributed_strategy=strategy)
        overrides = [f"train.save_folder={tmp_path / name}", *exactly]
        folders.append(train(load_experiment(experiment, overrides)))
    assert_same_run(*folders)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_train_the_same_with_it_and_measure_what_one_does(
    strategy: str, write_experiment: Write, tmp_path: Path
) -> None:
    folders = {}
    for name, settings, ranks in (("with", SETTINGS, 2), ("bare", None, 2), ("one", SETTINGS, 1)):
        folders[name] = tmp_path / name
        experiment = edited(write_experiment, settings=settings, distributed_strategy=strategy)
        override = f"train.save_folder={folders[name]}"
        if ranks == 1:
            train(load_experiment(experiment, [override]))
        else:
            done = warm.run("train", experiment, "-o", override, ranks=ranks)
            assert done.returncode == 0, done.stdout + done.stderr
    assert_same_run(folders["with"], folders["bare"])
    key = ["step", "task", "metric", "group", "layer", "other_task"]
    fields = ["value", "null_labels", "null_random", "perp", "norm", "dim"]
    two, one = (read_records(folders[name]) for name in ("with", "one"))
    both = two[two.group.notna()].merge(one[one.group.notna()], on=key, suffixes=("_2", "_1"))
    assert len(both) == two.group.notna().sum() > 100
    # Later the two runs drift apart as any two rank counts do; the first step starts equal.
    first = both[both.step == 1]
    for field in fields:
        a, b = first[f"{field}_2"].to_numpy(float), first[f"{field}_1"].to_numpy(float)
        update = (first.metric == "cos_update").to_numpy()
        np.testing.assert_allclose(a[~update], b[~update], rtol=1e-4, atol=1e-5, err_msg=field)
        # Adam's first step is the gradient's sign: entries near 0 may flip.
        np.testing.assert_allclose(a[update], b[update], rtol=2e-2, atol=2e-2, err_msg=field)


def test_grad_rng_and_train_mode_are_left_as_found(
    write_experiment: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    @dataclass
    class Watched(Interference):
        def on_gradients(self, trainer: Any, batch: dict[str, Any]) -> None:
            grads = [(p, p.grad, p.grad.clone()) for p in trainer.dist_model.parameters()]
            training, rng = trainer.dist_model.training, torch.get_rng_state()
            super().on_gradients(trainer, batch)
            assert all(p.grad is g and torch.equal(g, copy) for p, g, copy in grads)
            assert trainer.dist_model.training == training
            assert trainer.dist_model.require_backward_grad_sync
            assert torch.equal(torch.get_rng_state(), rng)
            seen.append(trainer.global_step)

    monkeypatch.setitem(olmo_ext.callbacks.build.CALLBACKS, "interference", Watched)
    train(load_experiment(edited(write_experiment, settings={"top_k": 4, "every": 1})))
    assert len(seen) == 12


# -- records -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(write_experiment_in: Callable, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of one run; not to be changed."""
    write = write_experiment_in(tmp_path_factory.mktemp("rows"))
    settings = SETTINGS | {"instances": 40, "split": "train"}
    experiment = edited(write, settings=settings, device_train_microbatch_size=1)
    table = read_records(train(load_experiment(experiment)))
    return table[table.group.notna()]


def test_every_cosine_has_its_nulls_at_the_same_step_and_place(rows: Any) -> None:
    cosines = rows[rows.metric.str.startswith("cos_")]
    assert set(cosines.metric) == {
        *("cos_g", "cos_g_nt", "cos_g_t_all", "cos_g_t_label", "cos_g_t_others"),
        *("cos_g_r", "cos_update"),
    }
    for name in ("value", "null_labels", "null_random", "perp"):
        assert cosines[name].between(-1, 1).all(), name
    assert (cosines.random_spread == cosines.dim**-0.5).all()
    places = set(zip(rows.group, rows.layer.fillna(-1), strict=True))
    assert places == {("mlp_top", 0), ("layers", 0), ("layers", 1), ("model", -1)}
    # 4 neurons of 3 x 16 numbers; a block; the whole model.
    dims = rows.groupby("group").dim.unique().to_dict()
    block = 16 * (3 * 16) + 16 * 16 + 16 * 64 + 32 * 16 + 2 * 16
    expected = {"mlp_top": 192, "layers": block, "model": 2 * block + 2 * 256 * 16 + 16}
    assert {group: [d for d in dim if d == d] for group, dim in dims.items()} == {
        group: [dim] for group, dim in expected.items()
    }
    assert set(rows.split) == {"train"}
    assert set(rows.n) == {40}
    rest = rows[rows.metric == "cos_g_nt"].set_index(["step", "task", "group", "layer"])
    norms = rows[rows.metric == "norm_g_r"].set_index(["step", "task", "group", "layer"])
    product = rest.value * rest.norm * norms.value
    whole = [group == "model" for group in rest.index.get_level_values("group")]
    np.testing.assert_allclose(rest.inner[whole], product[whole], rtol=1e-6)
    pull = rows[rows.metric == "pull_g_nt"].set_index(["step", "task", "group", "layer"])
    np.testing.assert_allclose(pull.value + pull.noise, rest.norm**2, rtol=1e-6)
    assert (rest.inner_spread >= 0).all()
    assert norms.perp_share.between(0, 1).all()


def test_every_record_says_how_exact_the_split_was_and_in_which_precision(rows: Any) -> None:
    assert set(rows.precision) == {"fp32"}
    assert rows.split_error.nunique() == 1  # measured once a run
    assert 0 <= rows.split_error.iloc[0] < 1e-6  # 0 where both ways round alike


def test_neurons_may_be_a_share_of_the_mlp(write_experiment: Write) -> None:
    settings = {"top_k": 0.125, "groups": ["mlp_top"], "every": 12}
    rows = read_records(train(load_experiment(edited(write_experiment, settings=settings))))
    assert set(rows.dim.dropna()) == {32 / 8 * 3 * 16}


def test_the_task_matrix_is_symmetric_and_names_both_tasks(rows: Any) -> None:
    cells = rows[(rows.metric == "cos_g_r") & (rows.group == "model")]
    assert set(zip(cells.task, cells.other_task, strict=True)) == {("cmp", "add"), ("add", "cmp")}
    for _, pair in cells.groupby("step"):
        assert pair.value.nunique() == 1


def test_neurons_stay_for_a_window_and_their_overlap_is_recorded(rows: Any) -> None:
    overlap = rows[rows.metric == "overlap"]
    assert set(overlap.step) == {4, 7, 10}  # none yet at the first measurement
    assert overlap.value.between(0, 1).all()
    assert ((overlap.value * 4) % 1 == 0).all()


def test_the_subset_is_compared_with_all_instances_once(rows: Any) -> None:
    compared = rows[rows.metric == "subset_cosine"]
    assert set(compared.step) == {1}
    assert len(compared) == 2 * 4  # each task at four places
    assert compared.value.between(0.3, 1).all()


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        # add comes with every second step: its first in [0, 3) is the step counted 1 from 0.
        ({"every": 3, "tasks": ["add"]}, {2, 4, 8, 10}),
        ({"every": 3, "tasks": ["add"], "steps": "first"}, {1, 4, 7, 10}),
        ({"every": 5}, {1, 6, 11}),
    ],
)
def test_the_measured_step_is_the_first_with_rows_of_the_task_or_the_first(
    settings: dict, steps: set[int], write_experiment: Write
) -> None:
    experiment = edited(write_experiment, settings=settings | {"groups": ["mlp_top"], "top_k": 4})
    folder = train(load_experiment(experiment))
    rows = read_records(folder).query("group == 'mlp_top'")
    assert set(rows.step) == steps
    plan = load_plan(folder)
    with_rows = {step + 1 for step in range(12) if 1 in plan.at(step).tasks}
    own = rows[(rows.metric == "cos_g_t_all") & (rows.task == "add")]
    assert set(own.step) == steps & with_rows


def test_a_resumed_run_measures_what_the_uninterrupted_one_does(
    write_experiment: Write, tmp_path: Path
) -> None:
    settings = {"every": 4, "window": 8, "top_k": 4}
    full = train(load_experiment(edited(write_experiment, settings=settings)))
    overrides = [f"train.save_folder={tmp_path / 'cut'}"]
    experiment = edited(write_experiment, settings=settings)
    train(load_experiment(experiment, [*overrides, "train.stop_at=6"]))
    cut = train(load_experiment(experiment, overrides), resume=True)
    one, two = (read_records(folder) for folder in (full, cut))
    # The cut run also evaluates the step it stopped after.
    one, two = one[one.group.notna()], two[two.group.notna()]
    assert one.reset_index(drop=True).equals(two.reset_index(drop=True))
    assert len(one) > 100


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("tasks", ["cmp", "mul"], ["mul"]),
        ("layer", 2, 2),
        ("top_k", 33, 33),
        ("top_k", 1.5, 1.5),
        ("instances", 101, 101),
        ("groups", ["mlp_top", "heads"], ["mlp_top", "heads"]),
        ("groups", [], []),
        ("every", 0, 0),
        ("instances", 1, 1),
        ("steps", "last", "last"),
        ("split", "dev", "dev"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(
    name: str, value: object, got: object, write_experiment: Write, tmp_path: Path
) -> None:
    experiment = edited(write_experiment, settings={"top_k": 4} | {name: value})
    with pytest.raises(ConfigError) as error:
        train(load_experiment(experiment))
    assert (error.value.key, error.value.value) == (f"callbacks.interference.{name}", got)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("train.model.residual_dropout", 0.1), ("train.model.block_group_size", 2)],
)
def test_models_for_which_the_split_is_not_exact_are_refused(
    key: str, value: float, write_experiment: Write
) -> None:
    experiment = edited(write_experiment, settings={"top_k": 4})
    with pytest.raises(ConfigError) as error:
        train(load_experiment(experiment, [f"{key}={value}"]))
    assert (error.value.key, error.value.value) == (key, value)
