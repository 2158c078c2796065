"""Which folders are checkpoints, and that a run's plan is the one it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from refusals import refuses

from eval.checkpoints.checkpoint import FILES, find_checkpoints, load_model, load_plan, random_model
from olmo_ext.config import load_experiment
from olmo_ext.train import train

Write = Callable[..., Path]


def fake_checkpoint(path: Path, *, without: str | None = None) -> Path:
    path.mkdir()
    for name in FILES:
        if name != without:
            (path / name).touch()
    return path


def found(folder: Path) -> list[str]:
    return [checkpoint.path.name for checkpoint in find_checkpoints(folder)]


def test_checkpoints_come_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (10, 9, 100, 0):
        fake_checkpoint(tmp_path / f"step{step}-unsharded")
    assert [(c.step, c.path.name) for c in find_checkpoints(tmp_path)] == [
        (step, f"step{step}-unsharded") for step in (0, 9, 10, 100)
    ]


@pytest.mark.parametrize(
    "missing", ["model.pt", "optim.pt", "train.pt", "config.yaml", "olmo_ext.json"]
)
def test_a_checkpoint_without_one_of_its_files_is_none(missing: str, tmp_path: Path) -> None:
    assert missing in FILES
    fake_checkpoint(tmp_path / "step1-unsharded")
    fake_checkpoint(tmp_path / "step2-unsharded", without=missing)
    assert found(tmp_path) == ["step1-unsharded"]


def test_only_whole_names_of_unsharded_checkpoints_count(tmp_path: Path) -> None:
    """A complete checkpoint being written, a sharded one, the engine's link, a stranger's file."""
    real = fake_checkpoint(tmp_path / "step5-unsharded")
    for name in ("step6-unsharded-tmp", "step7", "stepx-unsharded", "old-step8-unsharded"):
        fake_checkpoint(tmp_path / name)
    (tmp_path / "latest-unsharded").symlink_to(real.name, target_is_directory=True)
    (tmp_path / "step9-unsharded").touch()
    assert found(tmp_path) == ["step5-unsharded"]


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert find_checkpoints(tmp_path) == find_checkpoints(tmp_path / "absent") == []


def test_a_folder_without_a_model_or_a_plan_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"step\*-unsharded"):
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no plan\.json"):
        load_plan(tmp_path)


def test_a_plan_is_refused_when_the_saved_experiment_gives_another(
    write_experiment: Write,
) -> None:
    folder = train(load_experiment(write_experiment(), ["train.max_duration=2"]))
    trained_on = load_plan(folder).hash
    saved = folder / "experiment.yaml"
    text = saved.read_text()
    for before, after in (("rate: 2", "rate: 3"), ("rate: 1/2", "rate: 1/3"), ("cmp", "cmq")):
        assert text.count(before) == 1
        saved.write_text(text.replace(before, after))
        with refuses(key=f"{folder}: the saved experiment", rule=trained_on[:12]):
            load_plan(folder)
    saved.write_text(text)
    assert load_plan(folder).hash == trained_on


def test_a_random_model_is_of_the_same_shape_with_weights_that_only_the_seed_decides(
    write_experiment: Write,
) -> None:
    checkpoint = find_checkpoints(train(load_experiment(write_experiment())))[-1].path
    trained = load_model(checkpoint).state_dict()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (random_model(checkpoint, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: p.shape for name, p in one.items()} == {n: p.shape for n, p in trained.items()}
    name = "transformer.wte.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], trained[name])
