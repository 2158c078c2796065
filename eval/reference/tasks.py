"""How often a corpus compares and adds by itself, and how well a model does either: R_cmp, R_add.

    rates = natural_rates(places, num_scanned=scan.num_scanned, geometry=plan.geometry)
    for row in score_statements(logits, items, null=nulls): print(row["metric"], row["value"])

The study's reference tasks (Fig. 6a), beside which an injected frequency can be put. What is
measured, its nulls and what they do not rule out: docs/reference_tasks.md.

Axes: B statements, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from data_injection.philox import permutation
from data_injection.reference.grammar import INFIX, Statement, foil, opposite_of, shape_before
from data_injection.reference.scan import Place
from data_injection.reference.vocabulary import TokenText
from data_injection.schedules.base import Geometry, rate_in_all_units
from eval.scores.accuracy import LOGITS_AT_ONCE
from eval.statistics import share_of

Logits = Callable[[torch.Tensor], torch.Tensor]
"""From input_ids_BT to logits_BTV."""


def natural_rates(
    places: Sequence[Place], *, num_scanned: int, geometry: Geometry
) -> dict[str, Any]:
    """The frequency of true statements in the units of an injected task's.

    The 95% interval is a Poisson one (Garwood 1936) of as many independent events as the documents
    are worth: statements of one document come together, and (sum n)^2 / sum n^2 over documents of n
    statements counts them (Kish's effective size). Where none is found the interval goes from 0 to
    3.7 events.

    Returns:
        the fields of `rate_in_all_units` as rate_per_..., rate_low and rate_high per step, and
        num, distinct, documents and num_scanned.
    """
    num = len(places)
    tokens = Fraction(sum(p.stop - p.start for p in places), max(num, 1))
    # Exact, as an injected task's rate is: the two stand on one axis.
    scale = Fraction(geometry.batch_size * geometry.seq_len, num_scanned)
    rates = rate_in_all_units(num * scale, geometry, tokens_per_instance=tokens)
    _, per_document = np.unique([(p.file, p.document) for p in places] or [(0, 0)],
                                axis=0, return_counts=True)  # fmt: skip
    effective = num**2 / float((per_document**2).sum())
    low, high = poisson_interval(effective)
    # The interval is of events, the rate of statements: an event is so many of them.
    unit = num / effective if num else 1.0
    return {
        "rate_per_step": rates["per_step"],
        "rate_per_sequence": rates["per_sequence"],
        "rate_per_token": rates["per_token"],
        "task_tokens_per_token": rates["task_tokens_per_token"],
        "rate_low": low * unit * float(scale),
        "rate_high": high * unit * float(scale),
        "num": num,
        "distinct": len({p.statement.text for p in places}),
        "documents": len(per_document) if num else 0,
        "num_scanned": num_scanned,
    }


def poisson_interval(num: float) -> tuple[float, float]:
    """95% interval of the mean of a Poisson count (Garwood 1936); `num` need not be whole."""
    from scipy.stats import chi2

    low = float(chi2.ppf(0.025, 2 * num)) / 2 if num > 0 else 0.0
    return low, float(chi2.ppf(0.975, 2 * num + 2)) / 2


@dataclass(frozen=True)
class Item:
    """A statement as a model reads it: what stands before, and what follows in two versions."""

    statement: Statement
    before: tuple[int, ...]
    """Tokens up to where statement and foil part, with their context."""

    bare: tuple[int, ...]
    """The same without context: EOS and the statement's own."""

    true: tuple[int, ...]
    false: tuple[int, ...] | None
    """None where the statement has no foil, or its tokens cannot be written anew."""

    answer: int
    """First token of the answer in `true`."""

    seen: bool | None = None
    """The model has trained on its row; None for a fresh statement."""


def natural_item(
    place: Place, row: NDArray[Any], *, first: int, text: TokenText, eos_token_id: int, seed: int
) -> Item:
    """The item of a statement in the corpus.

    Args:
        row: tokens that the model reads, the statement's last among them.
        first: number in the file of the row's first token.
    """
    ids = row[: place.stop - first].tolist()
    choice, start = place.choice - first, place.start - first
    return _item(
        place.statement, ids, start=start, choice=choice, answer=place.answer - first,
        text=text, eos_token_id=eos_token_id, seed=seed,
    )  # fmt: skip


def fresh_item(statement: Statement, *, text: TokenText, eos_token_id: int, seed: int) -> Item:
    """The item of a statement that stands by itself, as the first of a document."""
    ids = text.encode(statement.text)
    ends = text.ends(ids)

    # The token that holds the byte; 1 for the EOS before them all.
    def token_at(byte: int) -> int:
        return 1 + int(np.searchsorted(ends, byte - statement.start, side="right"))

    return _item(
        statement, [eos_token_id, *ids], start=1, choice=token_at(statement.choice),
        answer=token_at(statement.answer_start), text=text, eos_token_id=eos_token_id, seed=seed,
    )  # fmt: skip


def _item(
    statement: Statement, ids: list[int], *, start: int, choice: int, answer: int,
    text: TokenText, eos_token_id: int, seed: int,
) -> Item:  # fmt: skip
    true = tuple(ids[choice:])
    return Item(
        statement=statement,
        before=tuple(ids[:choice]),
        bare=(eos_token_id, *ids[start:choice]),
        true=true,
        false=_false(statement, true, text, seed=seed),
        answer=answer - choice,
    )


def _false(
    statement: Statement, true: tuple[int, ...], text: TokenText, *, seed: int
) -> tuple[int, ...] | None:
    """The foil's tokens, in the text of the very tokens that it stands for."""
    other = foil(statement, seed=seed)
    # A tokenizer may cut the statement's end together with what follows it: then the foil would
    # differ in more than the answer, and there is none.
    written = text.join(true).decode(errors="replace")
    said = statement.text.encode()[statement.choice - statement.start :].decode()
    if other is None or not written.endswith(said) or tuple(text.encode(written)) != true:
        return None
    return tuple(text.encode(written.removesuffix(said) + other))


def exchanged(items: Sequence[Item], *, seed: int) -> list[Item]:
    """Every item behind what stands before another one like it: the null.

    A seeded cycle through the items that are written alike up to their numbers, since "2+3=" and
    "two plus three is" are not followed by the same spelling of 5; one without its like is left
    out. A model's preference for some answers stays, what the operands say of them is gone.
    """
    result: list[Item] = []
    shapes = [(item.statement.form, shape_before(item.statement)) for item in items]
    for shape in dict.fromkeys(shapes):
        alike = [item for item, own in zip(items, shapes, strict=True) if own == shape]
        order = permutation(len(alike), seed=seed, purpose=f"reference/null/{shape}").tolist()
        for index, other in zip(order, [*order[1:], *order[:1]], strict=True):
            if index != other:
                result.append(replace(alike[index], before=alike[other].before))
    return result


@torch.no_grad()
def losses(
    logits: Logits, sequences: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], *, pad: int
) -> list[NDArray[np.float64]]:
    """Cross-entropy of each token that follows, in nats: one array per (before, after).

    Sequences are padded at their ends, which causal attention does not see.
    """
    found: list[NDArray[np.float64]] = []
    rows = 1
    while len(found) < len(sequences):
        part = sequences[len(found) : len(found) + rows]
        width = max(len(before) + len(after) for before, after in part)
        ids_BT = torch.full((len(part), width), pad)
        for row, (before, after) in enumerate(part):
            ids_BT[row, : len(before) + len(after)] = torch.tensor([*before, *after])
        logits_BTV = logits(ids_BT)
        # The first call is small: it tells the width of the vocabulary.
        rows = max(LOGITS_AT_ONCE // (logits_BTV.shape[-1] * width), 1)
        for row, (before, after) in enumerate(part):
            own_TV = logits_BTV[row, len(before) - 1 : len(before) + len(after) - 1].float()
            target_T = torch.tensor(after, device=own_TV.device)
            found.append(F.cross_entropy(own_TV, target_T, reduction="none").double().cpu().numpy())
    return found


def score_statements(
    logits: Logits, items: Sequence[Item], *, pad: int, seed: int
) -> list[dict[str, Any]]:
    """All measures of some statements of one task, as the fields of records.

    Metrics: `answer_loss` (nats of the whole answer) and `choice_accuracy` (the statement is
    likelier than its foil), each also `_bare` (context removed) and `_null` (see `exchanged`).

    Returns:
        dicts with metric, value, subset and n; choices also with low and high, the 95% Wilson
        interval over distinct statements, chance and majority (always the commonest relation).
    """
    rows: list[dict[str, Any]] = []
    bare = [replace(item, before=item.bare) for item in items]
    versions = {"": list(items), "_null": exchanged(items, seed=seed)}
    if bare != list(items):  # fresh statements have no context
        versions["_bare"] = bare
    for suffix, version in versions.items():
        if not version:
            continue
        table = _measure(logits, version, pad=pad)
        subsets = {"all": table, "seen": table[table.seen.eq(True)]}
        subsets["unseen"] = table[table.seen.eq(False)]
        for subset, chosen in subsets.items():
            rows += _rows(chosen, suffix=suffix, subset=subset) if len(chosen) else ()
    return rows


def _measure(logits: Logits, items: Sequence[Item], *, pad: int) -> pd.DataFrame:
    """A row an item: statement, seen, tokens (of its answer), answer_loss, prefers_truth (None
    without a foil)."""
    true = losses(logits, [(item.before, item.true) for item in items], pad=pad)
    paired = [i for i, item in enumerate(items) if item.false is not None]
    false = losses(logits, [(items[i].before, items[i].false or ()) for i in paired], pad=pad)
    # Summed from where the two part: a foil may be of more tokens than the truth.
    lost = dict(zip(paired, (float(loss.sum()) for loss in false), strict=True))
    return pd.DataFrame(
        {
            "statement": item.statement,
            "seen": item.seen,
            "tokens": len(item.true) - item.answer,
            "answer_loss": float(loss[item.answer :].sum()),
            "prefers_truth": float(loss.sum()) < lost[i] if i in lost else None,
        }
        for i, (item, loss) in enumerate(zip(items, true, strict=True))
    )


def _rows(table: pd.DataFrame, *, suffix: str, subset: str) -> Iterable[dict[str, Any]]:
    yield {
        "metric": f"answer_loss{suffix}",
        "value": float(table.answer_loss.mean(skipna=False)),
        "n": len(table),
        "tokens_per_answer": float(table.tokens.mean()),
        "subset": subset,
    }
    pairs = table[table.prefers_truth.notna()]
    if pairs.empty:
        return
    finite = bool(np.isfinite(pairs.answer_loss).all())
    yield {
        "metric": f"choice_accuracy{suffix}",
        **share_of(pairs.prefers_truth.to_numpy(dtype=bool), finite=finite),
        "n": len(pairs),
        "chance": 0.5,
        "majority": _majority(pairs.statement.tolist()),
        "subset": subset,
    }


def _majority(statements: Sequence[Statement]) -> float:
    """What a preference for words can reach: always one relation of each pair, else guessing."""
    right = 0.0
    counts: Counter[str] = Counter(s.relation for s in statements if s.form in INFIX)
    for relation in counts:
        opposite = opposite_of(relation)
        # Each pair once; a relation whose opposite does not occur is a pair by itself.
        if relation < opposite or opposite not in counts:
            right += max(counts[relation], counts[opposite])
    return (right + 0.5 * (len(statements) - counts.total())) / len(statements)
