"""The scan for natural statements: what reading everything would find, in any pieces."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from data_injection.corpus.embedded import train_tokenizer
from data_injection.corpus.encoder import choose_encoder, parse_tokenizer, tokenizer_path
from data_injection.reference.grammar import find_statements
from data_injection.reference.scan import ReferenceScan, scan_reference, seen_operands
from data_injection.reference.vocabulary import TokenText

PROSE = (
    "The answer is less than ten, and 3 is less than 5. Two plus three is five; 2 + 3 = 5 <= 6 >= "
    "4 == 4 != 5 max(1, 2) the larger sum of numbers between one and twenty-nine, for i < 10: x = 1"
)


def small_bpe() -> TokenText:
    """As the embedded corpus's, and so small that most words are several tokens."""
    return TokenText(train_tokenizer([PROSE] * 3, vocab_size=300))


def dolma() -> TokenText:
    return TokenText.from_file(tokenizer_path("dolma-v1_5"))


TEXTS = {"small": small_bpe(), "dolma": dolma()}
EOS = {"small": 0, "dolma": 50279}

PIECES = [
    *("3 < 5", "12>7", "4 <= 2", "7 is greater than 3", "Nine is less than twenty-one", "2+3=5"),
    *("2 + 2 = 5", "two plus three is five", "the sum of 2 and 3 is 5", "max(3, 5) == 5"),
    *("1,234 != 99", "2 ≥ 1.5", "larger of 3 and 5 is 5", "0.1 + 0.2 = 0.3", "12 is equal to 12"),
    *(
        "i < 10",
        "1 < x < 3",
        "n - 4 == 4",
        "1 + 2 + 3 = 6",
        "more than 3",
        "x = 5",
        "three",
        "Plus",
    ),
    *(" ", "  ", "\n", ".", ",", " and ", "é", "“", "17", "<b>", "-", "(", ")", "naïve ", "=", "+"),
]
document = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.lists(
    st.sampled_from(PIECES), max_size=12
).map(" ".join)


def write(documents: list[str], name: str) -> np.ndarray:
    text = TEXTS[name]
    ids = [token for one in documents for token in (*text.encode(one), EOS[name])]
    return np.array(ids, dtype=np.uint16)


def scan(files: list[np.ndarray], name: str, **options: int) -> ReferenceScan:
    return scan_reference(files, TEXTS[name], dtype=np.uint16, eos_token_id=EOS[name], **options)


@pytest.mark.parametrize("name", TEXTS)
def test_the_tables_of_bytes_spell_what_the_tokenizer_decodes(name: str) -> None:
    said = PROSE + " naïve “quotes” ≤ 5\n\n        x\t£"
    assert TEXTS[name].join(TEXTS[name].encode(said)) == said.encode()


def test_special_tokens_spell_themselves() -> None:
    assert dolma().bytes_of[0] == b"|||IP_ADDRESS|||"


@pytest.mark.parametrize("name", TEXTS)
@settings(max_examples=120, deadline=None)
@given(documents=st.lists(document, min_size=1, max_size=6), piece=st.integers(1, 40))
def test_the_scan_finds_what_reading_every_document_finds(
    name: str, documents: list[str], piece: int
) -> None:
    tokens = write(documents, name)
    found = [(p.statement.form, p.statement.text) for p in scan([tokens], name, piece=piece).places]
    expected = [(s.form, s.text) for one in documents for s in find_statements(one.encode())]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("name", TEXTS)
def test_a_planted_corpus_has_the_counts_that_were_planted(name: str) -> None:
    rng = random.Random(0)
    planted = {"3 < 5": 17, "12 is greater than 7": 5, "2 + 3 = 5": 11, "two plus two is five": 3}
    filler = "for i < 10: the 3 men, more than 12, x = 5 + y and 1 < n < 3."
    documents = [f"{filler} {s}. {filler}" for s, num in planted.items() for _ in range(num)]
    rng.shuffle(documents)
    found = scan([write(documents, name)], name)
    texts = [p.statement.text for p in found.places]
    assert {text: texts.count(text) for text in set(texts)} == planted
    assert [p.statement.correct for p in found.places] == [
        t != "two plus two is five" for t in texts
    ]
    assert found.num_scanned == found.num_tokens


@pytest.mark.parametrize("name", TEXTS)
def test_the_tokens_of_an_answer_spell_the_answer(name: str) -> None:
    documents = [f"Well, {s}, so." for s in PIECES[:15]]
    tokens = write(documents, name)
    places = scan([tokens], name).places
    assert len(places) == 15
    for place in places:
        answer = TEXTS[name].join(tokens[place.answer : place.stop].tolist()).decode()
        assert answer.strip() == place.statement.answer
        choice = TEXTS[name].join(tokens[place.choice : place.stop].tolist()).decode()
        said = place.statement.text.encode()[place.statement.choice - place.statement.start :]
        assert choice.strip() == said.decode()
        assert place.start <= place.choice <= place.answer < place.stop
        whole = TEXTS[name].join(tokens[place.document : place.stop].tolist()).decode()
        assert whole.endswith(place.statement.text)
        assert whole.startswith("Well, ")


@pytest.mark.parametrize("name", TEXTS)
def test_none_reaches_over_an_eos_or_from_file_to_file(name: str) -> None:
    assert not scan([write(["2 + 3 =", " 5", "3 <", " 5"], name)], name).places
    left, right = write(["3 <"], name)[:-1], write([" 5"], name)
    assert not scan([left, right], name).places
    assert len(scan([np.concatenate([left, right])], name).places) == 1


def test_files_on_disk_are_read_like_arrays(tmp_path: Path) -> None:
    tokens = write([PROSE, "so 3 < 5."], "dolma")
    tokens.tofile(tmp_path / "tokens.npy")
    on_disk = scan_reference(
        [tmp_path / "tokens.npy"], TEXTS["dolma"], dtype="uint16", eos_token_id=EOS["dolma"]
    )
    assert on_disk == scan([tokens], "dolma")


def test_ids_beyond_the_vocabulary_are_no_text() -> None:
    wild = np.array([4_000_000_000, *TEXTS["dolma"].encode("3 < 5"), 90_000], dtype=np.uint32)
    found = scan_reference([wild], TEXTS["dolma"], dtype=np.uint32, eos_token_id=EOS["dolma"])
    assert [place.statement.text for place in found.places] == ["3 < 5"]


def test_a_sample_counts_what_it_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_injection.corpus.scan.WINDOW", 50)
    tokens = write(["so 3 < 5."] * 400, "dolma")
    found = scan([tokens], "dolma", max_tokens=500)
    assert (found.num_scanned, found.num_tokens) == (500, len(tokens))
    share = len(found.places) / 400
    assert share == pytest.approx(500 / len(tokens), rel=0.15)


def test_operands_that_were_seen_are_unordered_numbers() -> None:
    places = scan([write(["5 > 3", "two plus three is five"], "dolma")], "dolma").places
    assert seen_operands(places, "R_cmp") == {frozenset({3, 5})}
    assert seen_operands(places, "R_add") == {frozenset({2, 3})}


def test_a_tokenizer_without_bytes_is_refused() -> None:
    words = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    with refuses(key="the reference tasks", rule="byte-level BPE", remedy="leave them out"):
        TokenText(words)


def test_the_encoder_and_the_scan_agree_on_tokens() -> None:
    path = tokenizer_path("dolma-v1_5")
    encoder = choose_encoder(path.read_bytes(), where="dolma")
    assert encoder.encode([PROSE])[:-1].tolist() == TEXTS["dolma"].encode(PROSE)
    parse_tokenizer(path.read_bytes(), where="dolma")
