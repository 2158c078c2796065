"""When the features callback measures, what it finds in trained models, and that it only looks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from refusals import refuses

from data_injection.errors import ConfigError
from data_injection.tasks.base import FloatArray
from data_injection.tasks.comparison import Comparison
from eval.checkpoints.checkpoint import find_checkpoints, load_model
from eval.features.activations import residual_stream
from eval.records import read_records
from olmo_ext.callbacks.features import Features
from olmo_ext.config import load_experiment
from olmo_ext.train import train

Write = Callable[..., Path]


def with_features(**settings: object) -> Callable[[dict], None]:
    return lambda config: config["callbacks"].update(features={"every": 5} | settings)


@pytest.fixture
def trained(write_experiment: Write) -> Path:
    return train(load_experiment(write_experiment(with_features())))


def test_every_target_is_measured_at_every_layer_from_the_first_step_to_the_last(
    trained: Path,
) -> None:
    rows = read_records(trained)
    rows = rows[rows.group.notna()]
    assert sorted(set(rows.step)) == [0, 5, 10, 12]
    assert set(rows.split) == {""}
    for task, group, count in (
        ("cmp", "order", "probe_count"),
        ("add", "fourier", "fourier_modes"),
    ):
        of_task = rows[rows.task == task]
        assert set(of_task.group) == {group}
        metrics = {f"{group}_r2", f"{group}_r2_null_mean", f"{group}_r2_null99", count}
        assert set(of_task.metric) == metrics
        for _, at_step in of_task.groupby("step"):
            assert sorted(at_step[at_step.metric == f"{group}_r2"].layer) == [0, 1]
            assert at_step[at_step.metric == count].layer.isna().sum() == 1
    assert rows.value.notna().all()


def test_layers_position_tasks_and_the_start_can_be_chosen(write_experiment: Write) -> None:
    chosen = with_features(tasks=["add"], layers=[1], position=1, contexts=3, at_start=False)
    rows = read_records(train(load_experiment(write_experiment(chosen))))
    rows = rows[rows.group.notna()]
    assert set(rows.task) == {"add"}
    assert set(rows.layer.dropna()) == {1}
    assert set(rows.position) == {1}
    assert sorted(set(rows.step)) == [5, 10, 12]


def test_measuring_changes_nothing(write_experiment: Write, tmp_path: Path) -> None:
    """Dropout draws from the global generator: one draw too many would show in the weights."""

    def dropout(config: dict) -> None:
        config["train"]["model"]["residual_dropout"] = 0.2

    def watched(config: dict) -> None:
        dropout(config)
        with_features(every=1, position=1)(config)

    folders = {}
    for name, edit in {"plain": dropout, "watched": watched}.items():
        overrides = [f"train.save_folder={tmp_path / name}"]
        folders[name] = train(load_experiment(write_experiment(edit), overrides))
    for file in ("model.pt", "optim.pt"):
        one, two = (
            (folder / "step12-unsharded" / file).read_bytes() for folder in folders.values()
        )
        assert one == two, file


def test_the_last_layer_is_the_stream_and_not_the_final_norms_output(trained: Path) -> None:
    model = load_model(find_checkpoints(trained)[-1].path)
    ids_BT = torch.tensor([[5, 9, 3], [8, 8, 2]])
    states_LBD = residual_stream(model, ids_BT)
    x_BTD = model.transformer.wte(ids_BT)
    torch.testing.assert_close(states_LBD[0], x_BTD[:, -1])
    x_BTD, _ = model.transformer.blocks[0](x_BTD)
    torch.testing.assert_close(states_LBD[1], x_BTD[:, -1])
    assert not states_LBD.requires_grad
    assert not model.transformer.ln_f._forward_pre_hooks


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_measure_what_one_does(
    strategy: str, trained: Path, write_experiment: Write, tmp_path: Path
) -> None:
    def edit(config: dict) -> None:
        with_features()(config)
        config["train"].update(distributed_strategy=strategy, save_folder=str(tmp_path / "two"))

    done = warm.run("train", write_experiment(edit), ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    key = ["step", "task", "metric", "layer"]
    one, two = (
        rows[rows.group.notna()].set_index(key).value.sort_index()
        for rows in (read_records(trained), read_records(tmp_path / "two"))
    )
    assert one.index.equals(two.index)
    # Adam's first steps amplify rounding; before them the weights are equal.
    np.testing.assert_allclose(one[0], two[0], atol=1e-5)
    np.testing.assert_allclose(one, two, atol=0.05)


def addition_alone(config: dict) -> None:
    """Modular addition and nothing else: rows of 4 tokens, each an example and its EOS, and enough
    weight decay on the embeddings too that memorising the 768 train pairs does not pay."""
    train, batch = config["train"], 256
    tokens = np.random.default_rng(0).integers(2, 64, size=4 * 2 * batch, dtype=np.uint16)
    tokens.tofile(train["data"]["paths"][0])
    train["model"].update(
        d_model=64, n_heads=4, activation_type="swiglu", max_sequence_length=4, vocab_size=64,
        embedding_size=64, weight_tying=True,
    )  # fmt: skip
    train["optimizer"].update(
        learning_rate=1e-2, weight_decay=3.0, betas=[0.9, 0.95], decay_embeddings=True
    )
    train["scheduler"].update(t_warmup=50, alpha_f=0.1)
    train.update(
        seed=1, max_duration=1200, save_interval_unsharded=1200, global_train_batch_size=batch,
        device_train_microbatch_size=batch,
    )  # fmt: skip
    task = {"name": "add", "family": "modular_addition", "num_symbols": 31, "train_fraction": 0.8}
    config["injection"] = {"seed": 1, "tasks": [task | {"schedule": {"rate": batch}}]}
    config["callbacks"].update(task_eval={"every": 1200}, features={"every": 1200})


@pytest.mark.slow
def test_a_model_that_learned_to_add_has_modes_and_its_first_checkpoint_none(
    write_experiment: Write,
) -> None:
    rows = read_records(train(load_experiment(write_experiment(addition_alone))))
    score = rows[(rows.metric == "score") & (rows.split == "test") & (rows.subset == "all")]
    score = score.set_index("step").value
    assert score[0] < 0.1
    assert score[1200] > 0.5
    count = rows[(rows.metric == "fourier_modes") & rows.layer.isna()].set_index("step")
    assert count.value[0] == 0
    assert count.value[1200] >= 3
    assert set(count.units) == {15}
    best = rows[(rows.metric == "fourier_r2") & (rows.step == 1200)].value.max()
    null = rows[(rows.metric == "fourier_r2_null99") & (rows.step == 1200)].value.max()
    assert best > 0.6 > 0.35 > null


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        ({"tasks": ["cmp", "mul"]}, "tasks", ["mul"]),
        ({"layers": [0, 2]}, "layers", [2]),
        ({"layers": [-1]}, "layers", [-1]),
        ({"layers": [1, 1]}, "layers", [1, 1]),
        ({"position": 2}, "position", 2),
        ({"every": 0}, "every", 0),
        ({"permutations": 20}, "permutations", 20),
        ({"contexts": 0}, "contexts", 0),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(
    settings: dict, name: str, value: object, write_experiment: Write, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        train(load_experiment(write_experiment(with_features(**settings))))
    assert (error.value.key, error.value.value) == (f"callbacks.features.{name}", value)
    assert not (tmp_path / "run").exists()


def test_a_task_without_targets_is_refused_if_named_and_left_out_if_not(
    write_experiment: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Comparison, "targets", lambda self: {})
    with refuses(key="callbacks.features.tasks", value=["cmp"], rule="declare targets"):
        train(load_experiment(write_experiment(with_features(tasks=["cmp"]))))
    assert not (tmp_path / "run").exists()
    rows = read_records(train(load_experiment(write_experiment(with_features()))))
    assert set(rows[rows.group.notna()].task) == {"add"}

    def alone(config: dict) -> None:
        with_features()(config)
        config["injection"]["tasks"].pop()

    with refuses(key="callbacks.features", rule=("declares targets", "['cmp']"), remedy="null"):
        train(load_experiment(write_experiment(alone)))


@pytest.mark.parametrize(
    ("target", "rule"),
    [(np.ones((10, 1)), "no unit the same for all"), (np.arange(9.0)[:, None], "got (9, 1)")],
)
def test_a_target_that_cannot_be_probed_is_refused_before_the_run(
    target: FloatArray, rule: str, write_experiment: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Comparison, "targets", lambda self: {"mine": target})
    with refuses(key="callbacks.features", rule=("target 'mine' of task 'cmp': ", rule)):
        train(load_experiment(write_experiment(with_features())))


def test_too_few_symbols_for_the_folds_are_refused(write_experiment: Write) -> None:
    def few(config: dict) -> None:
        with_features(tasks=["cmp"])(config)
        config["injection"]["tasks"][0]["num_symbols"] = 9

    rule = ("target 'order' of task 'cmp'", "two symbols each, got 9", "10 or more")
    with refuses(key="callbacks.features", rule=rule):
        train(load_experiment(write_experiment(few)))


def test_the_defaults_are_the_studys_site_and_all_layers() -> None:
    callback = Features()
    assert (callback.position, callback.layers, callback.permutations) == (0, [], 200)
