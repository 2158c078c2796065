"""Training on the engine: ranks, strategies, resuming, and what a run leaves behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from olmo.config import InstanceFilterConfig
from olmo.optim import build_scheduler
from refusals import refuses
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import olmo_ext.prepare
from data_injection.ledger import LedgerWriter, read_segments
from data_injection.lock import is_locked, lock_folder
from eval.audit.audit import audit_run
from eval.checkpoints.checkpoint import find_checkpoints, load_model, load_plan, write_checksums
from eval.records import read_records
from eval.run import FAILED
from eval.scores.evaluate import evaluate
from olmo_ext.callbacks.task_eval import TaskEval
from olmo_ext.compat import stock_trainer_state
from olmo_ext.config import load_experiment
from olmo_ext.engines.tracking import has_wandb_key
from olmo_ext.train import train

Write = Callable[..., Path]


def losses(folder: Path) -> dict[int, float]:
    rows = read_records(folder).query("metric == 'train_loss'")
    return dict(zip(rows.step, rows.value, strict=True))


def state(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint's model and optimizer by its path in the files."""
    tensors: dict[str, torch.Tensor] = {}

    def collect(prefix: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            tensors[prefix] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                collect(f"{prefix}.{key}", inner)

    for name in ("model.pt", "optim.pt"):
        collect(name, torch.load(folder / f"step{step}-unsharded" / name, weights_only=True))
    return tensors


def assert_bit_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert len(one) > 20
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def on_two_ranks(experiment: Path, *args: str) -> None:
    done = warm.run("train", experiment, *args, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr


BY_NODE = """
import os, sys
import numpy as np
from data_injection.errors import ConfigError
from data_injection.tasks.base import Task

class Local(Task):
    "Its labels are another node's on rank 1, as from a file on the node's own disk."
    num_labels = 2
    def examples(self):
        labels = self.labels[(np.arange(len(self.symbols)) + int(os.environ["RANK"])) % 2]
        return np.stack([self.symbols, labels], axis=1)

if __name__ == "__main__":
    from olmo_ext.config import load_experiment
    from olmo_ext.train import train
    try:
        train(load_experiment(sys.argv[1]))
    except ConfigError as error:
        os.write(1, f"refused: {error}\\n".encode())
"""


@pytest.mark.slow
def test_a_rank_whose_plan_is_another_ends_the_start_on_every_rank(
    write_experiment: Write, tmp_path: Path
) -> None:
    (tmp_path / "by_node.py").write_text(BY_NODE)
    task = {"name": "t", "family": "by_node:Local", "num_symbols": 10, "schedule": {"rate": 4}}
    path = write_experiment(lambda config: config["injection"].update(tasks=[task]))
    env = {"PYTHONPATH": str(tmp_path)}
    done = warm.run(tmp_path / "by_node.py", path, ranks=2, env=env, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr  # both have ended by themselves
    refused = [line for line in done.stdout.splitlines() if line.startswith("refused: rank 1 ")]
    assert len(refused) == 2
    assert "plan.tasks.t.digest" in refused[0]
    assert not (tmp_path / "run").exists()


@pytest.fixture
def one_rank(write_experiment: Write, tiny_run: Write, tmp_path: Path) -> Path:
    """The run of the tiny experiment on one rank, uninterrupted; a copy to spoil."""
    write_experiment()
    return Path(shutil.copytree(tiny_run(), tmp_path / "run", symlinks=True))


def test_resuming_is_bit_equal_to_the_uninterrupted_run(
    one_rank: Path, write_experiment: Write, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    overrides = [f"train.save_folder={cut}"]
    train(load_experiment(write_experiment(), [*overrides, "train.stop_at=6"]))
    assert [c.step for c in find_checkpoints(cut)] == [0, 6]
    train(load_experiment(write_experiment(), overrides), resume=True)
    assert_bit_equal(state(one_rank, 12), state(cut, 12))
    assert losses(one_rank) == losses(cut)
    assert len(losses(cut)) == 12


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_train_as_one_and_resume_bit_equal(
    strategy: str, one_rank: Path, write_experiment: Write, tmp_path: Path
) -> None:
    experiment = write_experiment(lambda c: c["train"].update(distributed_strategy=strategy))
    full, cut = tmp_path / "full", tmp_path / "cut"
    on_two_ranks(experiment, "-o", f"train.save_folder={full}")
    assert losses(full).keys() == losses(one_rank).keys()
    for step, loss in losses(one_rank).items():
        assert losses(full)[step] == pytest.approx(loss, rel=2e-5), step
    # Resume in fresh processes from the middle: the same weights, bit for bit.
    shutil.copytree(full, cut, symlinks=True)
    shutil.rmtree(cut / "step12-unsharded")
    lines = (cut / "records.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= 6]
    (cut / "records.jsonl").write_text("\n".join(kept) + "\n")
    on_two_ranks(experiment, "-o", f"train.save_folder={cut}", "--resume")
    assert_bit_equal(state(full, 12), state(cut, 12))
    assert losses(full) == losses(cut)


def test_resuming_is_bit_equal_with_dropout_and_workers_too(
    exactly: list[str], write_experiment: Write, tmp_path: Path
) -> None:
    """Dropout draws from the global generator, which nothing else may draw from in between."""

    def edit(config: dict) -> None:
        config["train"]["model"]["residual_dropout"] = 0.2
        config["train"]["data"]["num_workers"] = 1

    overrides = [f"train.save_folder={tmp_path / 'cut'}", *exactly]
    full = train(load_experiment(write_experiment(edit), exactly))
    train(load_experiment(write_experiment(edit), [*overrides, "train.stop_at=6"]))
    cut = train(load_experiment(write_experiment(edit), overrides), resume=True)
    assert_bit_equal(state(full, 12), state(cut, 12))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_cancelled_run_saves_its_last_step_and_goes_on_from_it(
    strategy: str, write_experiment: Write
) -> None:
    settings = {"distributed_strategy": strategy, "canceled_check_interval": 4}
    experiment = write_experiment(lambda c: c["train"].update(settings))
    folder = train(load_experiment(experiment, ["train.time_limit=0.0"]))
    assert [c.step for c in find_checkpoints(folder)] == [0, 4]
    assert {p.name for p in folder.glob("step*")} == {"step0-unsharded", "step4-unsharded"}
    train(load_experiment(experiment), resume=True)
    assert sorted(losses(folder)) == list(range(1, 13))


def test_an_incomplete_checkpoint_is_set_aside_and_its_steps_are_trained_again(
    one_rank: Path, write_experiment: Write
) -> None:
    whole = state(one_rank, 12)
    (one_rank / "step12-unsharded" / "optim.pt").unlink()
    train(load_experiment(write_experiment()), resume=True)
    assert_bit_equal(whole, state(one_rank, 12))
    assert len(list(one_rank.glob("step12-unsharded.incomplete-*"))) == 1


def test_a_damaged_checkpoint_is_put_aside_and_its_steps_are_trained_again(
    one_rank: Path, write_experiment: Write, caplog: pytest.LogCaptureFixture
) -> None:
    """Unattended, on a cluster, an error would be met again at every requeue."""
    whole = state(one_rank, 12)
    path = one_rank / "step12-unsharded" / "optim.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    train(load_experiment(write_experiment()), resume=True)
    assert "optim.pt has sha256" in caplog.text
    assert [c.step for c in find_checkpoints(one_rank)] == [0, 6, 12]
    assert_bit_equal(whole, state(one_rank, 12))
    (aside,) = one_rank.glob("step12-unsharded.damaged-*")
    assert (aside / "optim.pt").read_bytes() == bytes(data)


class Bomb:
    """What runs if a pickle is trusted."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("name", ["model.pt", "optim.pt", "train.pt"])
def test_a_checkpoint_that_would_run_code_does_not_when_it_is_resumed(
    name: str, one_rank: Path, write_experiment: Write, tmp_path: Path
) -> None:
    checkpoint = one_rank / "step12-unsharded"
    torch.save({"state": Bomb(tmp_path / "went off")}, checkpoint / name)
    write_checksums(checkpoint)  # by whoever put it there
    with refuses(key=checkpoint, rule="cannot be read"):
        train(load_experiment(write_experiment()), resume=True)
    assert not (tmp_path / "went off").exists()
    torch.load(checkpoint / name, weights_only=False)
    assert (tmp_path / "went off").exists()  # it would have


def test_a_run_of_which_every_checkpoint_is_damaged_is_not_started_afresh(
    one_rank: Path, write_experiment: Write
) -> None:
    for checkpoint in find_checkpoints(one_rank):
        (checkpoint.path / "model.pt").write_bytes(b"")
    with refuses(
        key="train.save_folder",
        value=one_rank,
        rule=("every checkpoint", "step0"),
        remedy="restore one",
    ):
        train(load_experiment(write_experiment()), resume=True)


def test_a_damaged_file_without_checksums_is_named_with_the_way_out(
    one_rank: Path, write_experiment: Write
) -> None:
    path = one_rank / "step12-unsharded" / "optim.pt"
    path.write_bytes(path.read_bytes()[:1000])
    make_old(path.parent)
    with refuses(key=path.parent, rule="cannot be read", remedy="move it away") as raised:
        train(load_experiment(write_experiment()), resume=True)
    told = json.loads((one_rank / FAILED).read_text())
    assert told["error"] == "ConfigError"
    assert {key: told[key] for key in ("key", "rule", "remedy")} == {
        key: getattr(raised.value, key) for key in ("key", "rule", "remedy")
    }


def make_old(checkpoint: Path) -> None:
    """As it was written before there were a ledger and checksums."""
    (checkpoint / "SHA256SUMS").unlink()
    identity = json.loads((checkpoint / "olmo_ext.json").read_text())
    del identity["ledger"], identity["step"]
    (checkpoint / "olmo_ext.json").write_text(json.dumps(identity))


def test_a_run_from_before_the_ledger_goes_on_bit_for_bit(
    one_rank: Path, write_experiment: Write, tmp_path: Path
) -> None:
    old = train(load_experiment(write_experiment(), [f"train.save_folder={tmp_path / 'old'}"]))
    shutil.rmtree(old / "step12-unsharded")
    shutil.rmtree(old / "ledger")
    for checkpoint in find_checkpoints(old):
        make_old(checkpoint.path)
    train(load_experiment(write_experiment(), [f"train.save_folder={old}"]), resume=True)
    assert_bit_equal(state(one_rank, 12), state(old, 12))


def test_anybodys_checkpoint_goes_on_with_a_plan_that_begins_there(
    write_experiment: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the plan, which places nothing before, had been there from the beginning."""

    def given(name: str, *settings: str, tasks: str = "[]") -> list[str]:
        return [f"train.save_folder={tmp_path / name}", f"injection.tasks={tasks}", *settings]

    def go(*args: Any, **settings: Any) -> Path:
        return train(load_experiment(write_experiment(), given(*args, **settings)))

    window = "[{name: cmp, num_symbols: 10, schedule: {kind: window, rate: 2, start: %d}}]"
    theirs = f"train.load_path={tmp_path}/whole/step6-unsharded"

    def twin_beside(self: TaskEval, trainer: Any, metrics: dict[str, float]) -> None:
        """In a process of its own, from a parent that is past the step and trains on."""
        if trainer.global_step == 8:
            assert is_locked(tmp_path / "whole")
            # What the parent loses of its ledger after the step is not the twin's.
            lost = {"start_step": 8, "parent": None, "header": {"lost": ["segment 0 is missing"]}}
            LedgerWriter(tmp_path / "whole" / "ledger", **lost).close()
            words = [["-o", one] for one in given("twin", theirs, tasks=window % 11)]
            done = warm.run("train", write_experiment(), *chain(*words))
            assert done.returncode == 0, done.stdout + done.stderr

    plain = go("plain")
    with monkeypatch.context() as patched:
        patched.setattr(TaskEval, "on_step", twin_beside)
        whole = go("whole", tasks=window % 6)
    stock = plain / "step6-unsharded"
    for name in ("olmo_ext.json", "SHA256SUMS"):  # as the engine alone writes it
        (stock / name).unlink()
    saved = stock_trainer_state(torch.load(stock / "train.pt", weights_only=True))
    del saved["callbacks"]
    torch.save(saved, stock / "train.pt")
    origin = f"train.load_path={stock}"
    part = go("part", origin, tasks=window % 6)
    assert_bit_equal(state(whole, 12), state(part, 12))
    # A twin: from a run whose plan has placed nothing until there.
    assert_bit_equal(state(go("alone", tasks=window % 11), 12), state(tmp_path / "twin", 12))
    (segment,) = read_segments(part / "ledger").values()
    assert segment.start_step == 6
    told = {one.check: one for one in audit_run(part).verdicts}
    assert "the run began with another's checkpoint of step 6" in told["stream"].said
    assert "steps 0 to 5 were trained in another's run: not checked" in told["ledger"].notes
    with refuses(key="injection.tasks[0].schedule", rule="at step 6 or later"):
        go("refused", origin, tasks=window % 5)
    key, none = "train.load_path", tmp_path / "step6-unsharded"
    for setting, rule, remedy in [
        ("train.data.seed=8", ("other rows", "(data.seed: 8 now, 7 then)"), "those settings"),
        ("train.distributed_strategy=fsdp", "strategy: 'fsdp' now, 'ddp' then", "those settings"),
        ("train.global_train_batch_size=2", "batch_size: 2 now, 8 then", "those settings"),
        ("train.model.n_layers=3", ("another model", "n_layers: 3 now, 1 then"), "give"),
    ]:
        with refuses(key=key, value=stock, rule=rule, remedy=remedy):
            go("refused", origin, setting, tasks=window % 6)
    for path, rule in ((tmp_path, "a folder stepN-unsharded"), (none, "model.pt")):
        with refuses(key=key, value=path, rule=rule):
            go("refused", f"{key}={path}", tasks=window % 6)
    rule = ("a plan of its own", "12 instances until then")
    with refuses(key=key, value=whole / "step12-unsharded", rule=rule, remedy="its own folder"):
        last = f"{key}={whole}/step12-unsharded"
        go("refused", last, "train.max_duration=18", tasks=window % 12)
    shutil.rmtree(whole / "ledger")
    with refuses(key=key, value=theirs.split("=")[1], rule="no whole ledger lies beside it"):
        go("refused", theirs, tasks=window % 6)
    assert not (tmp_path / "refused").exists()


def test_a_fresh_optimizer_is_fresh_once(write_experiment: Write, tmp_path: Path) -> None:
    """Its first step is the learning rate along the gradient's signs, warmed up again; a resumed
    run does not begin anew."""
    window = "[{name: cmp, num_symbols: 10, schedule: {kind: window, rate: 2, start: 6}}]"
    settings = [f"injection.tasks={window}", "train.save_interval_unsharded=1"]
    plain = train(
        load_experiment(
            write_experiment(), [f"train.save_folder={tmp_path / 'plain'}", "injection.tasks=[]"]
        )
    )
    settings += [f"train.load_path={plain}/step6-unsharded", "train.reset_optimizer_state=true"]
    settings += [
        f"train.save_folder={tmp_path / 'fresh'}",
        "callbacks.loss_budget={every: 1, instances: 0}",
    ]
    experiment = load_experiment(write_experiment(), settings)
    fresh = train(experiment)
    name = "model.pt.transformer.blocks.0.ff_out.weight"
    before, after = state(plain, 6)[name], state(fresh, 7)[name]
    rate = build_scheduler(experiment.train).get_lr(0.01, 8, 12) / 2  # 2 steps; eps is 1e-5
    torch.testing.assert_close(
        (after - before).abs().median(), torch.tensor(rate), rtol=0.05, atol=0
    )
    kept = torch.load(fresh / "step12-unsharded" / "optim.pt", weights_only=True)["state"]
    assert {int(one["step"]) for one in kept.values()} == {6}
    rows = read_records(fresh).query("metric == 'budget_actual'")
    assert (rows.n.max(), rows.closure.max() < 0.05) == (6, True)
    whole = state(fresh, 12)
    for step in (11, 12):
        shutil.rmtree(fresh / f"step{step}-unsharded")
    train(load_experiment(write_experiment(), settings), resume=True)
    assert_bit_equal(whole, state(fresh, 12))
    other = load_experiment(write_experiment(), [*settings, "train.reset_optimizer_state=false"])
    with refuses(key=fresh, value=[("fresh_optimizer_at", None, 6)]):
        train(other, resume=True)
    with refuses(key="train.reset_optimizer_state", value=True, rule="train.load_path"):
        load_experiment(write_experiment(), ["train.reset_optimizer_state=true"])


@pytest.mark.parametrize("damage", ["no sums", "empty sums", "identity", "identity's bytes"])
def test_nothing_around_a_damaged_checkpoint_hides_the_damage(
    damage: str, one_rank: Path, write_experiment: Write
) -> None:
    whole = state(one_rank, 12)
    checkpoint = one_rank / "step12-unsharded"
    if damage == "no sums":
        (checkpoint / "SHA256SUMS").unlink()
    elif damage == "empty sums":
        (checkpoint / "SHA256SUMS").write_text("")
    else:
        text = (checkpoint / "olmo_ext.json").read_text()
        at = text.index('"corpus_hash": "') + 20
        flipped = text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]
        (checkpoint / "olmo_ext.json").write_text(flipped if damage == "identity" else text[:50])
    if "sums" in damage:
        with refuses(key=checkpoint, rule="SHA256SUMS", remedy="another checkpoint"):
            load_model(checkpoint)
    train(load_experiment(write_experiment()), resume=True)
    assert len(list(one_rank.glob("step12-unsharded.damaged-*"))) == 1
    assert_bit_equal(whole, state(one_rank, 12))


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_ledger_that_lost_what_was_trained_is_not_gone_on_with_unasked(
    damage: str, one_rank: Path, write_experiment: Write
) -> None:
    segment = one_rank / "ledger" / "segment-00000.bin"
    if damage == "gone":
        shutil.rmtree(segment.parent)
    else:
        segment.write_bytes(segment.read_bytes()[:-70])
    longer = ["train.max_duration=14"]
    rule = ("no longer holds what", str(one_rank / "step12-unsharded"))
    with refuses(key=one_rank / "ledger", rule=rule, remedy="--new-ledger"):
        train(load_experiment(write_experiment(), longer), resume=True)
    train(load_experiment(write_experiment(), longer), resume=True, new_ledger=True)
    segments = read_segments(one_rank / "ledger")
    newest = segments[max(segments)]
    # Its number was never another's, and it claims nothing of the steps before.
    assert newest.number == 1
    assert (newest.start_step, newest.parent) == (12, None)
    assert newest.header["lost"]


def test_files_of_an_earlier_start_that_cannot_be_read_are_named(
    one_rank: Path, write_experiment: Write
) -> None:
    (one_rank / "run.json").write_text("{")
    train(load_experiment(write_experiment(), ["train.max_duration=13"]), resume=True)
    assert len(list(one_rank.glob("run.json.damaged-*"))) == 1
    (one_rank / "plan.json").write_text("{")
    with refuses(
        key=one_rank / "plan.json", rule="cannot be read", remedy="restore it from a checkpoint"
    ):
        train(load_experiment(write_experiment(), ["train.max_duration=14"]), resume=True)


def test_a_checkpoint_on_its_way_out_is_never_taken_for_one(
    write_experiment: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keeping the latest alone: a kill in the middle of a removal must leave no half of one."""
    rotating = write_experiment(
        lambda c: c["train"].update(
            save_interval_unsharded=3, save_num_unsharded_checkpoints_to_keep=1
        )
    )
    removed = []
    remove = shutil.rmtree

    def watch(path: Path, *args: object, **kwargs: object) -> None:
        if Path(path).name.startswith("step"):
            removed.append(Path(path).name)
        remove(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", watch)
    folder = train(load_experiment(rotating))
    assert [c.step for c in find_checkpoints(folder)] == [12]
    assert removed
    assert all(name.endswith("-tmp") for name in removed)


def test_measuring_changes_nothing(one_rank: Path, write_experiment: Write, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    quiet = write_experiment(lambda c: c.update(callbacks={"progress": None}))
    train(load_experiment(quiet, [f"train.save_folder={bare}"]))
    assert_bit_equal(state(one_rank, 12), state(bare, 12))


def test_the_engines_own_evaluators_run_beside_ours_and_change_nothing(
    one_rank: Path, write_experiment: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def edit(config: dict) -> None:
        held_out = {"paths": [str(tmp_path / "tokens.npy")], "drop_last": True}
        config["train"].update(
            evaluators=[{"label": "held-out", "type": "lm", "data": held_out}],
            eval_interval=6,
            device_eval_batch_size=4,
            eval_subset_num_batches=2,
            tokenizer={"identifier": str(tmp_path / "tokenizer.json")},
            save_folder=str(tmp_path / "with"),
        )

    words = {f"word{i}": i for i in range(256)}
    Tokenizer(WordLevel(words, unk_token="word0")).save(str(tmp_path / "tokenizer.json"))
    with caplog.at_level("INFO"):
        folder = train(load_experiment(write_experiment(edit)))
    assert caplog.text.count("eval/held-out/CrossEntropyLoss") == 2
    assert_bit_equal(state(one_rank, 12), state(folder, 12))


def test_initial_weights_depend_on_the_seed_alone(one_rank: Path, write_experiment: Write) -> None:
    folder = one_rank.parent
    for name, overrides in (
        ("other_data", ["train.data.seed=99", "injection.seed=5"]),
        ("other_seed", ["train.seed=8"]),
    ):
        overrides += [f"train.save_folder={folder / name}", "train.stop_at=1"]
        train(load_experiment(write_experiment(), overrides))
    start = state(one_rank, 0)
    same = [torch.equal(start[k], v) for k, v in state(folder / "other_data", 0).items()]
    other = [torch.equal(start[k], v) for k, v in state(folder / "other_seed", 0).items()]
    assert all(same)
    assert not all(other)


def test_a_run_can_be_made_longer_and_repeated_from_its_own_folder(
    write_experiment: Write, tmp_path: Path
) -> None:
    """experiment.yaml in the folder is what was asked for, so that it can be asked again."""
    run = train(load_experiment(write_experiment()))
    saved = run / "experiment.yaml"
    train(load_experiment(saved, ["train.max_duration=14"]), resume=True)
    assert [c.step for c in find_checkpoints(run)] == [0, 6, 12, 14]
    again = tmp_path / "again"
    overrides = [f"train.save_folder={again}", "train.max_duration=12"]
    train(load_experiment(saved, overrides))
    assert_bit_equal(state(run, 12), state(again, 12))


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    one_rank: Path, write_experiment: Write, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    shutil.copytree(one_rank, killed, symlinks=True)
    for path in killed.glob("*-unsharded"):
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    (killed / "step0-unsharded-tmp").mkdir()
    (killed / "experiment.yaml").unlink()
    train(load_experiment(write_experiment(), [f"train.save_folder={killed}"]), resume=True)
    assert_bit_equal(state(one_rank, 12), state(killed, 12))
    assert losses(killed) == losses(one_rank)


def test_a_run_leaves_its_whole_account(one_rank: Path) -> None:
    names = {p.name for p in one_rank.iterdir()}
    assert {"experiment.yaml", "config.yaml", "plan.json", "run.json", "records.jsonl"} <= names
    plan = load_plan(one_rank)
    run = json.loads((one_rank / "run.json").read_text())
    assert run["plan_hash"] == plan.hash
    assert run["torch"] == torch.__version__
    checkpoint = json.loads((one_rank / "step12-unsharded" / "olmo_ext.json").read_text())
    assert checkpoint["plan_hash"] == plan.hash
    rows = read_records(one_rank)
    last = rows[(rows.task == "add") & (rows.step == 12)]
    assert set(last.rate_per_step) == {0.5}
    assert set(last.exposures_per_example) == {6 / 50}
    assert set(rows.protocol) == {"mixture"}


def test_offline_evaluation_agrees_with_the_callback_and_adds_nothing_twice(
    one_rank: Path, tmp_path: Path
) -> None:
    inside = read_records(one_rank).query("step == 12 and task != ''")
    assert not {row["metric"] for done in evaluate(one_rank) for row in done.rows} & {"score"}
    assert not any(done.rows for done in evaluate(one_rank))
    # The same checkpoints with no records yet: everything is measured again.
    (one_rank / "records.jsonl").unlink()
    assert {done.source.step for done in evaluate(one_rank) if done.rows} == {0, 6, 12}
    outside = read_records(one_rank).query("step == 12")
    key = ["task", "split", "subset", "metric"]
    both = inside.merge(outside, on=key, suffixes=("_in", "_out"))
    assert len(both) == len(inside)
    assert both.value_in.to_numpy() == pytest.approx(both.value_out.to_numpy(), abs=1e-6)
    assert (both.exposures_per_example_in == both.exposures_per_example_out).all()


def test_a_checkpoint_loads_without_unpickling_anything_but_tensors(one_rank: Path) -> None:
    for name in ("model.pt", "optim.pt", "train.pt"):
        torch.load(one_rank / "step12-unsharded" / name, weights_only=True)
    assert not load_model(one_rank / "step12-unsharded").training


def test_wandb_mirrors_the_records_offline(
    write_experiment: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    logged: dict[str, list[int]] = {}
    start = olmo_ext.prepare.start_wandb

    def start_and_spy(*args: object) -> None:
        start(*args)
        real = wandb.log  # wandb.init has just replaced it

        def spy(values: dict, step: int | None = None) -> None:
            for name in values:
                logged.setdefault(name, []).append(-1 if step is None else step)
            real(values, step=step)

        monkeypatch.setattr(wandb, "log", spy)

    monkeypatch.setattr(olmo_ext.prepare, "start_wandb", start_and_spy)

    def edit(config: dict) -> None:
        config["train"].update(wandb={"project": "test", "entity": None}, stop_at=3)
        config["callbacks"]["retention"] = {"tasks": ["add"], "min_gap": 1}

    folder = train(load_experiment(write_experiment(edit)))
    assert list((folder / "wandb").glob("offline-run-*"))
    assert logged["olmo_ext/task_eval/cmp/test/all/score"] == [0, 1, 2, 3]
    assert logged["train/CrossEntropyLoss"] == [1, 2, 3]
    # Two lags of a burst are two curves; under one name the second would replace the first.
    lags = [name for name in logged if name.endswith("/score_lag") and "/test/" in name]
    assert sorted(name.split("/")[-2] for name in lags) == ["lag=0", "lag=1"]


def test_a_wandb_key_is_found_in_the_environment_or_in_netrc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_wandb_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret")
    assert has_wandb_key()
    (tmp_path / "netrc").write_text("machine example.org login user password secret")
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert has_wandb_key()


# -- refusals: before any work starts, nothing overwritten ----------------------------------------


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("overrides", "name", "now", "then"),
    [
        (["injection.seed=1"], "plan.seed", 1, 0),
        (["injection.tasks.0.schedule.rate=3"], "plan.tasks.cmp.schedule.rate_per_step", "3", "2"),
        (["train.data.seed=3"], "data_seed", 3, 7),
        (
            ["train.data.instance_filter={}"],
            "instance_filter",
            asdict(InstanceFilterConfig()),
            None,
        ),
        (["train.distributed_strategy=fsdp"], "train.distributed_strategy", "fsdp", "ddp"),
        (["train.seed=8", "train.data.seed=7"], "train.seed", 8, 7),
        (["train.optimizer.learning_rate=0.5"], "train.optimizer.learning_rate", 0.5, 0.01),
        (["train.model.n_heads=4"], "train.model.n_heads", 4, 2),
        (["train.model.d_model=32"], "train.model.d_model", 32, 16),
        (["train.run_name=other"], "train.run_name", "other", "tiny"),
        (["rung=other"], "rung", "other", "tiny"),
        (["train.global_train_batch_size=4"], "plan.batch_size", 4, 8),
        (
            ["train.data.generate_attention_mask=true"],
            "train.data.generate_attention_mask",
            True,
            None,
        ),
    ],
)
def test_resuming_another_run_is_refused_with_the_difference(
    overrides: list[str],
    name: str,
    now: object,
    then: object,
    one_rank: Path,
    write_experiment: Write,
) -> None:
    before = snapshot(one_rank)
    with refuses(key=one_rank, rule="cannot be resumed", remedy="Restore") as error:
        train(load_experiment(write_experiment(), overrides), resume=True)
    assert (name, now, then) in error.value.value
    assert f"  {name}: {now!r} now, {then!r} before" in str(error.value)
    # The plan's digest goes with any other of its keys; nothing else differs unasked.
    others = {one for one, *_ in error.value.value} - {name}
    assert all(one.startswith("plan.") for one in others)
    assert snapshot(one_rank) == before


def test_starting_where_a_run_has_finished_is_refused(
    one_rank: Path, write_experiment: Write
) -> None:
    before = snapshot(one_rank)
    with refuses(key="train.save_folder", value=one_rank, rule="in use", remedy="--resume"):
        train(load_experiment(write_experiment()))
    assert snapshot(one_rank) == before


def test_resuming_on_another_corpus_is_refused(one_rank: Path, write_experiment: Write) -> None:
    path = one_rank.parent / "tokens.npy"
    experiment = write_experiment()
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with refuses(key=one_rank, rule="cannot be resumed") as refused:
        train(load_experiment(experiment), resume=True)
    assert [name for name, *_ in refused.value.value] == ["corpus_hash"]


def test_a_folder_that_is_no_run_is_left_alone(write_experiment: Write, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    for resume, rule in ((False, "in use"), (True, "no plan.json")):
        with refuses(key="train.save_folder", value=tmp_path / "run", rule=rule):
            train(load_experiment(write_experiment()), resume=resume)
    assert snapshot(tmp_path / "run") == {str(tmp_path / "run" / "thesis.tex"): b"precious"}


def test_evaluation_waits_for_the_runs_own_writer(one_rank: Path) -> None:
    rule = "written by another process"
    with lock_folder(one_rank), refuses(key=f"the run's folder {one_rank}", rule=rule):
        list(evaluate(one_rank))


def test_two_processes_cannot_write_one_folder(write_experiment: Write, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with refuses(key=f"the run's folder {tmp_path / 'run'}", rule="by another process"):
            train(load_experiment(write_experiment()))


def test_a_dry_run_checks_everything_and_writes_nothing(
    write_experiment: Write, tmp_path: Path
) -> None:
    train(load_experiment(write_experiment()), dry_run=True)
    assert not (tmp_path / "run").exists()
    for bad in (tmp_path / "tokens.npy", tmp_path / "tokens.npy" / "run", Path("/proc/run")):
        experiment = load_experiment(write_experiment(), [f"train.save_folder={bad}"])
        with refuses(key="train.save_folder", value=bad, rule="cannot be written"):
            train(experiment, dry_run=True)
