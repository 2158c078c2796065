"""`olmo-ext eval` asks OLMo-core's checkpoints, and transformers answers as OLMo-core does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from refusals import refuses

from eval.audit.audit import audit_run
from eval.export.huggingface import export_hf
from eval.features.evaluate import find_jobs
from eval.records import read_records
from eval.report.write import write_report
from eval.scores.evaluate import evaluate, tasks_of_run
from launch.slurm.status import find_status
from olmo_ext.core import compat

pytestmark = pytest.mark.skipif(bool(compat.MISSING), reason="needs ai2-olmo-core 3: test-core")

AT = ["step", "task", "split", "subset", "metric"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps of the micro OLMo-2, with a task of sequences; checkpoints of steps 4 and 8."""
    from core_micro import SECTION, build_trainer

    folder = tmp_path_factory.mktemp("core")
    rows = [
        {"tokens": [20 + i, 30 + i, 40 + i, 50], "copies": copies, "twin": copies is None}
        for i, copies in enumerate([4, 4, 0, None, None])
    ]
    texts = [json.dumps({key: value for key, value in row.items() if value is not None})
             for row in rows]  # fmt: skip
    (folder / "seq.jsonl").write_text("\n".join(texts))
    sequences = {
        "name": "seq",
        "family": "sequences",
        "params": {"file": str(folder / "seq.jsonl")},
    }
    section = SECTION | {"tasks": [*SECTION["tasks"], sequences]}
    callbacks = {"task_eval": {"every": 4, "prefix": 2}}
    build_trainer(folder, {"section": section, "callbacks": callbacks, "save": 4}).fit()
    (folder / "seq.jsonl").unlink()  # what is evaluated later needs the run's folder alone
    return folder / "run"


def measured_again(run: Path, to: Path) -> pd.DataFrame:
    """What `olmo-ext eval` records of a run that had recorded nothing."""
    shutil.copytree(run, to)
    (to / "records.jsonl").unlink()
    assert [done.source.step for done in evaluate(to) if done.rows] == [0, 4, 8]
    return read_records(to)


def indexed(table: pd.DataFrame) -> pd.DataFrame:
    return table.fillna({"subset": "all"}).set_index(AT).sort_index()


def assert_equal_but_for_kernels(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    """Losses within 1e-5, all else within one example of each row.

    Another batch or processor takes other kernels, which move a logit's last digits (one ulp of a
    loss near 5 is 5e-7), and an arg max or a rank between near ties then falls the other way.
    """
    metric = ours.index.get_level_values("metric")
    losses = metric.str.endswith(("_loss", "_entropy"))
    one = 1 / ours.n
    scores = metric == "score"
    one[scores] /= 1 - ours.majority[scores]
    bound = one.where(~losses, 0.0) + 1e-5
    off = (ours.value - theirs.value).abs()
    assert (off <= bound).all(), ours[~(off <= bound)]


def test_a_checkpoint_scores_as_the_run_did(run: Path, tmp_path: Path) -> None:
    again = indexed(measured_again(run, tmp_path / "again"))
    recorded = read_records(run)
    recorded = indexed(recorded[recorded.task != ""])
    metrics = set(recorded.index.get_level_values("metric"))
    assert {"score", "choice_loss", "sequence_loss", "extraction", "membership_auc"} <= metrics
    shared = recorded.index.intersection(again.index)
    assert len(shared) == len(recorded) > 40
    assert_equal_but_for_kernels(recorded, again.loc[shared].reindex(recorded.index))


def test_every_verb_serves_a_run_of_olmo_core_or_says_what_does(run: Path, tmp_path: Path) -> None:
    [told], _ = find_status([run])
    assert (told.state, told.step, told.num_steps) == ("finished", 8, 8)
    assert "olmo-core" in write_report(run, tmp_path / "report").read_text()
    with refuses(key=run, rule="checked as they are trained on and not audited later"):
        audit_run(run)
    for ask, remedy in (
        (lambda one: export_hf(one, tmp_path / "hf"), "convert_checkpoint_to_hf converts it"),
        (find_jobs, "measures its features while it trains"),
    ):
        for one in (run, run / "step8"):
            with refuses(key=one, rule="of OLMo-core 2 or later", remedy=remedy):
                ask(one)


def write_tokenizer(folder: Path) -> None:
    """One of 256 bytes: the converter must be given some tokenizer of the model's size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ends = [chr(256), chr(257)]  # bytes 0 and 1: EOS and padding
    rest = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(ends))
    vocab = {one: index for index, one in enumerate(ends + rest)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = dict(zip(("eos_token", "pad_token"), ends, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def test_transformers_answers_as_olmo_core_does(run: Path, tmp_path: Path) -> None:
    """Through OLMo-core's own converter, of a checkpoint outside of any run."""
    from core_micro import EOS, PAD, VOCAB
    from olmo_core.nn.hf import convert_checkpoint_to_hf

    write_tokenizer(tmp_path / "bytes")
    shutil.copytree(run / "step8", tmp_path / "step8")
    convert_checkpoint_to_hf(
        tmp_path / "step8",
        tmp_path / "hf",
        json.loads((tmp_path / "step8" / "config.json").read_text())["model"],
        {"vocab_size": VOCAB, "eos_token_id": EOS, "pad_token_id": PAD},
        tokenizer_id=str(tmp_path / "bytes"),
        max_sequence_length=16,
    )
    asked = tasks_of_run(run)
    ours, theirs = (
        indexed(
            pd.DataFrame(
                [row for done in evaluate(tmp_path / name, asked=asked) for row in done.rows]
            )
        )
        for name in ("step8", "hf")
    )
    ours, theirs = ours.droplevel("step"), theirs.droplevel("step")
    assert len(ours) > 40
    assert list(ours.index) == list(theirs.index)
    assert_equal_but_for_kernels(ours, theirs)  # measured: 0
