"""A run with sequences, from the file to the scores: trained, resumed, audited, evaluated.

The tiny experiment of tests/conftest.py, whose host is random tokens: what it knows of a sequence
it has from its copies alone.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from refusals import refuses
from typer.testing import CliRunner

from eval.audit.audit import audit_run
from eval.audit.subject import OK
from eval.checkpoints.checkpoint import load_plan
from eval.features.evaluate import find_jobs
from eval.records import read_records
from eval.scores.cells import cells
from eval.scores.evaluate import evaluate, tasks_of_run
from eval.scores.memorization import METRICS
from launch.cli import app
from olmo_ext.config import load_experiment
from olmo_ext.train import train

VOCAB = 256
LEVELS = (0, 1, 4, 16, 64)

Write = Callable[..., Path]


def write_sequences(path: Path, *, each: int, twins: int, levels: tuple[int, ...] = LEVELS) -> Path:
    """`each` sequences of 10 random tokens of each level, and twins of theirs."""
    rng = np.random.Generator(np.random.PCG64(5))
    kinds = [{"copies": level} for level in levels for _ in range(each)]
    kinds += [{"twin": True} for _ in range(twins)]
    rows = [{"tokens": rng.integers(2, VOCAB, size=10).tolist()} | kind for kind in kinds]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def write_run(write_experiment: Write, tmp_path: Path) -> Write:
    """write_run(file, edit) -> an experiment with the sequences of the file beside `cmp`."""

    def write(file: Path, edit: Callable[[dict], object] = lambda config: None) -> Path:
        def sequences(config: dict) -> None:
            task = {"name": "seq", "family": "sequences", "params": {"file": str(file)}}
            config["injection"]["tasks"] = [*config["injection"]["tasks"][:1], task]
            config["train"]["save_interval_unsharded"] = 4
            config["callbacks"] = {"task_eval": {"every": 4, "prefix": 3}, "progress": None}
            edit(config)

        return write_experiment(sequences)

    return write


def told(rows: pd.DataFrame, step: int) -> dict[tuple[str, str], float]:
    rows = rows[(rows.step == step) & rows.metric.isin(METRICS)]
    keys = zip(rows.subset, rows.metric, strict=True)
    return dict(zip(keys, rows.value.tolist(), strict=True))


def test_a_run_of_sequences_alone_is_reported_and_has_no_features(tmp_path: Path, write_run: Write):
    file = write_sequences(tmp_path / "s.jsonl", each=2, twins=4, levels=(0, 1, 4))

    def alone(config: dict) -> None:
        config["injection"]["tasks"] = config["injection"]["tasks"][1:]

    run = train(load_experiment(write_run(file, alone)))
    done = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "learned" not in done.output, "of no cell"
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<figure id="memorization.png">' in page
    assert "What was learned by heart?" in page
    assert "All cells" not in page
    frame = read_records(run)
    with refuses(key="records", rule="of a task with labels, only ['exposure', 'extraction', 'mem"):
        cells(frame)
    with refuses(key=run, rule="no task that declares targets", remedy="`olmo-ext eval`"):
        find_jobs(run)


@pytest.mark.parametrize("at", ["anywhere", "documents"])
def test_a_run_is_resumed_audited_and_evaluated_without_its_file(
    at: str, tmp_path: Path, write_run: Write
):
    file = write_sequences(tmp_path / "s.jsonl", each=2, twins=4, levels=(0, 1, 4, 16))
    experiment = write_run(file, lambda config: config["injection"].update(sequences_at=at))
    if at == "documents":
        text = np.memmap(experiment.parent / "tokens.npy", dtype="<u2", mode="r+")
        text[::5] = 0
    whole = train(load_experiment(experiment))
    before = told(read_records(whole), 12)
    assert {subset for subset, _ in before} == {*(f"copies={n}" for n in (0, 1, 4, 16)), "twins"}
    assert len(before) == 4 * 4 + 2

    resumed = tmp_path / "resumed"
    shutil.copytree(whole, resumed, symlinks=True)
    shutil.rmtree(resumed / "step12-unsharded")
    train(load_experiment(experiment, [f"train.save_folder={resumed}"]), resume=True)
    assert told(read_records(resumed), 12) == before

    # A file that changed is another plan, told by its digest.
    file.write_text(file.read_text().replace('"copies": 4', '"copies": 5', 1))
    shutil.rmtree(resumed / "step12-unsharded")
    with refuses(key=resumed, rule="cannot be resumed") as refused:
        train(load_experiment(experiment, [f"train.save_folder={resumed}"]), resume=True)
    assert "plan.tasks.seq.params.file_sha256" in {name for name, *_ in refused.value.value}

    file.unlink()
    plan = load_plan(whole)
    assert plan.exposures_per_example(1, 12) == 7
    verdicts = {verdict.check: verdict for verdict in audit_run(whole).verdicts}
    assert {verdict.status for verdict in verdicts.values()} == {OK}
    assert "seq 42" in verdicts["exposures"].said
    records = whole / "records.jsonl"
    lines = records.read_text().splitlines()
    kept = [line for line in lines if not re.search('"(sequence_loss|extraction)"', line)]
    records.write_text("\n".join(kept) + "\n")
    assert [len(done.rows) > 0 for done in evaluate([whole])] == [True] * 4
    assert told(read_records(whole), 12) == pytest.approx(before, rel=1e-5)
    rows = read_records(whole)
    assert set(rows[rows.metric == "extraction"].prefix) == {3}, "as the run's own"
    assert [len(done.rows) for done in evaluate([whole])] == [0] * 4
    outside = shutil.copytree(whole / "step12-unsharded", tmp_path / "outside")
    (done,) = evaluate([outside], asked=tasks_of_run(whole))
    assert {row["task"] for row in done.rows} == {"cmp", "seq"}, "of a run as of an experiment.yaml"


def test_what_measures_answers_trains_beside_sequences(tmp_path: Path, write_run: Write):
    """Interference, the loss budget and features leave sequences to the host's text."""
    file = write_sequences(tmp_path / "s.jsonl", each=2, twins=2, levels=(1, 4))

    def edit(config: dict) -> None:
        config["train"] |= {"max_duration": 3, "save_interval_unsharded": 3}
        config["callbacks"] |= {
            "interference": {"every": 1, "top_k": 4, "window": 3},
            "loss_budget": {"every": 1, "record": 3, "instances": 0},
            "features": {"every": 3},
        }

    rows = read_records(train(load_experiment(write_run(file, edit))))
    measured = rows[rows.task != "seq"]
    assert {"norm_g_r", "budget", "probe_count"} <= set(measured.metric)
    assert set(rows[rows.task == "seq"].metric) == set(METRICS)


@pytest.mark.slow
def test_more_copies_are_better_known_and_what_was_never_injected_is_at_chance(
    tmp_path: Path, write_run: Write
):
    file = write_sequences(tmp_path / "s.jsonl", each=8, twins=64)

    def edit(config: dict) -> None:
        model, loop = config["train"]["model"], config["train"]
        model |= {"d_model": 64, "n_layers": 2}
        loop |= {"max_duration": 400, "save_interval_unsharded": 400}
        loop["device_train_microbatch_size"] = 8
        config["injection"]["tasks"][1]["schedule"] = {"kind": "random"}
        config["callbacks"]["task_eval"]["every"] = 400

    rows = read_records(train(load_experiment(write_run(file, edit))))
    first, last = (rows[(rows.step == step) & (rows.task == "seq")] for step in (0, 400))
    value = {key: told(rows, 400)[key] for key in told(rows, 400)}
    losses = [value[f"copies={level}", "sequence_loss"] for level in LEVELS]
    assert losses[4] < losses[3] < losses[2] < losses[0]
    assert losses[4] < 0.5 * losses[0]
    aucs = [value[f"copies={level}", "membership_auc"] for level in LEVELS]
    assert aucs[0] < 0.9 < aucs[3]
    assert aucs[4] > 0.95
    exposures = [value[f"copies={level}", "exposure"] for level in LEVELS]
    # Rank 1 of 65 is the most there is. Not the last bit of it: one twin's place is the machine's.
    assert exposures[0] < 3 < min(exposures[2:])
    assert math.log2(65) - 0.5 < exposures[4] <= math.log2(65) + 1e-9
    print(losses, aucs, exposures, [value[f"copies={n}", "extraction"] for n in LEVELS])
    assert value["copies=64", "extraction"] > 0.5
    assert value["twins", "extraction"] == value["copies=0", "extraction"] == 0
    # Never injected, and nothing injected yet: chance, to twice the interval's reach (6 intervals
    # of 95% leave it out on every fourth machine).
    chance = pd.concat([last[last["copies"] == 0], first])
    chance = chance[chance.metric == "membership_auc"]
    assert len(chance) == 6
    assert ((chance.value - 0.5).abs() < chance.high - chance.low).all()
