"""A run whose numbers are no longer finite: one sentence, its last good checkpoint, and no way on
by mistake."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from olmo.optim import AdamW
from refusals import refuses
from typer.testing import CliRunner

from data_injection.errors import DivergedError
from eval.checkpoints.checkpoint import find_checkpoints
from eval.export.huggingface import export_hf
from eval.records import read_records
from eval.run import DIVERGED
from launch.cli import app
from launch.slurm.jobs import Queue
from launch.slurm.status import run_status
from olmo_ext.callbacks.task_eval import TaskEval
from olmo_ext.config import load_experiment
from olmo_ext.train import train
from olmo_ext.trainer import ExperimentTrainer

Write = Callable[..., Path]


def poison(monkeypatch: pytest.MonkeyPatch, *, step: int, value: float) -> None:
    """The optimizer's step of that number puts one value into every weight."""
    stock = ExperimentTrainer.train_step

    def train_step(self: ExperimentTrainer, *args: Any, **kwargs: Any) -> Any:
        take = self.optim.step

        def take_and_spoil(*args: Any, **kwargs: Any) -> None:
            take(*args, **kwargs)
            if self.global_step == step:
                with torch.no_grad():
                    for weight in self.dist_model.parameters():
                        weight.fill_(value)

        monkeypatch.setattr(self.optim, "step", take_and_spoil)
        try:
            return stock(self, *args, **kwargs)
        finally:
            monkeypatch.setattr(self.optim, "step", take)

    monkeypatch.setattr(ExperimentTrainer, "train_step", train_step)


@pytest.mark.parametrize(
    ("step", "value", "said"),
    [
        (8, float("nan"), "the loss of step 9 is not a number"),
        (8, float("inf"), "the loss of step 9 is not a number"),
        (6, float("nan"), "the logits after step 6 are not finite"),  # at a checkpoint
        (12, float("inf"), "the logits after step 12 are not finite"),  # the last update
    ],
)
def test_a_run_that_diverges_says_step_checkpoint_and_remedy(
    step: int, value: float, said: str, write_experiment: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load_experiment(write_experiment())
    folder = Path(experiment.train.save_folder)
    good = 0 if step == 6 else 6
    remedy = (f"last good checkpoint is {folder}/step{good}-unsharded", "lower learning rate")
    with monkeypatch.context() as patch:
        poison(patch, step=step, value=value)
        with refuses(key=folder, rule=said, remedy=remedy, kind=DivergedError):
            train(experiment)
    assert find_checkpoints(folder)[-1].step == good
    assert json.loads((folder / DIVERGED).read_text())["checkpoint"] == f"step{good}-unsharded"
    assert run_status(folder, [], Queue({}, "")).state == "diverged"
    rows = read_records(folder)
    assert rows[(rows.metric == "score") & (rows.step == step)].value.isna().all()
    with refuses(key=folder, rule="diverged: ", remedy="pass --despite-divergence"):
        train(experiment, resume=True)
    train(experiment, resume=True, despite_divergence=True)
    assert find_checkpoints(folder)[-1].step == 12
    assert not (folder / DIVERGED).exists()
    assert run_status(folder, [], Queue({}, "")).state == "finished"


def test_a_learning_rate_beyond_reason_ends_in_one_sentence(write_experiment: Write) -> None:
    experiment = write_experiment(
        lambda c: (
            c["train"]["optimizer"].update(learning_rate=1e30),
            c["train"].update(max_grad_norm=None),
            c["callbacks"].update(
                features={"every": 1},
                interference={"every": 1, "top_k": 4},
                progress={"seconds": 0},
            ),
        )
    )
    done = CliRunner().invoke(app, ["train", str(experiment)])
    assert isinstance(done.exception, DivergedError), done.exception
    assert "diverged" in str(done.exception)
    assert "\n" not in str(done.exception)


@pytest.mark.parametrize("hook", ["on_gradients", "on_step"])
def test_a_callback_of_its_own_out_of_range_is_no_divergence(
    hook: str, write_experiment: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load_experiment(write_experiment())
    monkeypatch.setattr(TaskEval, hook, lambda *args: math.exp(1e9))
    with pytest.raises(OverflowError, match="math range error"):
        train(experiment)
    assert not (Path(experiment.train.save_folder) / DIVERGED).exists()


def test_the_rank_that_sees_the_loss_still_takes_part_in_the_optimizers_reductions(
    write_experiment: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    stock = AdamW.get_post_step_metrics

    def count(self: AdamW, *args: Any, **kwargs: Any) -> Any:
        asked.append(len(asked) + 1)
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(AdamW, "get_post_step_metrics", count)
    monkeypatch.setattr(ExperimentTrainer, "should_log_optim_metrics_this_step", lambda self: True)
    poison(monkeypatch, step=8, value=float("nan"))
    experiment = load_experiment(write_experiment())
    rule = "diverged: the loss of step 9"
    with refuses(key=experiment.train.save_folder, rule=rule, kind=DivergedError):
        train(experiment)
    assert asked == list(range(1, 10))


def test_a_diverged_checkpoint_is_exported_only_if_told(
    write_experiment: Write, tmp_path: Path
) -> None:
    folder = train(load_experiment(write_experiment()))
    last = find_checkpoints(folder)[-1].path
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(last / "config.yaml", bare)
    state = torch.load(last / "model.pt", weights_only=True)
    next(iter(state.values())).view(-1)[3] = float("inf")
    torch.save(state, bare / "model.pt")
    rule, remedy = "wte.weight is not finite", "--despite-divergence"
    with refuses(key=bare, rule=rule, remedy=remedy, kind=DivergedError):
        export_hf(bare, tmp_path / "out", no_tokenizer=True)
    assert not (tmp_path / "out").exists()
    export_hf(bare, tmp_path / "out", no_tokenizer=True, despite_divergence=True)
