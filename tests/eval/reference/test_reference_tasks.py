"""Frequency, loss and choice of the reference tasks: known answers, and what the nulls leave."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from refusals import refuses

from data_injection.corpus.encoder import tokenizer_path
from data_injection.reference.grammar import find_statements, fresh_statements
from data_injection.reference.scan import Place, ReferenceScan, scan_reference
from data_injection.reference.vocabulary import TokenText
from data_injection.schedules.base import Geometry
from eval.figures.index import draw_figures
from eval.figures.reference import beside_natural, natural_frequencies
from eval.records import RecordWriter, read_records
from eval.reference.scan_file import list_name, load_scan, save_scan
from eval.reference.tasks import (
    Item,
    exchanged,
    fresh_item,
    losses,
    natural_item,
    natural_rates,
    poisson_interval,
    score_statements,
)
from eval.scores.cells import cells

TEXT = TokenText.from_file(tokenizer_path("dolma-v1_5"))
EOS, VOCAB = 50279, 50280
GEOMETRY = Geometry(batch_size=32, seq_len=64)


def scan(documents: list[str]) -> tuple[np.ndarray, ReferenceScan]:
    ids = [token for one in documents for token in (*TEXT.encode(one), EOS)]
    tokens = np.array(ids, dtype=np.uint16)
    return tokens, scan_reference([tokens], TEXT, dtype=np.uint16, eos_token_id=EOS)


def fresh(task: str, num: int) -> list[Item]:
    statements = fresh_statements(task, num, seed=0, avoid=frozenset())
    return [fresh_item(one, text=TEXT, eos_token_id=EOS, seed=0) for one in statements]


class Reader:
    """A model that has learned by heart what follows each beginning of some items, and no more."""

    def __init__(self, items: list[Item]) -> None:
        self.next: dict[tuple[int, ...], int] = {}
        for item in items:
            for num, token in enumerate(item.true):
                self.next[item.before + item.true[:num]] = token
        self.widths: list[int] = []

    def __call__(self, ids_BT: torch.Tensor) -> torch.Tensor:
        self.widths.append(ids_BT.shape[1])
        logits_BTV = torch.zeros(*ids_BT.shape, VOCAB)
        for row, ids in enumerate(ids_BT.tolist()):
            for at in range(len(ids)):
                token = self.next.get(tuple(ids[: at + 1]))
                if token is not None:
                    logits_BTV[row, at, token] = 30.0
        return logits_BTV


def values(rows: list[dict], subset: str = "all") -> dict[str, float]:
    return {row["metric"]: row["value"] for row in rows if row["subset"] == subset}


def place(document: int, text: str = "3 < 5") -> Place:
    [statement] = find_statements(text.encode())
    return Place(statement, file=0, start=0, choice=1, answer=2, stop=3, document=document)


def test_the_poisson_interval_is_garwoods() -> None:
    assert poisson_interval(0) == (0.0, pytest.approx(3.689, abs=1e-3))
    assert poisson_interval(10) == (pytest.approx(4.795, abs=1e-3), pytest.approx(18.390, abs=1e-3))


def test_natural_rates_come_in_the_units_of_injected_ones() -> None:
    rates = natural_rates([place(d) for d in range(10)], num_scanned=20_480, geometry=GEOMETRY)
    assert rates["rate_per_step"] == 1.0  # 10 statements in 10 steps of 2,048 tokens
    assert rates["rate_per_sequence"] == 1 / 32
    assert rates["rate_per_token"] == 1 / 2048
    assert rates["task_tokens_per_token"] == 3 / 2048
    assert rates["rate_low"] == pytest.approx(0.4795, abs=1e-4)
    assert rates["rate_high"] == pytest.approx(1.8390, abs=1e-4)
    assert (rates["num"], rates["distinct"], rates["documents"]) == (10, 1, 10)


def test_statements_of_one_document_are_one_event() -> None:
    rates = natural_rates([place(7)] * 10, num_scanned=20_480, geometry=GEOMETRY)
    low, high = poisson_interval(1)
    assert rates["rate_low"] == pytest.approx(low)  # each event is ten statements
    assert rates["rate_high"] == pytest.approx(high)


def test_where_none_is_found_the_rate_is_zero_and_its_upper_end_is_not() -> None:
    rates = natural_rates([], num_scanned=20_480, geometry=GEOMETRY)
    assert rates["rate_per_step"] == rates["rate_low"] == rates["distinct"] == 0
    assert rates["rate_high"] == pytest.approx(0.3689, abs=1e-4)


def test_losses_are_those_of_the_tokens_that_follow_whatever_the_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    table_VV = torch.randn(9, 9, generator=generator)
    sequences = [((1, 2), (3,)), ((4,), (5, 6, 7, 8)), ((2, 2, 2, 2), (1, 0))]
    found = losses(lambda ids_BT: table_VV[ids_BT], sequences, pad=0)
    for (before, after), own in zip(sequences, found, strict=True):
        ids = [*before, *after]
        log_probs = table_VV.log_softmax(dim=-1)
        expected = [-float(log_probs[ids[i - 1], ids[i]]) for i in range(len(before), len(ids))]
        np.testing.assert_allclose(own, expected, rtol=1e-5)


@pytest.mark.parametrize("task", ["R_cmp", "R_add"])
def test_a_model_that_knows_every_statement_has_no_loss_and_the_null_takes_it_away(
    task: str,
) -> None:
    # It cannot know two statements that begin alike.
    items = list({item.before: item for item in fresh(task, 24)}.values())
    found = values(score_statements(Reader(items), items, pad=EOS, seed=0))
    assert found["answer_loss"] < 1e-6
    assert found["choice_accuracy"] == 1
    # After another statement's beginning it expects that one's answer.
    assert found["answer_loss_null"] > 5
    assert not any(metric.endswith("_bare") for metric in found)  # there is no context


def test_a_model_that_knows_nothing_loses_the_logarithm_of_the_vocabulary() -> None:
    items = fresh("R_add", 12)
    rows = score_statements(Reader([]), items, pad=EOS, seed=0)
    tokens = next(row["tokens_per_answer"] for row in rows if row["metric"] == "answer_loss")
    assert values(rows)["answer_loss"] == pytest.approx(tokens * math.log(VOCAB), rel=1e-5)


def test_a_model_that_prefers_one_sign_gets_the_majority_and_no_more() -> None:
    texts = ["1 < 2", "3 < 4", "9 > 6"]
    items = [
        fresh_item(s, text=TEXT, eos_token_id=EOS, seed=0)
        for text in texts
        for s in find_statements(text.encode())
    ]
    [less] = TEXT.encode(" <")

    def prefers(ids_BT: torch.Tensor) -> torch.Tensor:
        logits_BTV = torch.zeros(*ids_BT.shape, VOCAB)
        logits_BTV[..., less] = 5.0
        return logits_BTV

    rows = score_statements(prefers, items, pad=EOS, seed=0)
    choice = next(row for row in rows if row["metric"] == "choice_accuracy")
    assert choice["value"] == choice["majority"] == pytest.approx(2 / 3)
    assert (choice["chance"], choice["n"]) == (0.5, 3)
    assert choice["low"] < 2 / 3 < choice["high"]


def test_context_is_what_stands_in_the_row_and_bare_is_without() -> None:
    tokens, found = scan(["As everybody knows, 2 + 3 = 5 and so on."])
    [one] = found.places
    item = natural_item(one, tokens, first=0, text=TEXT, eos_token_id=EOS, seed=0)
    assert TEXT.join(item.before) == b"As everybody knows, 2 + 3 ="
    assert TEXT.join(item.bare) == b"<|endoftext|> 2 + 3 ="
    assert TEXT.join(item.true) == b" 5"
    assert item.false is not None
    assert TEXT.join(item.false) in (b" 4", b" 6")
    learned = Reader([item])
    measured = values(score_statements(learned, [item], pad=EOS, seed=0))
    assert measured["answer_loss"] < 1e-6  # by heart, with its context
    assert measured["answer_loss_bare"] == pytest.approx(math.log(VOCAB), rel=1e-4)
    assert "answer_loss_null" not in measured  # alone of its kind
    assert max(learned.widths) <= one.stop


def test_the_answer_of_a_comparison_is_its_second_operand_and_the_foil_its_relation() -> None:
    tokens, found = scan(["Yes, 3 is less than 5."])
    item = natural_item(found.places[0], tokens, first=0, text=TEXT, eos_token_id=EOS, seed=0)
    assert TEXT.join(item.true) == b" less than 5"
    assert TEXT.join(item.true[item.answer :]) == b" 5"
    assert item.false is not None
    assert TEXT.join(item.false) == b" greater than 5"


def test_the_null_exchanges_only_what_is_written_alike() -> None:
    items = fresh("R_add", 40)
    null = exchanged(items, seed=3)
    assert null == exchanged(items, seed=3)
    assert len(null) == 40
    before = {item.before: item for item in items}
    for item in null:
        other = before[item.before]
        assert other.statement != item.statement
        for sign in (" + ", "plus", "sum of"):
            assert (sign in item.statement.text) == (sign in other.statement.text)


def test_seen_and_unseen_rows_are_measured_apart() -> None:
    from dataclasses import replace

    items = [replace(i, seen=n < 3) for n, i in enumerate(fresh("R_add", 8))]
    rows = score_statements(Reader(items[:3]), items, pad=EOS, seed=0)
    assert values(rows, "seen")["answer_loss"] < 1e-6
    assert values(rows, "unseen")["answer_loss"] > 5
    assert {row["n"] for row in rows if row["subset"] == "seen"} <= {3}


def test_a_saved_list_is_read_back_as_it_was(tmp_path: Path) -> None:
    _, found = scan(["3 < 5", "max(1, 2) == 2", "one plus one is three"])
    path = tmp_path / "reference" / "list.parquet"
    assert load_scan(path) is None
    save_scan(found, path)
    assert load_scan(path) == found
    assert [p.name for p in path.parent.iterdir()] == ["list.parquet"]
    save_scan(ReferenceScan(9, 9, ()), path)
    assert load_scan(path) == ReferenceScan(9, 9, ())


def test_a_list_has_the_name_of_its_corpus_and_sample() -> None:
    names = {list_name(c, sample_tokens=n) for c in ("a", "b") for n in (None, 10)}
    assert len(names) == 4


def frame(tmp_path: Path, *, num: int = 6, natural: bool = True) -> pd.DataFrame:
    """One run with three injected rates and, if wanted, its reference tasks."""
    shared = {
        "run": "r", "rung": "w16", "params": 41_000, "seed": 1, "plan_hash": "h", "batch_size": 32,
        "seq_len": 64, "protocol": "mixture", "step": 100, "tokens": 204_800, "corpus_hash": "c",
    }  # fmt: skip
    rows = [
        shared | {"task": f"cmp{rate}", "family": "comparison", "rate_per_step": rate,
                  "rate_per_token": rate / 2048, "exposures_per_example": 1.0, "split": "test",
                  "metric": "score", "value": rate / 10, "subset": "all"}
        for rate in (1.0, 2.0, 4.0)
    ]  # fmt: skip
    if natural:
        rates = natural_rates([place(d) for d in range(num)], num_scanned=10**6, geometry=GEOMETRY)
        fields = {k: v for k, v in rates.items() if k.startswith("rate")}
        common = shared | fields | {"task": "R_cmp", "family": "reference", "subset": "all"}
        common |= {"exposures_per_example": 0.1, "split": "train"}
        rows += [common | {"metric": "natural_count", "value": num}]
        rows += [common | {"metric": "answer_loss", "value": 3.0}]
    with RecordWriter(tmp_path / "records.jsonl") as writer:
        writer.write(rows)
    return read_records(tmp_path)


def test_the_figure_has_a_dashed_line_at_the_natural_rate_of_every_panel(tmp_path: Path) -> None:
    figure = beside_natural(frame(tmp_path))
    [axis] = [axis for axis in figure.axes if axis.get_visible()]
    dashed = [line for line in axis.lines if "R_cmp" in str(line.get_label())]
    assert [line.get_xdata()[0] for line in dashed] == [6e-6]
    assert dashed[0].get_linestyle() == "--"
    assert "6.0e-6 per token (6 found)" in str(dashed[0].get_label())
    [curve] = [line for line in axis.lines if "comparison" in str(line.get_label())]
    np.testing.assert_allclose(curve.get_xdata(), [1 / 2048, 2 / 2048, 4 / 2048])


def test_where_none_was_found_the_figure_shows_the_upper_end(tmp_path: Path) -> None:
    records = frame(tmp_path, num=0)
    assert natural_frequencies(records).high.tolist() == [pytest.approx(3.689e-6, rel=1e-3)]
    [axis] = [axis for axis in beside_natural(records).axes if axis.get_visible()]
    [line] = [line for line in axis.lines if "none found" in str(line.get_label())]
    assert line.get_linestyle() == ":"


def test_a_reference_task_changes_no_cell_and_adds_one_figure(tmp_path: Path) -> None:
    without = frame(tmp_path / "without", natural=False)
    with_natural = frame(tmp_path / "with")
    pd.testing.assert_frame_equal(cells(without), cells(with_natural))
    names = [{one.name for one in draw_figures(records)} for records in (without, with_natural)]
    assert names[1] - names[0] == {"reference.png"}
    with refuses(key="records", rule="no reference task", remedy="olmo-ext reference"):
        beside_natural(without)
