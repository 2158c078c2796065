"""What a run may begin with: train.load_path's checkpoint, asked before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import refuses

from olmo_ext.config import load_experiment
from olmo_ext.engines.origin import find_origin
from olmo_ext.prepare import prepare
from olmo_ext.train import train

Write = Callable[[Path], Callable[..., Path]]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, write_experiment_in: Write) -> Path:
    """A run of six steps without a plan; experiments beside it read the same tokens."""
    folder = tmp_path_factory.mktemp("parent")
    settings = [f"train.save_folder={folder}/run", "injection.tasks=[]", "train.max_duration=6"]
    return train(load_experiment(write_experiment_in(folder)(), settings))


@pytest.fixture
def origin(parent: Path) -> str:
    return str(parent / "step6-unsharded")


def settings_of(child: Path, origin: str, *more: str) -> list[str]:
    plain = [f"train.save_folder={child}", "injection.tasks=[]", f"train.load_path={origin}"]
    return [*plain, *more]


def ask(parent: Path, origin: str, *more: str) -> Path:
    """The decision alone: nothing is trained."""
    file = parent.parent / "experiment.yaml"
    experiment = load_experiment(file, settings_of(parent.parent / "child", origin, *more))
    return find_origin(experiment.train, prepare(experiment).stream)


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
