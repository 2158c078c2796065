"""What a run may begin with: train.load_path's checkpoint, asked before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refuses

from olmo_ext.config import load_experiment
from olmo_ext.engines.origin import check_parent, find_origin
from olmo_ext.prepare import prepare
from olmo_ext.train import train

Write = Callable[[Path], Callable[..., Path]]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, write_experiment_in: Write) -> Path:
    """A run of six steps without a plan; experiments beside it read the same tokens."""
    folder = tmp_path_factory.mktemp("parent")
    settings = [f"train.save_folder={folder}/run", "injection.tasks=[]", "train.max_duration=6"]
    settings += ["train.optimizer.weight_decay=0"]  # the engine resets only what is above 0
    return train(load_experiment(write_experiment_in(folder)(), settings))


@pytest.fixture
def origin(parent: Path) -> str:
    return str(parent / "step6-unsharded")


def settings_of(child: Path, origin: str, *more: str) -> list[str]:
    return [f"train.save_folder={child}", "injection.tasks=[]", f"train.load_path={origin}", *more]


def ask(parent: Path, origin: str, *more: str) -> Path:
    """The decision alone: nothing is trained."""
    file = parent.parent / "experiment.yaml"
    experiment = load_experiment(file, settings_of(parent.parent / "child", origin, *more))
    return find_origin(experiment.train, prepare(experiment).stream)


def mask_files(path: Path, tokens: Path) -> Iterator[bool]:
    """One mask after the other in the same file: all of the tokens count, and none."""
    for counts in (True, False):
        np.full(tokens.stat().st_size // 2, counts).tofile(path)
        yield counts


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("norm_after=true", "norm_after: True now, False then"),
        ("rope_theta=500000", "rope_theta: 500000 now, 10000 then"),
        ("scale_logits=true", "scale_logits: True now, False then"),
        ("clip_qkv=0.01", "clip_qkv: 0.01 now, None then"),
        ("layer_norm_eps=0.1", "layer_norm_eps: 0.1 now, 1e-05 then"),
        ("rope_full_precision=false", "rope_full_precision: False now, True then"),
        ("mlp_ratio=8", "mlp_hidden_size: 128 now, 64 then"),
    ],
)
def test_weights_of_another_function_are_refused(
    setting: str, said: str, parent: Path, origin: str
) -> None:
    """Their tensors have the same names and shapes, and would load."""
    with refuses(key="train.load_path", value=origin, rule=("another model", said)):
        ask(parent, origin, f"train.model.{setting}")


@pytest.mark.parametrize(
    "setting",
    ["residual_dropout=0.1", "init_std=0.5", "init_fn=mitchell", "mlp_hidden_size=64"],
)
def test_what_leaves_the_function_as_it_is_may_change(
    setting: str, parent: Path, origin: str
) -> None:
    assert ask(parent, origin, f"train.model.{setting}") == Path(origin)


@pytest.mark.parametrize("steps", [5, 6])
def test_a_checkpoint_with_nothing_left_to_train_is_refused(
    steps: int, parent: Path, origin: str
) -> None:
    with refuses(key="train.max_duration", value=steps, rule="above 6"):
        ask(parent, origin, f"train.max_duration={steps}")


@pytest.mark.parametrize("key", ["decay_norm_and_bias", "decay_embeddings"])
def test_other_groups_of_the_optimizer_are_refused_unless_it_is_fresh(
    key: str, parent: Path, origin: str
) -> None:
    setting, said = f"train.optimizer.{key}=true", f"optimizer.{key}: True now, None then"
    with refuses(key="train.load_path", value=origin, rule=said, remedy="reset_optimizer_state"):
        ask(parent, origin, setting)
    assert ask(parent, origin, setting, "train.reset_optimizer_state=true") == Path(origin)


def test_other_tokens_in_files_of_the_same_name_are_refused(
    parent: Path, origin: str, tmp_path: Path
) -> None:
    """Where the checkpoint says which they were; a stock one does not."""
    (tmp_path / "copy").mkdir()
    shutil.copy(parent.parent / "tokens.npy", tmp_path / "copy")
    assert ask(parent, origin, f"train.data.paths=[{tmp_path}/copy/tokens.npy]") == Path(origin)
    other = np.fromfile(parent.parent / "tokens.npy", dtype=np.uint16)[::-1]
    other.tofile(tmp_path / "tokens.npy")
    files = f"train.data.paths=[{tmp_path}/tokens.npy]"
    with refuses(key="train.load_path", value=origin, rule=("other rows", "corpus_hash")):
        ask(parent, origin, files)
    stock = shutil.copytree(origin, tmp_path / "step6-unsharded")
    for name in ("olmo_ext.json", "SHA256SUMS"):
        (stock / name).unlink()
    assert ask(parent, str(stock), files) == stock


def test_other_label_masks_of_the_same_name_are_refused(
    parent: Path, origin: str, tmp_path: Path
) -> None:
    """A sibling that is still to be trained is asked by the same rule."""
    masks = tmp_path / "tokens.npy"
    ours, theirs = (
        prepare(
            load_experiment(
                parent.parent / "experiment.yaml",
                settings_of(tmp_path, origin, f"train.data.label_mask_paths=[{masks}]"),
            )
        )
        for _ in mask_files(masks, parent.parent / "tokens.npy")
    )
    (experiment, other), step = (ours.experiment.train, theirs.experiment.train), 6
    other.save_num_unsharded_checkpoints_to_keep = -1
    check_parent(experiment, ours.stream, other, ours.stream, step=step)
    check_parent(experiment, None, other, theirs.stream, step=step)
    with refuses(key="train.load_path", value=origin, rule=("other rows", "label_masks")):
        check_parent(experiment, ours.stream, other, theirs.stream, step=step)


def test_a_run_has_its_own_optimizer_settings_not_its_parents(
    parent: Path, origin: str, tmp_path: Path
) -> None:
    """Loading the parent's optimizer brings these too; then they are the run's own when it is
    resumed."""
    own = {"betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.5, "max_grad_norm": 0.25}
    ours = [f"train.{'' if key == 'max_grad_norm' else 'optimizer.'}{key}" for key in own]
    values = ["[0.5, 0.6]", "1e-3", "0.5", "0.25"]
    settings = settings_of(tmp_path / "child", origin, "train.max_duration=8")
    settings += [f"{key}={value}" for key, value in zip(ours, values, strict=True)]
    settings += ["train.save_interval_unsharded=1"]
    file = parent.parent / "experiment.yaml"
    child = train(load_experiment(file, settings))

    def saved(step: int) -> dict[str, dict]:
        path = child / f"step{step}-unsharded"
        return {
            name: torch.load(path / name, weights_only=True) for name in ("model.pt", "optim.pt")
        }

    whole = saved(8)
    decay, rest = whole["optim.pt"]["param_groups"]
    assert {key: decay[key] for key in own} == own
    assert {key: rest[key] for key in own} == own | {"weight_decay": 0.0}
    assert (decay["lr"], decay["initial_lr"]) == (rest["lr"], 0.01)
    shutil.rmtree(child / "step8-unsharded")
    train(load_experiment(file, settings), resume=True)
    assert saved(8)["optim.pt"]["param_groups"] == whole["optim.pt"]["param_groups"]
    for name, weight in whole["model.pt"].items():
        assert torch.equal(saved(8)["model.pt"][name], weight)
