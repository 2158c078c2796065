"""`olmo-ext eval`: what can be evaluated, what is written and when, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from refusals import refuses
from typer.testing import CliRunner

import eval.scores.evaluate
from data_injection.errors import ConfigError
from eval.checkpoints.sources import find_sources
from eval.export.provenance import find_provenance
from eval.records import read_records
from eval.scores.evaluate import Choice, Done, evaluate, tasks_of_run
from launch.cli import app
from olmo_ext.config import load_experiment
from olmo_ext.train import train

Write = Callable[..., Path]

KEY = ["step", "task", "split", "subset", "metric"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the first test's run is kept for the others."""
    return {"here": tmp_path_factory.mktemp("trained") / "run"}


@pytest.fixture
def run(write_experiment: Write, trained: dict[str, Path], tmp_path: Path) -> Path:
    """The tiny run with no task measured: checkpoints 0, 6 and 12."""
    quiet = write_experiment(lambda c: c.update(callbacks={"progress": None}))
    if not trained["here"].exists():
        shutil.copytree(train(load_experiment(quiet)), trained["here"], symlinks=True)
        return tmp_path / "run"
    return Path(shutil.copytree(trained["here"], tmp_path / "run", symlinks=True))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(p): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def measured(folder: Path) -> pd.DataFrame:
    rows = read_records(folder)
    return rows[rows.task != ""].sort_values(KEY, ignore_index=True)


def counts(done: Any) -> dict[int | None, int]:
    return {one.source.step: len(one.rows) for one in done}


def command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def refused(*arguments: str | Path) -> str:
    """The message of a refusal, which the command line prints with status 2."""
    error = command(*arguments).exception
    assert isinstance(error, ConfigError | FileNotFoundError), error
    return str(error)


# -- what is measured and written -----------------------------------------------------------------


def test_every_checkpoint_task_and_split_is_measured_once(run: Path) -> None:
    first = counts(evaluate(run))
    assert set(first) == {0, 6, 12}
    assert min(first.values()) > 50
    rows = measured(run)
    assert not rows.duplicated(KEY).any()
    whole = rows[(rows.subset == "all") & (rows.split != "")]
    for metric in ("accuracy", "label_accuracy", "score", "label_loss", "label_entropy"):
        asked = whole[whole.metric == metric]
        assert len(asked) == 3 * 2 * 2, metric
    assert set(rows[rows.split == ""].metric) == {"memorised_gap", "mirror_gap"}
    assert set(rows[rows.split == ""].step) == {0, 6, 12}
    assert (rows[rows.metric == "score"].low <= rows[rows.metric == "score"].value).all()
    before = snapshot(run)
    assert counts(evaluate(run)) == {0: 0, 6: 0, 12: 0}
    assert snapshot(run) == before


def test_what_training_has_recorded_stays_and_only_the_breakdown_is_added(
    write_experiment: Write,
) -> None:
    run = train(load_experiment(write_experiment()))
    before = (run / "records.jsonl").read_text()
    done = [one for one in evaluate(run) if one.rows]
    new = {(row["subset"].split("=")[0], row["metric"]) for one in done for row in one.rows}
    assert ("all", "score") not in new
    assert ("label", "label_accuracy") in new
    assert ("no_mirror", "mirror_consistency") in new
    assert (run / "records.jsonl").read_text().startswith(before)
    assert sum(counts(evaluate(run)).values()) == 0


def test_records_know_run_and_exposures(run: Path) -> None:
    list(evaluate(run, choice=Choice(steps=[12])))
    row = measured(run).query("task == 'add' and metric == 'score' and subset == 'all'").iloc[0]
    assert (row.run, row.rung, row.step, row.tokens) == ("tiny", "tiny", 12, 12 * 8 * 16)
    assert (row.rate_per_step, row.exposures_per_example) == (0.5, 6 / 50)


def test_tasks_splits_and_steps_can_be_chosen_and_added_to(run: Path) -> None:
    done = list(evaluate(run, choice=Choice(["add"], ["test"], [6])))
    assert list(counts(done)) == [6]
    rows = measured(run)
    assert (set(rows.task), set(rows.split), set(rows.step)) == ({"add"}, {"test"}, {6})
    list(evaluate(run, choice=Choice(["add"], ["train", "test"], [6])))
    assert set(measured(run).split) == {"train", "test", ""}
    apart = measured(run)
    list(evaluate(run))
    assert not measured(run).duplicated(KEY).any()
    both = measured(run).merge(apart, on=KEY)
    assert len(both) == len(apart)
    assert both.value_x.equals(both.value_y)


def test_processes_side_by_side_measure_the_same(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other, symlinks=True)
    list(evaluate(run))
    assert set(counts(evaluate(other, jobs=2))) == {0, 6, 12}
    pd.testing.assert_frame_equal(measured(run), measured(other))


def test_a_killed_evaluation_loses_only_what_was_in_work(run: Path) -> None:
    """Rows of a checkpoint are there as soon as it is done; the same command does the rest."""
    code = (
        "import sys, time, eval.scores.evaluate as e\n"
        f"for done in e.evaluate({str(run)!r}):\n"
        "    print(done.source.step, flush=True); time.sleep(900)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "0\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = measured(run)
    assert set(kept.step) == {0}
    assert {step: num > 0 for step, num in counts(evaluate(run)).items()} == {
        0: False,
        6: True,
        12: True,
    }
    assert len(measured(run)) == 3 * len(kept)


def test_a_run_that_is_being_written_is_left_alone(run: Path) -> None:
    from data_injection.lock import lock_folder

    before = snapshot(run)
    with lock_folder(run), refuses(key=f"the run's folder {run}", rule="another process"):
        list(evaluate(run))
    assert snapshot(run) == before


# -- sources --------------------------------------------------------------------------------------


def test_a_folder_of_runs_a_run_and_a_checkpoint_are_told_apart(run: Path) -> None:
    above = run.parent
    assert set(counts(evaluate(above, choice=Choice(splits=["test"])))) == {0, 6, 12}
    (run / "records.jsonl").unlink()
    assert list(counts(evaluate(run / "step6-unsharded"))) == [6]
    assert set(measured(run).step) == {6}
    # The engine's link leads to the last one, which is in the run too; each is measured once.
    again = evaluate([run / "latest-unsharded", run])
    assert {step: num > 0 for step, num in counts(again).items()} == {6: False, 0: True, 12: True}


def test_a_checkpoint_linked_back_from_scratch_is_still_its_runs(run: Path, tmp_path: Path) -> None:
    """Its target's name says no step, and no run lies around it."""
    scratch = tmp_path / "scratch" / "abc"
    scratch.parent.mkdir()
    linked = run / "step12-unsharded"
    linked.rename(scratch)
    linked.symlink_to(scratch)
    for place in (linked, run / "latest-unsharded"):
        (source,) = find_sources(place)
        assert (source.path, source.step, source.run) == (linked, 12, run)
        known = find_provenance(place)
        assert known.plan is not None
        assert (known.step, len(known.plan.tasks)) == (12, 2)
    # A folder of checkpoints outside of any run: links count, and each target once.
    kept = tmp_path / "kept"
    kept.mkdir()
    shutil.copytree(run / "step6-unsharded", kept / "step6-unsharded")
    (kept / "step12-unsharded").symlink_to(scratch)
    (kept / "latest-unsharded").symlink_to("step12-unsharded")
    assert [source.step for source in find_sources(kept)] == [6, 12]


def outside(run: Path, folder: Path) -> Path:
    """The last checkpoint as stock OLMo leaves one: no run around it, nothing of ours in it."""
    out = folder / "step12-unsharded"
    out.mkdir(parents=True)
    for name in ("model.pt", "config.yaml"):
        shutil.copy(run / "step12-unsharded" / name, out / name)
    return out


def test_a_stock_checkpoint_is_asked_the_tasks_of_a_plan(
    run: Path, write_experiment: Write, tmp_path: Path
) -> None:
    path = outside(run, tmp_path / "stock")
    list(evaluate(run, choice=Choice(steps=[12])))
    expected = measured(run).set_index(KEY).value
    experiment = write_experiment()
    before = snapshot(tmp_path)
    for plan in (run, experiment):
        out = tmp_path / "scores.csv"
        done = command(path.parent, "--plan", plan, "--out", out)
        assert done.exit_code == 0, done.output
        found = pd.read_csv(out).fillna({"split": ""}).set_index(KEY)
        assert found.value.to_dict() == pytest.approx(expected.to_dict(), abs=1e-6, nan_ok=True)
        assert set(found.checkpoint) == {str(path)}
        out.unlink()
        assert snapshot(tmp_path) == before


def test_a_hugging_face_folder_is_asked_the_tasks_of_a_plan(run: Path, tmp_path: Path) -> None:
    from eval.export.huggingface import export_hf

    path = export_hf(run, tmp_path / "hf", no_tokenizer=True).folder
    list(evaluate(run, choice=Choice(steps=[12])))
    (done,) = evaluate(path, asked=tasks_of_run(run))
    found = {tuple(row[key] for key in KEY[1:]): row["value"] for row in done.rows}
    expected = measured(run).set_index(KEY[1:]).value.to_dict()
    assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_sequences_of_a_plan_are_left_out_of_a_hugging_face_folder_and_told(
    run: Path, write_experiment: Write, tmp_path: Path
) -> None:
    from eval.export.huggingface import export_hf

    file = tmp_path / "s.jsonl"
    file.write_text('{"tokens": [5, 6, 7]}\n')
    task = {"name": "seq", "family": "sequences", "params": {"file": str(file)}}
    plan = write_experiment(lambda config: config["injection"]["tasks"].append(task))
    path = export_hf(run, tmp_path / "hf", no_tokenizer=True).folder
    done = command(path, "--plan", plan, "--out", tmp_path / "scores.csv")
    assert done.exit_code == 0, done.output
    assert "are not asked sequences: seq" in done.output
    assert set(pd.read_csv(tmp_path / "scores.csv").task) == {"cmp", "add"}


def test_a_folder_that_transformers_saved_is_recognised(run: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny = LlamaConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    LlamaForCausalLM(tiny).save_pretrained(tmp_path / "hf")
    (done,) = evaluate(tmp_path / "hf", asked=tasks_of_run(run))
    assert done.source.kind == "hf"
    assert {row["task"] for row in done.rows} == {"cmp", "add"}


# -- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_table_holds_what_was_there_before_too(suffix: str, run: Path, tmp_path: Path) -> None:
    list(evaluate(run, choice=Choice(steps=[6])))
    out = tmp_path / f"scores.{suffix}"
    done = command(run, "--out", out, "--task", "cmp", "--step", "6", "--step", "12")
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out) if suffix == "csv" else pd.read_parquet(out)
    assert set(table.step) == {6, 12}
    assert set(table.task) == {"cmp"}
    assert set(table.checkpoint) == {str(run / f"step{step}-unsharded") for step in (6, 12)}
    kept = measured(run).query("task == 'cmp'")
    assert sorted(table.value.dropna()) == pytest.approx(sorted(kept.value.dropna()))
    assert len(table) == len(kept)
    for told in ("step6-unsharded: already there", "step12-unsharded: "):
        assert told in re.sub(r"\s+", " ", done.output)


# -- refusals: the key, the value and the way out, and nothing written -----------------------------


def test_a_choice_that_there_is_not_is_refused_before_any_work(run: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    for arguments, said in (
        (["--task", "cmq"], ["--task must be in the plan", "cmp, add, got 'cmq'"]),
        (["--split", "dev"], ["--split must be train or test, got 'dev'"]),
        (["--step", "7"], ["--step", "got [7]", "there are 0, 6, 12"]),
        (["--device", "tpu"], ["--device must be cpu or cuda, got 'tpu'"]),
        (["--out", str(tmp_path / "x.txt")], ["--out", ".csv or .parquet"]),
        (["--out", str(tmp_path / "no" / "x.csv")], ["--out", "no folder", "make it"]),
    ):
        message = refused(run, *arguments)
        for words in said:
            assert words in message, message
    assert snapshot(tmp_path) == before


def test_folders_without_checkpoints_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no folder" in refused(tmp_path / "absent")
    assert "is a file; give the folder" in refused(run / "step6-unsharded" / "model.pt")
    assert "no run (a folder with plan.json)" in refused(tmp_path / "empty")
    for path in run.glob("step*-unsharded"):
        shutil.rmtree(path)
    before = snapshot(run)
    message = refused(run)
    assert "no complete checkpoint" in message
    assert "save_interval_unsharded" in message
    assert snapshot(run) == before


def test_a_damaged_checkpoint_is_named_and_the_others_are_measured(run: Path) -> None:
    path = run / "step6-unsharded" / "model.pt"
    path.write_bytes(path.read_bytes()[:2000])
    done: list[Done] = []
    with refuses(key="CHECKPOINT", rule="1 of 3 checkpoints") as error:
        done += evaluate(run)
    (problem,) = error.value.value
    for part in (str(path.parent), "model.pt has sha256", "another checkpoint"):
        assert part in problem
    assert set(measured(run).step) == {0, 12}
    # Without checksums, as of runs from before there were any, it is the reading that fails.
    (path.parent / "SHA256SUMS").unlink()
    identity = json.loads((path.parent / "olmo_ext.json").read_text())
    del identity["ledger"]
    (path.parent / "olmo_ext.json").write_text(json.dumps(identity))
    with refuses(key="CHECKPOINT", rule="1 of 1 checkpoints") as error:
        list(evaluate(path.parent))
    (problem,) = error.value.value
    for part in (f"{path} cannot be read as tensors", "cut off", "restore it"):
        assert part in problem
    assert set(measured(run).step) == {0, 12}


def test_a_checkpoint_outside_a_run_needs_a_plan(run: Path, tmp_path: Path) -> None:
    path = outside(run, tmp_path / "stock")
    message = refused(path)
    assert str(path) in message
    assert "--plan" in message
    assert "cmp, add" in refused(path, "--plan", run, "--task", "other")


def test_another_vocabulary_is_refused(run: Path, tmp_path: Path) -> None:
    path = outside(run, tmp_path / "stock")
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["model"] |= {"vocab_size": 200}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    message = refused(path, "--plan", run)
    for words in ("model.vocab_size 200", "vocabulary of 256", "tokenizer"):
        assert words in message
    hf = tmp_path / "hf"
    hf.mkdir()
    for rows in (255, 256 + 512, 50_304):
        (hf / "config.json").write_text(json.dumps({"vocab_size": rows}))
        assert f"vocab_size {rows}" in refused(hf, "--plan", run)


@pytest.mark.parametrize(
    ("key", "value"),
    [("distributed_strategy", "fsdp"), ("seed", 99)],
)
def test_a_checkpoint_of_another_strategy_or_seed_is_refused_in_a_run(
    key: str, value: Any, run: Path
) -> None:
    path = run / "step6-unsharded" / "olmo_ext.json"
    identity = json.loads(path.read_text())
    identity["train"][key] = value
    path.write_text(json.dumps(identity))
    before = snapshot(run)
    message = refused(run)
    for words in ("step6-unsharded", f"train.{key}: {value!r} now", "move it back", "--plan"):
        assert words in message
    assert snapshot(run) == before


def test_an_fsdp_runs_weights_are_read_as_any(write_experiment: Write, tmp_path: Path) -> None:
    """Only the optimizer's state depends on the strategy, and it is not read."""
    quiet = {"callbacks": {"progress": None}}
    folders = {}
    for strategy in ("ddp", "fsdp"):
        experiment = write_experiment(
            lambda c, s=strategy: c.update(quiet) or c["train"].update(distributed_strategy=s)
        )
        save = f"train.save_folder={tmp_path / strategy}"
        folders[strategy] = train(load_experiment(experiment, [save]))
        list(evaluate(folders[strategy], choice=Choice(steps=[12])))
    both = measured(folders["ddp"]).merge(measured(folders["fsdp"]), on=KEY)
    loss = both[both.metric == "label_loss"]
    assert len(loss) > 10
    assert loss.value_x.to_numpy() == pytest.approx(loss.value_y.to_numpy(), rel=1e-3)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["stock", "hf"])
def test_a_pickle_that_would_run_code_does_not(kind: str, run: Path, tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", outside(run, tmp_path / "stock")
    file = path / "model.pt"
    if kind == "hf":
        from eval.export.huggingface import export_hf

        path = export_hf(run, tmp_path / "hf", no_tokenizer=True).folder
        (path / "model.safetensors").unlink()
        file = path / "pytorch_model.bin"
    torch.save({"model.embed_tokens.weight": Bomb(ran)}, file)
    before = snapshot(tmp_path)
    message = refused(path, "--plan", run)
    assert str(path) in message
    assert "code, which is not run" in message
    assert not ran.exists()
    assert snapshot(tmp_path) == before
    torch.load(file, weights_only=False)  # the payload works
    assert ran.exists()


def test_a_remote_model_of_ones_own_code_is_not_run(run: Path, tmp_path: Path) -> None:
    folder, ran = tmp_path / "hf", tmp_path / "ran"
    folder.mkdir()
    code = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass Model:\n    pass\n"
    (folder / "modeling.py").write_text(code + "class Config:\n    pass\n")
    config = {"vocab_size": 256, "model_type": "mine", "auto_map": {}}
    config["auto_map"] = {"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    assert "not run" in refused(folder, "--plan", run)
    assert not ran.exists()


def test_without_a_gpu_cuda_is_refused(run: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert "--device is for a GPU, and torch sees none" in refused(run, "--device", "cuda")


def test_measure_asks_each_task_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = eval.scores.evaluate.fast_answer

    def spy(model: Any, task: Any, indices: Any) -> Any:
        asked.append(task.name)
        return real(model, task, indices)

    monkeypatch.setattr(eval.scores.evaluate, "fast_answer", spy)
    list(evaluate(run, choice=Choice(steps=[0])))
    assert asked == ["cmp", "add"]


def test_a_plan_is_read_without_the_corpus_files_and_from_any_folder(
    write_experiment: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scoring needs the tasks, and those need the manifest alone."""
    from data_injection.corpus.prepare import prepare_embedded
    from launch.show.verbs import _tasks_of
    from olmo_ext.config import load_experiment
    from olmo_ext.prepare import prepare

    prepare_embedded(tmp_path / "corpus", vocab_size=300, max_documents=20)

    def on_corpus(config: dict) -> None:
        del config["train"]["data"]["paths"]
        for key in ("eos_token_id", "pad_token_id"):
            del config["train"]["model"][key]
        config["train"]["model"].update(vocab_size=300, embedding_size=304)
        config["corpus"] = "corpus"

    path = write_experiment(on_corpus)
    monkeypatch.chdir(tmp_path)
    expected = prepare(load_experiment(path, corpus=False)).stream.plan.tasks
    for file in (tmp_path / "corpus").glob("tokens-*.npy"):
        file.unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "plan.json").write_text("{}")  # of another run, or of `plan --json`
    found = _tasks_of(path)
    assert found.vocab_size == 300
    assert [task.tokens.tolist() for task in found.tasks] == [t.tokens.tolist() for t in expected]
    (tmp_path / "corpus" / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="give the folder of a run with this plan"):
        _tasks_of(path)


def test_a_checkpoint_of_olmo_core_2_is_told_from_a_damaged_one(run: Path, tmp_path: Path) -> None:
    core = tmp_path / "step100"
    (core / "model_and_optim").mkdir(parents=True)
    (core / "model_and_optim" / ".metadata").write_bytes(b"")
    (core / "config.json").write_text("{}")
    message = refused(core, "--plan", run)
    for words in ("OLMo-core 2 or later", "convert_checkpoint_to_hf"):
        assert words in message
    model = {"vocab_size": tasks_of_run(run).vocab_size, "_CLASS_": "os.system"}
    (core / "config.json").write_text(json.dumps({"model": model}))
    assert "asks for os.system, which is not OLMo-core's" in refused(core, "--plan", run)
    model["_CLASS_"] = "olmo_core.nn.transformer.config.TransformerConfig"
    (core / "config.json").write_text(json.dumps({"model": model}))
    assert "read where ai2-olmo-core 3 is installed" in refused(core, "--plan", run)
    (core / "config.json").unlink()
    assert "has no config.yaml" in refused(core, "--plan", run)
