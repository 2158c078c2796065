"""Hosts of facts: a corpus whose entropy is known, over tokens that no task may have."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from refusals import refuses

from data_injection.config import InjectionConfig, TaskConfig
from data_injection.corpus.facts import LENGTH, entropy, prepare_facts
from data_injection.corpus.manifest import Manifest, corpus_paths, verify_corpus
from data_injection.errors import ConfigError
from data_injection.tasks.build import build_tasks

SPACE = {"tokenizer": "dolma-v1_5", "num_tokens": 4 * 4096}


def facts(folder: Path) -> tuple[Manifest, np.ndarray]:
    manifest = verify_corpus(folder, full=True)
    (path,) = corpus_paths(folder, manifest)
    return manifest, np.fromfile(path, np.uint16).reshape(-1, LENGTH)


def test_each_question_has_one_answer_and_the_entropy_is_that_of_what_is_drawn(
    tmp_path: Path,
) -> None:
    made = prepare_facts(10, tmp_path, **SPACE)
    manifest, rows = facts(tmp_path)
    assert made.hash == manifest.hash == prepare_facts(10, tmp_path, **SPACE).hash
    assert made.num_documents == len(rows) == 4096
    assert (rows[:, 3] == made.eos_token_id).all()
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    assert len(distinct) == 10 == len(np.unique(rows[:, :2], axis=0))
    shares = counts / counts.sum()
    assert made.sources[0]["entropy"] == pytest.approx(math.log(10) / 4)
    # The plug-in entropy of 4,096 draws lies about 9 / 8,192 below the truth.
    assert -(shares * np.log(shares)).sum() / 4 == pytest.approx(math.log(10) / 4, abs=2e-3)


def test_noise_is_that_share_of_the_answers_and_raises_the_entropy(tmp_path: Path) -> None:
    made = prepare_facts(9, tmp_path, noise=0.3, **SPACE)
    _, rows = facts(tmp_path)
    plain = facts_of(9, tmp_path / "plain")
    assert (rows[:, :2] == plain[:, :2]).all()
    # A spoiled answer is by chance the right one in a third of cases: .2 differ.
    assert (rows[:, 2] != plain[:, 2]).mean() == pytest.approx(0.2, abs=0.03)
    expected = (math.log(9) - 0.8 * math.log(0.8) - 0.2 * math.log(0.1)) / 4
    assert made.sources[0]["entropy"] == pytest.approx(expected)


def facts_of(num: int, folder: Path) -> np.ndarray:
    prepare_facts(num, folder, **SPACE)
    return facts(folder)[1]


def test_no_task_draws_or_names_a_token_of_the_facts(tmp_path: Path) -> None:
    manifest = prepare_facts(10, tmp_path, **SPACE)
    own = set(facts(tmp_path)[1][:, :3].ravel().tolist())
    assert own < set(manifest.special_token_ids)
    reserved = manifest.special_token_ids

    def build(**fields: object) -> set[int]:
        config = InjectionConfig(tasks=[TaskConfig(name="cmp", **fields)])
        (task,) = build_tasks(config, vocab_size=manifest.vocab_size, reserved_tokens=reserved)
        return set(task.tokens.ravel().tolist())

    assert not build(num_symbols=100) & own
    with refuses(key="injection.tasks[0]", value=sorted(own)[:4], remedy="choose others"):
        build(symbols=sorted(own)[:4])


@pytest.mark.parametrize(
    ("num", "settings", "key"),
    [
        (1, {}, "facts"),
        (10**9, {}, "facts"),
        (10, {"noise": 1.0}, "noise"),
        (10, {"noise": float("nan")}, "noise"),
        (10, {"num_tokens": 3}, "max_tokens"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    num: int, settings: dict[str, float], key: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare_facts(num, tmp_path / "new", **(SPACE | settings))
    assert caught.value.key == key
    assert not (tmp_path / "new").exists()


def test_the_least_loss_is_that_of_who_knows_every_fact(tmp_path: Path) -> None:
    (made,) = prepare_facts(10, tmp_path, **SPACE).sources
    _, rows = facts(tmp_path)
    distinct = np.unique(rows, axis=0)
    of_first = dict(zip(*np.unique(distinct[:, 0], return_counts=True), strict=True))
    # Rows of two facts: a is drawn by its share of the facts, b among those of its a, c is known.
    pairs = rows.reshape(-1, 2, LENGTH)
    told = [[math.log(of_first[a] / 10) for a in two[:, 0]] for two in pairs]
    later = [[math.log(1 / of_first[a]) for a in two[:, 0]] for two in pairs]
    losses = [-(first[1] + sum(rest)) / 8 for first, rest in zip(told, later, strict=True)]
    # Over all 8 tokens of a row, as ai2-olmo logs the loss of its 7 predictions.
    least = (8 * made["entropy"] - made["first"]) / 8
    assert np.mean(losses) == pytest.approx(least, abs=5e-3)
    assert least < made["entropy"]


def test_a_fact_without_doubt_has_no_entropy() -> None:
    assert entropy(1, answers=1, noise=0.0) == 0
