"""The scan of a corpus: every occurrence once, in any piece, in whole files only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_injection.config import InjectionConfig, TaskConfig
from data_injection.corpus import scan as scan_module
from data_injection.corpus.scan import CorpusScan, scan_corpus
from data_injection.tasks.base import Task
from data_injection.tasks.build import build_tasks

EOS = 0
VOCAB = 40


def tasks_of(*configs: TaskConfig, vocab_size: int = VOCAB) -> list[Task]:
    return build_tasks(
        InjectionConfig(tasks=list(configs)), vocab_size=vocab_size, reserved_tokens={EOS}
    )


def comparison() -> list[Task]:
    return tasks_of(TaskConfig(name="cmp", symbols=[2, 3, 4, 5], labels=[6, 7, 8]))


SHARED = tasks_of(
    TaskConfig(name="a", num_symbols=3),
    TaskConfig(name="b", num_symbols=2, share_symbols_with="a"),
    TaskConfig(name="c", family="modular_addition", num_symbols=3),
    TaskConfig(name="d", family="group_composition", num_symbols=2, params={"operands": 1}),
    TaskConfig(
        name="e",
        family="group_composition",
        num_symbols=2,
        params={"operands": 2, "distractors": 3},
    ),
)
"""Two tasks with some examples in common, and examples of 2, 3 and 6 tokens."""


def scan(tokens: Any, tasks: list[Task], **changes: Any) -> CorpusScan:
    files = [np.asarray(file, dtype=np.uint16) for file in tokens]
    return scan_corpus(files, tasks, **({"dtype": np.uint16, "eos_token_id": EOS} | changes))


def brute_force(files: list[list[int]], task: Task) -> tuple[list[list[int]], list[list[int]]]:
    """Occurrences of symbols and labels, and of examples anywhere and before EOS, one by one."""
    text = [token for file in files for token in file]
    tokens = [[text.count(t) for t in ids] for ids in (task.symbols, task.labels)]
    anywhere, before_eos = [0] * len(task.tokens), [0] * len(task.tokens)
    for file in files:
        for start in range(len(file)):
            for index, example in enumerate(task.tokens.tolist()):
                if file[start : start + task.length] == example:
                    anywhere[index] += 1
                    before_eos[index] += file[start + task.length :][:1] == [EOS]
    return tokens, [anywhere, before_eos]


def counts(scanned: CorpusScan, index: int) -> tuple[list[list[int]], list[list[int]]]:
    found = scanned.tasks[index]
    return (
        [found.symbols.tolist(), found.labels.tolist()],
        [found.occurrences.tolist(), found.before_eos.tolist()],
    )


@settings(max_examples=150, deadline=None)
@given(data=st.data(), piece=st.integers(1, 30), dense=st.sampled_from([0, 1, 10**9]))
def test_the_counts_are_those_of_a_search_one_by_one(
    data: st.DataObject, piece: int, dense: int
) -> None:
    # Whole examples among single tokens, or there would hardly ever be one.
    words = [e for task in SHARED for e in task.tokens.tolist()] + [[t] for t in range(VOCAB)]
    files = [
        [t for word in data.draw(st.lists(st.sampled_from(words), max_size=25)) for t in word]
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_module, "DENSE", dense)
        scanned = scan(files, SHARED, piece=piece)
    for index, task in enumerate(SHARED):
        assert counts(scanned, index) == brute_force(files, task), task.name


@pytest.mark.parametrize("at", [0, 1, 61, 62, 63, 64, 65, 127, 197])
def test_an_example_across_the_border_of_two_pieces_is_counted_once(at: int) -> None:
    tasks = comparison()
    tokens = np.full(200, 39)
    tokens[at : at + 3] = tasks[0].tokens[5]
    tokens[at + 3 : at + 4] = EOS
    found = scan([tokens], tasks, piece=64).tasks[0]
    assert np.flatnonzero(found.occurrences).tolist() == [5]
    assert found.occurrences[5] == 1
    assert found.before_eos[5] == (at < 197)  # at 197 the file ends with it


def test_no_example_reaches_from_one_file_into_the_next() -> None:
    tasks = comparison()
    example = tasks[0].tokens[3].tolist()
    found = scan([[9, *example[:2]], [example[2], 9], [*example], [EOS, *example, EOS]], tasks)
    assert found.tasks[0].occurrences[3] == 2
    assert found.tasks[0].before_eos[3] == 1, "the EOS that opens the next file follows nothing"
    assert found.num_tokens == 13


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_files_of_any_type_and_an_empty_one_are_read(tmp_path: Path, dtype: str) -> None:
    tasks = comparison()
    wild = np.iinfo(dtype).max
    texts = [[], [wild, *tasks[0].tokens[2], wild], [], [tasks[0].tokens[2, 0]]]
    for index, text in enumerate(texts):
        np.array(text, dtype=dtype).tofile(tmp_path / f"{index}.npy")
    # An EOS id beyond every token of a task, as in Dolma's tokenizer.
    found = scan_corpus(sorted(tmp_path.glob("*.npy")), tasks, dtype=dtype, eos_token_id=int(wild))
    assert (found.num_tokens, found.num_scanned) == (6, 6)
    assert found.tasks[0].occurrences[2] == found.tasks[0].before_eos[2] == 1
    assert found.tasks[0].symbols.sum() + found.tasks[0].labels.sum() == 4


def test_an_empty_corpus_has_nothing_and_a_plan_without_tasks_scans_nothing() -> None:
    found = scan([[]], comparison())
    assert (found.num_tokens, found.tasks[0].occurrences.sum()) == (0, 0)
    assert scan([[1, 2, 3]], []).tasks == ()


@pytest.mark.parametrize("wanted", [1, 50, 999, 1000, 5000])
def test_a_sample_is_of_the_size_asked_for_and_spread_over_all_files(
    monkeypatch: pytest.MonkeyPatch, wanted: int
) -> None:
    monkeypatch.setattr(scan_module, "WINDOW", 10)
    tasks = comparison()
    symbol = int(tasks[0].symbols[0])
    done: list[int] = []
    found = scan([[symbol] * 400, [39] * 600], tasks, max_tokens=wanted, progress=done.append)
    assert found.num_tokens == 1000
    assert found.num_scanned == sum(done) == min(wanted, 1000)
    if wanted >= 50:
        assert found.tasks[0].symbols[0] == pytest.approx(0.4 * found.num_scanned, abs=10)


def test_an_example_that_ends_beyond_its_stretch_of_a_sample_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scan_module, "WINDOW", 1)
    tasks = comparison()
    tokens = [*tasks[0].tokens[7], EOS, 39, 39]
    found = scan([tokens], tasks, max_tokens=1)
    assert found.tasks[0].occurrences[7] == found.tasks[0].before_eos[7] == 1


def test_two_examples_with_one_key_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = scan_module.raw_words

    def colliding(num: int, *, seed: int, purpose: str) -> np.ndarray:
        return (
            np.zeros(num, dtype=np.uint64) if seed == 0 else keys(num, seed=seed, purpose=purpose)
        )

    monkeypatch.setattr(scan_module, "raw_words", colliding)
    tasks = comparison()
    files = [[*tasks[0].tokens[1], *tasks[0].tokens[1], EOS, *tasks[0].tokens[2]]]
    assert counts(scan(files, tasks), 0) == brute_force(files, tasks[0])


def test_a_run_of_tokens_with_an_examples_key_is_no_example(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    factors = np.array([1, 64, 2**20], dtype=np.uint64)
    monkeypatch.setattr(scan_module, "raw_words", lambda num, *, seed, purpose: factors)
    tasks = tasks_of(TaskConfig(name="cmp", symbols=[2, 3, 66], labels=[5, 6, 7]), vocab_size=100)
    assert [2, 3, 5] in tasks[0].tokens.tolist()
    assert [66, 2, 5] not in tasks[0].tokens.tolist()
    found = scan([[66, 2, 5, 39, 2, 3, 5]], tasks).tasks[0]
    assert found.occurrences.sum() == 1
