"""lm-evaluation-harness, stock and offline, gives every item the mark that we give it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import eval.export.harness
from data_injection.config import InjectionConfig, TaskConfig
from data_injection.corpus.encoder import tokenizer_path
from data_injection.plan import compile_plan
from data_injection.tasks.modular_addition import ModularAddition
from eval.checkpoints.checkpoint import load_model, load_plan, write_checksums
from eval.export.harness import choice_items, words, write_harness, write_ids_tokenizer
from eval.export.huggingface import export_hf
from eval.scores.accuracy import answer
from olmo_ext.config import load_experiment
from olmo_ext.train import train

Write = Callable[..., Path]


@pytest.fixture
def run(write_experiment: Write) -> Path:
    """A run whose last checkpoint knows the train examples and half of the test examples."""

    def edit(config: dict[str, Any]) -> None:
        config["train"]["max_duration"] = 1
        config["callbacks"] = {"progress": None}
        config["injection"]["tasks"][0]["name"] = "cmp/r 3"

    folder = train(load_experiment(write_experiment(edit)))
    checkpoint = folder / "step1-unsharded"
    model = load_model(checkpoint).requires_grad_(True)
    known = [task.tokens[np.r_[task.train, task.test[::2]]] for task in load_plan(folder).tasks]
    tokens = torch.from_numpy(np.concatenate(known))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        logits = model(tokens[:, :-1], last_logits_only=True).logits[:, -1]
        torch.nn.functional.cross_entropy(logits, tokens[:, -1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(model.state_dict(), checkpoint / "model.pt")
    write_checksums(checkpoint)
    return folder


def harness(folder: Path, *, tasks: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """As the model card's command, in this process, with every item's result."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(folder)
    return simple_evaluate(
        model="hf",
        model_args="pretrained=.,tokenizer=ids_tokenizer",
        tasks=tasks,
        task_manager=TaskManager(include_path="harness", include_defaults=False),
        device="cpu",
        batch_size=16,
        log_samples=True,
        bootstrap_iters=0,
    )


def test_item_by_item_the_harness_agrees_in_mark_and_loss(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eval.export.harness, "CHOICE_REQUESTS", 200)  # cmp: all; add: 20 of 50
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    out = export_hf(run, tmp_path / "hf", no_tokenizer=True).folder
    found = harness(out, tasks=["olmo_ext"], monkeypatch=monkeypatch)
    names = {"cmp%2Fr%203": "cmp/r 3", "add": "add"}
    kinds = {f"{name}_{kind}" for name in names for kind in ("greedy", "choice")}
    assert set(found["samples"]) == kinds
    model, plan = load_model(run / "step1-unsharded"), load_plan(run)
    for quoted, name in names.items():
        task = plan.tasks[plan.task_index(name)]
        ours = answer(lambda ids: model(ids).logits[:, -1], task, task.test)
        assert 0 < ours.correct.sum() < len(task.test)
        assert 0 < ours.label_correct.sum() < len(task.test)
        for kind, marks in (("greedy", ours.correct), ("choice", ours.label_correct)):
            expected = dict(zip(task.test.tolist(), marks.tolist(), strict=True))
            if (kind, name) == ("choice", "add"):
                expected = {example: expected[example] for example in choice_items(task).tolist()}
                assert len(expected) == 20
            samples = found["samples"][f"{quoted}_{kind}"]
            theirs = {sample["doc"]["example"]: bool(sample["acc"]) for sample in samples}
            assert theirs == expected
            # And the losses: a prefix token or a space in the prompt would show in every item.
            right = {
                s["doc"]["example"]: s["resps"][s["doc"]["answer"] * (kind == "choice")][0]
                for s in samples
            }
            losses = dict(zip(task.test.tolist(), ours.loss.tolist(), strict=True))
            for example, (loglikelihood, _) in right.items():
                assert -loglikelihood == pytest.approx(losses[example], abs=1e-5)
            mean = found["results"][f"{quoted}_{kind}"]["acc,none"]
            assert mean == pytest.approx(np.mean(list(expected.values())))
    config = yaml.safe_load((out / "harness" / "add_choice.yaml").read_text())
    assert config["metadata"]["items"] == 20
    assert config["metadata"]["of_test_examples"] == 50
    assert config["metadata"]["plan_hash"] == plan.hash
    assert "`add_choice` has 20 of the 50 test examples" in (out / "README.md").read_text()


def test_every_id_survives_the_ids_tokenizer_and_other_text_is_an_error(tmp_path: Path) -> None:
    write_ids_tokenizer(tmp_path / "ids", vocab_size=50304, eos=50279, pad=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ids")
    every = np.random.default_rng(0).permutation(50304)
    for text in (words(every), words(every).replace(" ", "")):
        assert tokenizer.encode(text) == every.tolist()
    assert tokenizer.decode(every[:3].tolist()) == words(every[:3])
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (
        *(50279, 1),
        None,
    )
    for text in ("<50304>", "512", "<5> and <6>"):
        with pytest.raises(Exception, match="Missing"):
            tokenizer.encode(text)


def test_random_tokens_do_not_survive_decode_and_encode() -> None:
    """Why there is an ids tokenizer at all."""
    tokenizer = Tokenizer.from_file(str(tokenizer_path("dolma-v1_5")))
    triples = np.random.default_rng(0).integers(300, 50_000, size=(2000, 3)).tolist()
    survive = sum(tokenizer.encode(tokenizer.decode(triple)).ids == triple for triple in triples)
    assert 0.85 < survive / len(triples) < 0.98


def test_a_choice_of_many_labels_is_a_fixed_random_subset() -> None:
    task = ModularAddition("add", symbols=np.arange(5, 105), labels=np.array([]), seed=3)
    items = choice_items(task)
    assert len(items) == 500
    assert set(items.tolist()) < set(task.test.tolist())
    np.testing.assert_array_equal(items, choice_items(task))
    assert (np.diff(items) > 0).all()
    # Spread over the table: random, not its first rows.
    assert items.max() > 0.95 * len(task.tokens)


def test_the_files_say_what_they_are(tmp_path: Path) -> None:
    tasks = [TaskConfig("add", family="modular_addition", num_symbols=10)]
    tasks[0].schedule.rate = 1
    sizes = {"batch_size": 8, "seq_len": 16, "epoch_rows": 8, "vocab_size": 99, "eos_token_id": 0}
    plan = compile_plan(InjectionConfig(tasks=tasks), **sizes)
    folder = tmp_path / "harness"
    write_harness(folder, plan)
    (task,) = plan.tasks
    lines = [json.loads(line) for line in (folder / "add.jsonl").read_text().splitlines()]
    assert [line["example"] for line in lines] == task.test.tolist()
    labels = task.label_tokens
    for line in lines:
        i, j, label = task.tokens[line["example"]]
        assert (line["prompt"], line["label"]) == (f"<{i}> <{j}>", f"<{label}>")
        assert labels[line["answer"]] == label
    config = yaml.safe_load((folder / "add_choice.yaml").read_text())
    assert config["doc_to_choice"] == [f"<{label}>" for label in labels]
    assert config["metadata"]["acc_is"] == "label_accuracy"
