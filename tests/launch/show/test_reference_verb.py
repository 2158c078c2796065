"""`olmo-ext reference` on a run that was trained on planted statements."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from data_injection.corpus.embedded import train_tokenizer
from data_injection.corpus.prepare import prepare_corpus
from eval.records import read_records
from launch.cli import app
from olmo_ext.config import load_experiment
from olmo_ext.train import train

DOCUMENTS = [
    *(f"We know that {a} < {a + 3} and {a} + {a} = {2 * a}. Do not say 9 < {a}." for a in range(8)),
    *("A page with nothing in it, for i < 10, of 1 < n < 3." for _ in range(30)),
]


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, write_experiment_in: Callable[[Path], Callable]
) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    train_tokenizer(DOCUMENTS, vocab_size=320).save(str(folder / "tokenizer.json"))
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": one}) + "\n" for one in DOCUMENTS))
    prepare_corpus([text], folder / "corpus", name="planted", tokenizer=folder / "tokenizer.json")

    def edit(config: dict) -> None:
        config["corpus"] = str(folder / "corpus")
        config["callbacks"] = {"progress": None}
        del config["train"]["data"]["paths"]
        model = config["train"]["model"]
        model["vocab_size"] = model["embedding_size"] = 320
        model["max_sequence_length"] = 32

    return train(load_experiment(write_experiment_in(folder)(edit)))


def reference(*args: object) -> Result:
    return CliRunner().invoke(app, ["reference", *map(str, args)], catch_exceptions=False)


def test_every_checkpoint_is_measured_once_and_what_was_planted_is_counted(run: Path) -> None:
    first = reference(run)
    assert first.exit_code == 0, first.output
    assert "R_cmp: '0 < 3' 1" in first.output, first.output
    frame = read_records(run)
    counts = frame[(frame.metric == "natural_count") & (frame.step == 12)].set_index("task")
    assert counts.value.to_dict() == {"R_cmp": 8, "R_add": 8}
    assert counts.false_statements.to_dict() == {"R_cmp": 8, "R_add": 0}
    assert (counts.rate_per_token * counts.num_scanned).round(9).tolist() == [8, 8]
    assert set(frame[frame.metric == "answer_loss"].step) == {0, 6, 12}
    assert set(frame[frame.metric == "answer_loss"].split) == {"train", "test"}
    seen = frame[(frame.metric == "answer_loss") & (frame.subset == "seen")]
    assert 0 not in set(seen.step)  # nothing is read at step 0
    lines = (run / "records.jsonl").read_text()
    again = reference(run)
    assert again.output.count("already there") == 3
    assert (run / "records.jsonl").read_text() == lines


def test_the_list_stands_beside_the_corpus_and_is_not_made_twice(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reference(run).exit_code == 0
    [path] = (run.parent / "corpus" / "reference").iterdir()

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("scanned again")

    monkeypatch.setattr("eval.reference.evaluate.scan_reference", refuse)
    assert reference(run).exit_code == 0
    with pytest.raises(AssertionError, match="scanned again"):
        reference(run, "--sample-tokens", 300)
    path.unlink()
    with pytest.raises(AssertionError, match="scanned again"):
        reference(run)


def test_another_number_of_statements_is_measured_anew(run: Path) -> None:
    assert reference(run).exit_code == 0
    fewer = reference(run, "--most", 3)
    assert "already there" not in fewer.output
    frame = read_records(run)
    rows = frame[(frame.metric == "answer_loss") & (frame.subset == "all")]
    assert rows.n.max() == 3
