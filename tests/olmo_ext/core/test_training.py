"""A micro transformer of OLMo-core trains by the plan; measuring is exact and moves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from refusals import refuses
from waiting import free_port

from data_injection.ledger import read_segments
from data_injection.lineage import is_effective, lineage
from eval.records import read_records
from olmo_ext.core import compat

pytestmark = pytest.mark.skipif(bool(compat.MISSING), reason="needs ai2-olmo-core 3: test-core")

ROOT = Path(__file__).parents[3]
WORKER = ROOT / "tests" / "shared" / "core_micro.py"
CALLBACKS = {
    "task_eval": {"every": 4},
    "interference": {"every": 4, "groups": ["mlp_top", "layers", "model"], "top_k": 5},
    "features": {"every": 8},
    "retention": {"min_gap": 2},
    "loss_budget": {"every": 1, "record": 4, "instances": 0, "points": 2},  # FSDP's own
}


def train(folder: Path, *given: dict[str, Any], ranks: int = 1) -> list[Path]:
    """Train one run after the other in processes of their own; their folders."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # OLMo-core looks for the files that one rank of a node has made.
    env |= {"OLMO_SHARED_FS": "1"}
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
        command += ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    done = subprocess.run(
        [*command, str(WORKER), str(folder), json.dumps(given)],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return [folder / one.get("run", "run") for one in given]


def ledger_rows(run: Path) -> np.ndarray:
    segments = read_segments(run / "ledger")
    (segment,) = segments.values()
    assert segment.problems == ()
    return segment.rows


def planned(folder: Path, steps: int) -> list[tuple[int, int, int, int]]:
    from core_micro import SECTION, build_loader

    from data_injection.config import injection_config
    from olmo_ext.core.loader import inject

    plan = inject(build_loader(folder), injection_config(SECTION)).plan
    return [
        (step, *one)
        for step in range(steps)
        for rows in [plan.at(step)]
        for one in zip(rows.slots, rows.examples, rows.tasks, strict=True)
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Measured and bare, on one process, under DDP and under FSDP2."""
    ways: dict[str, dict[str, Any]] = {
        "one": {},
        "ddp": {"dp": "ddp"},
        "fsdp": {"dp": "fsdp"},
    }
    found = {}
    for way, settings in ways.items():
        both = {"callbacks": CALLBACKS} | settings, {"callbacks": {}, "run": "bare"} | settings
        folders = train(tmp_path_factory.mktemp(way), *both, ranks=2 if settings else 1)
        found[way], found[f"{way}, bare"] = folders
    return found


@pytest.mark.parametrize("way", ["one", "ddp", "fsdp"])
def test_measuring_leaves_every_weight_as_it_was(way: str, runs: dict[str, Path]) -> None:
    """FSDP2 corrupts the training, without an error, where `.grad` is set aside too late."""
    measured, bare = runs[way], runs[f"{way}, bare"]
    assert (measured / "weights").read_text() == (bare / "weights").read_text()


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_cosines_do_not_depend_on_who_holds_the_weights(way: str, runs: dict[str, Path]) -> None:
    at = ["step", "task", "split", "metric", "group", "layer"]
    tables = []
    for run in (runs["one"], runs[way]):
        table = read_records(run)
        table = table[table.metric.str.startswith(("cos_g", "cos_update", "overlap"))]
        # The whole model has no layer, and NaN is not equal to itself.
        tables.append(table.fillna({"layer": -9}).set_index(at).value.sort_index())
    one, two = tables
    assert len(one) > 60
    assert set(one.index.get_level_values("group")) == {"mlp_top", "layers", "model"}
    assert list(one.index) == list(two.index)
    # The first measured step: later ones follow weights that differ in their last digits.
    first = one.index.get_level_values("step") == one.index.get_level_values("step").min()
    gradients = first & one.index.get_level_values("metric").str.startswith("cos_g")
    # Dot products in fp32, which another processor's kernels add in another order; measured: 1e-6.
    np.testing.assert_allclose(one[gradients], two[gradients], atol=1e-5)  # a wrong share: 1e-2


@pytest.mark.parametrize("way", ["one", "ddp", "fsdp"])
def test_the_ledger_holds_the_plans_rows(way: str, runs: dict[str, Path]) -> None:
    rows = ledger_rows(runs[way])
    found = list(zip(*(rows[n].tolist() for n in ("step", "slot", "example", "task")), strict=True))
    assert found == planned(runs[way].parent, 8)


def test_what_is_measured_is_recorded(runs: dict[str, Path]) -> None:
    table = read_records(runs["one"])
    assert {"score", "train_loss", "cos_g", "cos_update"} <= set(table.metric)
    loss = table[table.metric == "train_loss"]
    assert sorted(loss.step) == [4, 8]
    assert loss.value.between(1, 10).all()
    assert len(table[table.step == 0]) > 0  # the untrained model
    assert {"score_before", "score_lag"} <= set(table.metric)  # retention
    assert len(table[table.metric.str.startswith("probe") | table.metric.str.contains("fourier")])


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_what_moved_a_tasks_loss_does_not_depend_on_who_holds_the_weights(
    way: str, runs: dict[str, Path]
) -> None:
    parts = []
    for run in (runs["one"], runs[way]):
        table = read_records(run)
        choice = table[(table.metric == "choice_loss") & (table.split == "test")]
        choice = choice[choice.subset == "all"].set_index(["task", "step"]).value
        change = choice.groupby("task").diff().dropna()
        actual = table[table.metric == "budget_actual"].set_index(["task", "step"]).value
        np.testing.assert_allclose(actual.sort_index(), change.sort_index(), atol=2e-6)
        rows = table[table.metric == "budget"].fillna({"layer": -9})
        parts.append(rows.set_index(["task", "step", "source", "layer"]).value.sort_index())
    assert list(parts[0].index) == list(parts[1].index)
    assert len(parts[0]) == 64  # 2 tasks, 2 records, 4 sources, the whole and 3 places
    np.testing.assert_allclose(*parts, atol=2e-3)


def test_a_budget_closes_and_its_moments_follow_the_clipped_gradient(tmp_path: Path) -> None:
    from core_micro import build_trainer

    budget = {"loss_budget": {"every": 1, "record": 4, "instances": 0, "points": 3}}
    trainer = build_trainer(tmp_path, {"callbacks": budget, "steps": 4, "clip": 0.1})
    trainer.fit()
    assert trainer.callbacks["injection"]._host.engine.taken_norm == pytest.approx(0.1, rel=1e-3)
    assert not trainer.train_module.optim._optimizer_step_pre_hooks
    table = read_records(tmp_path / "run")
    assert (table[table.metric == "budget_actual"].closure < 0.05).all()
    assert set(table[table.metric == "budget"].source.dropna()) >= {"host", "task", "decay"}


def test_a_resumed_run_ends_in_the_same_weights_and_one_lineage(tmp_path: Path) -> None:
    given: dict[str, Any] = {"callbacks": CALLBACKS, "save": 3}
    starts = {"run": "whole"}, {"run": "parts", "stop": 3}, {"run": "parts"}
    whole, _, parts = train(tmp_path, *(given | start for start in starts))
    assert (whole / "weights").read_text() == (parts / "weights").read_text()
    segments = read_segments(parts / "ledger")
    assert [segment.start_step for segment in segments.values()] == [0, 3]
    path = lineage(segments, None if segments[1].parent is None else segments[1].parent, step=3)
    assert path.problems == ()
    before = segments[0].rows[is_effective(segments[0], path.stretches)]
    steps = [*before["step"].tolist(), *segments[1].rows["step"].tolist()]
    assert steps == [row[0] for row in planned(tmp_path, 8)]


def test_anybodys_checkpoint_goes_on_with_a_plan_that_begins_there(tmp_path: Path) -> None:
    from core_micro import BATCH, SECTION, SEQ_LEN, build_trainer

    build_trainer(tmp_path, {"plan": False, "steps": 3, "run": "plain"}).fit()
    window = {"kind": "window", "rate": "3/2", "start": 3}
    section = SECTION | {"tasks": [SECTION["tasks"][0] | {"schedule": window}]}
    given = {"section": section, "callbacks": {}, "load_path": str(tmp_path / "plain" / "step3")}
    half = {"global_batch_size": BATCH // 2 * SEQ_LEN, "run": "half", "section": {"tasks": []}}
    other = build_trainer(tmp_path, given | half)
    with refuses(key="data_loader", value=6, rule="at step 3 of the checkpoint"):
        other.fit()
    trainer = build_trainer(tmp_path, given)
    trainer.fit()  # each batch is compared with the corpus and the plan
    rows, plan = ledger_rows(tmp_path / "run"), trainer.data_loader.plan
    (segment,) = read_segments(tmp_path / "run" / "ledger").values()
    assert segment.start_step == 3
    expected = [(step, slot) for step in range(3, 8) for slot in plan.at(step).slots]
    assert list(zip(rows["step"], rows["slot"], strict=True)) == expected
    assert len(expected) == 7


def test_steps_that_move_no_weight_are_marked_in_the_ledger(tmp_path: Path) -> None:
    callbacks = CALLBACKS | {"loss_budget": None}  # needs AdamW itself
    [run] = train(tmp_path, {"callbacks": callbacks, "sigma": 0, "steps": 12})
    (segment,) = read_segments(run / "ledger").values()
    assert len(segment.skipped) >= 1
    assert not set(segment.skipped) & set(segment.rows["step"].tolist())
    assert {*segment.skipped, *segment.rows["step"].tolist()} == set(range(12))
    table = read_records(run)
    marked = table[table.metric == "step_skipped"].step - 1
    assert sorted(marked) == sorted(segment.skipped)


@pytest.mark.parametrize(
    ("given", "key", "rule"),
    [
        ({"callbacks": {"progress": {}}}, "callbacks", "must be of interference"),
        ({"callbacks": {"loss_budget": {}}, "sigma": 4}, "train_module.optim", "must be AdamW"),
        ({"callbacks": CALLBACKS, "kind": "lengths"}, "data_loader.generate_doc_lengths", "off"),
        ({"callbacks": CALLBACKS, "dropout": True}, "model.dropout", "off"),
        (
            {"callbacks": {"interference": {"layer": 9}}},
            "callbacks.interference.layer",
            "must be in",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(
    given: dict[str, Any], key: str, rule: str, tmp_path: Path
) -> None:
    from core_micro import build_trainer
    from torch import nn

    dropout = given.pop("dropout", False)
    trainer = build_trainer(tmp_path, given)
    if dropout:
        trainer.train_module.model.extra = nn.Dropout(0.1)
    with refuses(key=key, rule=rule):
        trainer.fit()
    assert not (tmp_path / "run" / "ledger").exists()


REFUSED: list[tuple[str, str, str]] = [
    ("sizes", "trainer.callbacks.sizes", "left out"),
    ("lengths", "trainer.callbacks.lengths", "left out"),
    ("pp", "train_module", "TransformerTrainModule: no pipeline parallelism"),
    ("cp", "train_module.cp_config", "None"),
    ("tp", "train_module.tp_config", "None"),
    ("ep", "train_module.ep_config", "None"),
    ("moe", "model.feed_forward_moe", "off for callbacks.interference: auxiliary losses"),
    ("float8", "train_module.float8_config", "off for callbacks.interference"),
    ("hsdp", "train_module.dp_config.name", "its layout was never measured"),
]


@pytest.mark.parametrize(("what", "key", "rule"), REFUSED)
def test_what_would_train_something_else_than_the_plan_is_refused_by_name(
    what: str, key: str, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core_micro import build_trainer
    from olmo_core.train import callbacks, train_module

    trainer = build_trainer(tmp_path, {"callbacks": {"interference": {"every": 4}}})
    schedulers = {
        "sizes": callbacks.BatchSizeSchedulerCallback,
        "lengths": callbacks.SequenceLengthSchedulerCallback,
    }
    if kind := schedulers.get(what):
        trainer.callbacks[what] = kind.__new__(kind)
    elif what == "pp":
        kind = train_module.TransformerPipelineTrainModule
        trainer.train_module = kind.__new__(kind)
    elif what == "moe":
        monkeypatch.setattr(type(trainer.train_module.model), "is_moe", True)
    elif what == "float8":
        trainer.train_module.model._fp8_enabled = True
    elif what == "hsdp":
        trainer.train_module._dp_config = SimpleNamespace(name="hsdp")
    else:
        monkeypatch.setattr(type(trainer.train_module), f"{what}_enabled", True)
    with refuses(key=key, rule=rule):
        trainer.callbacks["injection"].pre_train()
    assert not (tmp_path / "run" / "ledger").exists()
