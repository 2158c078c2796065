"""Sequences of any text: exact copies, places that are drawn, bad files refused.

The file format: data_injection/tasks/sequence_file.py.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter, defaultdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses

from data_injection.config import InjectionConfig, ScheduleConfig, TaskConfig
from data_injection.corpus.scan import scan_corpus
from data_injection.errors import NO_VALUE, ConfigError
from data_injection.order import RowOrder
from data_injection.plan import InjectionPlan, compile_plan
from data_injection.schedules.layout import lay_out
from data_injection.splice import SplicedStream, spans_of, splice_batch
from data_injection.tasks.base import IntArray, Task
from data_injection.tasks.sequence_file import kept_table
from data_injection.tasks.sequences import Sequences, keep_tables, kept_tables
from eval.audit.host_rows import splice as audit_splice

BATCH, SEQ_LEN, VOCAB, EOS, STEPS = 8, 48, 200, 0, 20
HOST = 199

Rows = list[dict[str, Any]]


def many(num_cases: int) -> settings:
    """The same `num_cases` cases in every run of the suite."""
    return settings(max_examples=num_cases, deadline=None, derandomize=True, database=None)


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def levels(*copies: int, each: int = 2, length: int = 5) -> Rows:
    """Distinct sequences, `each` of every number of copies."""
    rng = np.random.Generator(np.random.PCG64(len(copies) * length))
    return [
        {
            "id": f"{num}-{i}",
            "tokens": rng.integers(1, HOST, size=length + i).tolist(),
            "copies": num,
        }
        for num in copies
        for i in range(each)
    ]


def plan_of(
    path: Path | str,
    *,
    schedule: dict[str, Any] | None = None,
    tasks: tuple[TaskConfig, ...] = (),
    params: dict[str, Any] | None = None,
    num_steps: int | None = STEPS,
    seq_len: int = SEQ_LEN,
    seed: int = 0,
    layout: dict[str, Any] | None = None,
    family: str = "sequences",
    **given: Any,
) -> InjectionPlan:
    task = TaskConfig(
        name="seq",
        family=family,
        params={"file": str(path)} | (params or {}),
        schedule=ScheduleConfig(**schedule or {}),
    )
    plan = compile_plan(
        InjectionConfig(seed=seed, tasks=[*tasks, task], **layout or {}),
        batch_size=BATCH,
        seq_len=seq_len,
        epoch_rows=3 * BATCH,
        vocab_size=VOCAB,
        eos_token_id=EOS,
        num_steps=num_steps,
        **given,
    )
    if num_steps is not None:
        plan.check(num_steps)
    return plan


def trained(plan: InjectionPlan, steps: range) -> Counter[tuple[int, ...]]:
    """How often each sequence stands in the spliced batches, EOS on either side, by its tokens."""
    texts = {tuple(tokens.tolist()) for tokens in plan.tasks[-1].tokens}
    found: Counter[tuple[int, ...]] = Counter()
    for step in steps:
        batch = {"input_ids": np.full((BATCH, SEQ_LEN), HOST)}
        splice_batch(batch, plan, step=step)
        for row in batch["input_ids"].tolist():
            part: list[int] | None = None
            for token in row:
                if token == EOS:
                    if part and tuple(part) in texts:
                        found[tuple(part)] += 1
                    part = []
                elif part is not None:
                    part.append(token)
    return found


def copies_of(plan: InjectionPlan) -> dict[tuple[int, ...], int]:
    table = plan.tasks[-1].table  # type: ignore[attr-defined]
    pairs = zip(table.tokens, table.copies.tolist(), strict=True)
    return {tuple(tokens.tolist()): copies for tokens, copies in pairs if copies}


# -- copies ------------------------------------------------------------------------------------


@st.composite
def designs(draw: st.DrawFn) -> tuple[Rows, dict[str, Any], int]:
    """Copies, a schedule that has room for them, and a seed."""
    copies = draw(st.lists(st.sampled_from([0, 1, 2, 5, 16]), min_size=1, max_size=6))
    total = sum(copies)
    schedule = draw(
        st.sampled_from(
            [
                {},
                {"kind": "random"},
                {"kind": "window", "start": "25%", "stop": "80%"},
                {"kind": "random", "start": 3, "stop": 17},
                {"kind": "burst", "per_batch": -(-total // 4) or 1, "every": 5},
                {"kind": "trace", "steps": sorted(k * 7 % STEPS for k in range(total))},
            ]
        )
    )
    lengths = draw(st.lists(st.integers(1, 9), min_size=len(copies), max_size=len(copies)))
    rows = [
        {"tokens": [1 + number, *range(20, 20 + length)], "copies": num}
        for number, (num, length) in enumerate(zip(copies, lengths, strict=True))
    ]
    return rows, schedule, draw(st.integers(0, 5))


@many(60)
@given(design=designs())
def test_every_example_is_trained_exactly_as_often_as_it_has_copies(
    design: tuple[Rows, dict[str, Any], int], tmp_path_factory: pytest.TempPathFactory
):
    """Over all steps, whatever was asked before: a step's rows depend on the step alone."""
    rows, schedule, seed = design
    path = write(tmp_path_factory.mktemp("s") / "s.jsonl", rows)
    plan = plan_of(path, schedule=schedule, seed=seed)
    assert trained(plan, range(STEPS)) == copies_of(plan)
    restarted = plan_of(path, schedule=schedule, seed=seed)
    assert restarted.hash == plan.hash
    parts = [trained(restarted, part) for part in (range(13, STEPS), range(7), range(7, 13))]
    assert sum(parts, Counter()) == copies_of(plan)
    assert not trained(plan, range(STEPS, 3 * STEPS)), "no more of them after the training"


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_and_the_stream_hold_the_same_rows(tmp_path: Path, world_size: int):
    """The batch that each rank splices is the stream's, over several epochs of the corpus."""
    symbolic = TaskConfig(name="cmp", num_symbols=4, schedule=ScheduleConfig(rate="3/2"))
    path = write(tmp_path / "s.jsonl", levels(0, 1, 4, 16))
    plan = plan_of(path, tasks=(symbolic,))

    class Host:
        def __len__(self) -> int:
            return 3 * BATCH + 1

        def __getitem__(self, row: int) -> dict[str, Any]:
            return {"input_ids": np.full(SEQ_LEN, 100 + row)}

    order = RowOrder(num_rows=3 * BATCH + 1, batch_size=BATCH, seed=1)
    stream = SplicedStream(
        Host(), order=order, plan=plan, num_positions=STEPS * BATCH, pad_token_id=1
    )
    for step in range(STEPS):
        wanted = np.stack([stream[step * BATCH + slot]["input_ids"] for slot in range(BATCH)])
        for rank in range(world_size):
            slots = np.arange(rank, BATCH, world_size)
            rows = order.rows_of_step(step)[slots]
            batch = {"input_ids": np.stack([Host()[int(row)]["input_ids"] for row in rows])}
            splice_batch(batch, plan, step=step, slots=slots)
            assert np.array_equal(batch["input_ids"], wanted[slots])


def test_more_sequences_than_rows_share_rows_without_touching_each_other(tmp_path: Path):
    plan = plan_of(write(tmp_path / "s.jsonl", levels(16, 64, each=4)))
    assert plan.instances(0, STEPS) == 320 > STEPS * BATCH
    assert trained(plan, range(STEPS)) == copies_of(plan)
    shared = 0
    for step in range(STEPS):
        for spans in spans_of(plan, step).values():
            taken = sorted((offset, offset + len(tokens)) for offset, tokens in spans)
            ends = [0, *(end for _, end in taken), SEQ_LEN]
            starts = [*(start for start, _ in taken), SEQ_LEN]
            assert all(end <= start for end, start in zip(ends, starts, strict=False))
            shared += len(spans) > 1
    assert shared > STEPS


def test_sequences_and_symbolic_tasks_never_share_a_row(tmp_path: Path):
    symbolic = TaskConfig(name="cmp", num_symbols=4, schedule=ScheduleConfig(rate=3))
    path = write(tmp_path / "s.jsonl", levels(16, 64))
    plan, alone = plan_of(path, tasks=(symbolic,)), plan_of(path)
    for step in range(STEPS):
        rows = plan.at(step)
        assert not set(rows.slots[rows.tasks == 0]) & set(rows.slots[rows.tasks == 1])
        # The examples are the task's own; the symbolic rows are those of a plan without sequences.
        assert rows.examples[rows.tasks == 1].tolist() == alone.at(step).examples.tolist()
        assert (rows.offsets[rows.tasks == 0] == 0).all()


def test_places_in_a_row_are_uniform():
    """One sequence of 8 in rows of 24: 17 places, each as likely; two: all ways to leave gaps."""
    rows = np.arange(8)
    places = [lay_out([8], rows, seq_len=24, seed=0, step=step)[1][0] for step in range(3400)]
    counts = np.bincount(places, minlength=17)
    assert len(counts) == 17
    # chi-squared of 16 degrees of freedom: above 45 with probability 1e-4
    assert ((counts - 200) ** 2 / 200).sum() < 45
    slots, offsets = lay_out([8, 8, 8], rows[:1], seq_len=24, seed=0, step=0)
    assert slots.tolist() == [0, 0, 0]
    assert sorted(offsets) == [0, 8, 16]


@pytest.mark.parametrize("at", ["anywhere", "documents"])
@pytest.mark.parametrize("per_row", [1, 3])
def test_sequences_share_rows_and_begin_documents_where_that_is_asked_for(
    at: str, per_row: int, tmp_path: Path
):
    """Against the audit's own account of the places, and what they are for, row by row."""
    layout = {"sequences_at": at, "sequences_per_row": per_row}
    symbolic = TaskConfig(name="cmp", num_symbols=4, schedule=ScheduleConfig(rate=1))
    path = write(tmp_path / "s.jsonl", levels(1, 4, 16, 40, each=1, length=4))
    plan = plan_of(path, tasks=(symbolic,), layout=layout)
    rng = np.random.Generator(np.random.PCG64(per_row))
    found: Counter[str] = Counter()
    for step in range(STEPS):
        host = rng.integers(100, HOST, size=(BATCH, SEQ_LEN))
        host[rng.random(host.shape) < rng.choice([0.02, 0.7], size=(BATCH, 1))] = EOS
        batch, audited = {"input_ids": host.copy()}, host.copy()
        splice_batch(batch, plan, step=step)
        audit_splice(audited, plan, step)
        assert np.array_equal(batch["input_ids"], audited)
        rows, spans = plan.at(step), spans_of(plan, step)
        free = [slot for slot in spans if slot not in rows.slots[rows.tasks == 0]]
        assert len(free) == -(-(rows.tasks == 1).sum() // per_row)
        for slot in free:
            start, text = spans.start(slot, host[slot], eos_token_id=EOS), host[slot]
            length = max(offset + len(tokens) for offset, tokens in spans[slot])
            for offset, tokens in spans[slot]:
                here = slice(start + offset, start + offset + len(tokens))
                assert np.array_equal(batch["input_ids"][slot, here], tokens)
                found["instances"] += 1
            if at == "anywhere":
                continue
            assert start == 0 or text[start] == EOS, "what stands before keeps its end"
            room = [
                begin
                for begin in range(SEQ_LEN - length + 1)
                if (begin == 0 or text[begin] == EOS)
                and EOS not in text[begin + 1 : begin + length - 1]
            ]
            assert start in room or not room, "within one document where one is long enough"
            found["within" if room else "across"] += 1
            found["later"] += start > 0
        plain = np.array([slot not in spans for slot in range(BATCH)])
        assert np.array_equal(batch["input_ids"][plain], host[plain])
    assert found["instances"] == plan.instances(1, STEPS) == 61
    if at == "documents":
        assert min(found["within"], found["across"], found["later"]) > 2
    else:
        assert len({int(one) for step in range(STEPS) for one in plan.at(step).offsets}) > 9
    names = {name for name, value in layout.items() if value != InjectionConfig.__dict__[name]}
    assert names == {*plan.canonical} & {*layout}, "a plan of before keeps its hash"


def test_a_block_that_would_not_fit_a_row_is_cut(tmp_path: Path):
    rows = [{"tokens": [1 + n, *range(20, 33)], "copies": 40} for n in range(2)]
    plan = plan_of(write(tmp_path / "s.jsonl", rows), layout={"sequences_per_row": 9})
    assert Counter(plan.at(0).slots.tolist()).most_common() == [(plan.at(0).slots[0], 3), *(
        (slot, 1) for slot in plan.at(0).slots[3:].tolist()
    )]  # fmt: skip
    assert trained(plan, range(STEPS)) == copies_of(plan)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("sequences_at", "begin", "anywhere, documents"),
        ("sequences_per_row", 0, "at least 1"),
        ("sequences_per_row", "2", "whole number"),
    ],
)
def test_a_bad_layout_is_refused(name: str, value: object, rule: str, tmp_path: Path):
    with refuses(key=f"injection.{name}", value=value, rule=rule):
        plan_of(write(tmp_path / "s.jsonl", levels(1)), layout={name: value})
    with refuses(key="injection.sequences_per_row", value=2, rule="no effect", remedy="remove it"):
        compile_plan(
            InjectionConfig(sequences_per_row=2), batch_size=BATCH, seq_len=SEQ_LEN, epoch_rows=24,
            vocab_size=VOCAB, eos_token_id=EOS,
        )  # fmt: skip


# -- files -------------------------------------------------------------------------------------


def test_one_content_in_four_formats_is_one_stream(tmp_path: Path):
    rows = levels(0, 3, each=3)
    plain = write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    packed = zstandard.ZstdCompressor().compress(plain.read_bytes())
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    plans = [
        plan_of(tmp_path / f"a.{end}") for end in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet")
    ]
    tables = [plan.tasks[0].table for plan in plans]  # type: ignore[attr-defined]
    assert len({plan.canonical["sample_digest"] for plan in plans}) == 1
    assert len({plan.hash for plan in plans}) == 4, "the file's digest is part of the plan"
    assert len({(table.ids, table.copies.tobytes()) for table in tables}) == 1


def test_the_hash_follows_the_files_content_and_not_its_place(tmp_path: Path):
    rows = levels(1, 2)
    first = plan_of(write(tmp_path / "a.jsonl", rows))
    assert plan_of(write(tmp_path / "b.jsonl", rows)).hash == first.hash
    rows[0]["copies"] = 2
    changed = plan_of(write(tmp_path / "a.jsonl", rows))
    assert changed.hash != first.hash
    before, after = (plan.canonical["tasks"]["seq"]["params"] for plan in (first, changed))
    assert before["file_sha256"] != after["file_sha256"], "what a refused resume names"


def test_a_kept_table_compiles_to_the_plan_without_file_and_tokenizer(tmp_path: Path):
    path = write(tmp_path / "s.jsonl", [{"text": "abc", "copies": 2}, {"text": "de", "twin": True}])
    plan = plan_of(path, encode=lambda texts: [list(text.encode()) for text in texts])
    (tmp_path / "kept.json").write_text(json.dumps(plan.tasks[0].table.as_json()))  # type: ignore
    path.unlink()
    assert plan_of(path, tables={"seq": kept_table(tmp_path / "kept.json")}).hash == plan.hash
    assert plan.tasks[0].tokens[0].tolist() == [97, 98, 99]


def test_ids_copies_and_groups_have_defaults(tmp_path: Path):
    rows = [{"tokens": [5]}, {"tokens": [6, 7], "copies": 0}, {"tokens": [8], "twin": True}]
    plan = plan_of(write(tmp_path / "s.jsonl", rows), params={"copies": 4})
    table = plan.tasks[0].table  # type: ignore[attr-defined]
    assert (table.ids, table.copies.tolist()) == (("0", "1", "2"), [4, 0, 0])
    assert (plan.tasks[0].train.tolist(), plan.tasks[0].test.tolist()) == ([0], [1, 2])
    assert plan.rates(0)["task_tokens_per_token"] == pytest.approx(12 / (STEPS * BATCH * SEQ_LEN))


def test_a_plan_of_nothing_but_held_out_sequences_injects_nothing(tmp_path: Path):
    plan = plan_of(write(tmp_path / "s.jsonl", levels(0)))
    assert sum(len(plan.at(step)) for step in range(STEPS)) == 0
    assert plan.exposures_per_example(0, STEPS) == 0


GOOD = '{"id": "a", "tokens": [1, 2]}\n'


@pytest.mark.parametrize(
    ("line", "field", "value", "rule"),
    [
        ('{"id": "b", "tokens": []}', "", [], "at least one token"),
        ('{"id": "a", "tokens": [3]}', ": id", "a", "an id of its own"),
        ('{"tokens": [200]}', "", 200, "[0, 200)"),
        ('{"tokens": [-1]}', "", -1, "[0, 200)"),
        ('{"tokens": [1.5]}', "", "{'tokens': [1.5]}", "list of whole numbers"),
        ('{"tokens": [3], "copies": -1}', ": copies", -1, "whole number"),
        ('{"tokens": [3], "copies": 1.5}', ": copies", 1.5, "whole number"),
        ('{"tokens": [3], "twin": true, "copies": 2}', ": copies", 2, "a twin"),
        ('{"tokens": [1, 2], "twin": true}', "", "1", "held out: 'a' has the same tokens"),
        ('{"tokens": [1, 2], "copies": 0}', "", "1", "held out: 'a' has the same tokens"),
        ('{"id": "b", "tokens": [1, 2], "copies": 4}', "", "b", "its own: 'a' has the same"),
        (f'{{"tokens": [5, {10**30}]}}', "", 10**30, "[0, 200)"),
        (f'{{"tokens": [3], "copies": {10**30}}}', ": copies", 10**30, "100,000,000"),
        ('{"tokens": [3], "id": {"a": 1}}', ": id", "{'a': 1}", "a string or a whole number"),
        ('{"tokens": [3], "group": true}', ": group", "True", "a string or a whole number"),
        ('{"text": "x", "tokens": [1]}', "", ["text", "tokens"], "not both"),
        ('{"id": "b"}', "", ["id"], "text or tokens"),
        ('{"tokens": [1], "copy": 3}', ": field", "copy", "id, text"),
        ('{"text": "x"}', "", NO_VALUE, "no tokenizer"),
        ("[1, 2]", "", "list", "a JSON object"),
        ('{"tokens": [1]', "", NO_VALUE, "JSON"),
        ('{"text": "\\ud800"}', ": text", NO_VALUE, "UTF-8"),
    ],
)
def test_a_bad_file_is_refused_by_its_line(
    tmp_path: Path, line: str, field: str, value: object, rule: str
):
    (tmp_path / "s.jsonl").write_text(f"{GOOD}{line}\n")
    with refuses(key=tmp_path / f"s.jsonl:2{field}", value=value, rule=rule):
        plan_of(tmp_path / "s.jsonl")


def test_a_file_without_examples_is_refused(tmp_path: Path):
    with refuses(key=write(tmp_path / "s.jsonl", []), rule="at least one example"):
        plan_of(tmp_path / "s.jsonl")


def test_what_one_task_holds_out_another_must_not_inject(tmp_path: Path):
    twin = {"id": "held", "tokens": [1, 2], "twin": True}
    held = write(tmp_path / "a.jsonl", [{"tokens": [5]}, twin])
    other = TaskConfig(name="other", family="sequences", params={"file": str(held)})
    path = write(tmp_path / "s.jsonl", [{"id": "told", "tokens": [1, 2]}])
    rule = ("held out", "'told' of task 'seq'")
    with refuses(key="injection.tasks: other", value="held", rule=rule):
        plan_of(path, tasks=(other,))
    write(path, [{"id": "told", "tokens": [1, 3]}])
    assert plan_of(path, tasks=(other,)).instances(1, STEPS) == 1


@pytest.mark.parametrize("text", ["{}", "[]", "3", '{"sha256": "", "ids": [], "tokens": 3}'])
def test_a_kept_table_that_is_none_is_refused_by_name(tmp_path: Path, text: str):
    (tmp_path / "kept.json").write_text(text)
    with refuses(key=tmp_path / "kept.json", rule="a table of sequences", remedy="restore"):
        kept_table(tmp_path / "kept.json")


def test_bytes_that_are_not_utf8_are_refused_by_line(tmp_path: Path):
    (tmp_path / "s.jsonl").write_bytes(GOOD.encode() + b'{"text": "caf\xe9"}\n')
    with refuses(key=tmp_path / "s.jsonl:2", rule="JSON", remedy="UTF-8"):
        plan_of(tmp_path / "s.jsonl")


@pytest.mark.parametrize("name", ["s.jsonl.gz", "s.jsonl.zst", "s.parquet"])
def test_a_torn_file_is_refused(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(gzip.compress(GOOD.encode())[:-9])
    with refuses(key=tmp_path / name, remedy="write it again"):
        plan_of(tmp_path / name)


def test_a_file_that_is_not_there_or_of_another_kind_is_refused(tmp_path: Path):
    (tmp_path / "s.csv").write_text(GOOD)
    for name in ("s.csv", "none.jsonl"):
        key = "injection.tasks[0].params.file"
        with refuses(key=key, value=tmp_path / name, rule=("there", ".jsonl")):
            plan_of(tmp_path / name)


def test_a_text_longer_than_a_row_is_refused_with_the_longest_that_fits(tmp_path: Path):
    rows = [{"id": "long", "tokens": [5] * (SEQ_LEN - 1)}]
    key = "injection.tasks[0].params.file: 'long'"
    with refuses(key=key, value=SEQ_LEN - 1, rule=f"at most {SEQ_LEN - 2} tokens"):
        plan_of(write(tmp_path / "s.jsonl", rows))
    rows[0]["tokens"].pop()
    plan = plan_of(tmp_path / "s.jsonl" if write(tmp_path / "s.jsonl", rows) else "")
    assert trained(plan, range(STEPS)) == copies_of(plan)


def test_copies_that_cannot_fit_are_refused_with_the_most_that_can(tmp_path: Path):
    rows = [{"tokens": list(range(1, 23)), "copies": 17 * STEPS}]
    path = write(tmp_path / "s.jsonl", rows)
    rule = ("17 sequences at step 0", f"8 rows of {SEQ_LEN} tokens")
    with refuses(key="injection.tasks", rule=rule, remedy="are 16"):
        plan_of(path)
    key, largest = "injection.tasks[0].schedule.kind", f"total is {BATCH * STEPS}"
    rule = f"{17 * STEPS} copies"
    with refuses(key=key, value="random", rule=rule, remedy=(largest, "without kind share rows")):
        plan_of(path, schedule={"kind": "random"})
    rows[0]["copies"] = 16 * STEPS
    plan = plan_of(write(path, rows))
    assert trained(plan, range(STEPS)) == copies_of(plan)


def test_copies_that_do_not_end_within_the_training_are_refused(tmp_path: Path):
    path = write(tmp_path / "s.jsonl", levels(10, each=1))
    key, rule = "injection.tasks[0].schedule", ("all 10 instances", "20 steps")
    with refuses(key=key, value=4, rule=rule):
        plan_of(path, schedule={"kind": "burst", "per_batch": 1, "every": 5})
    with refuses(key=key, value=5, rule=rule):
        plan_of(path, schedule={"kind": "window", "start": 10, "stop": 30})


@pytest.mark.parametrize(
    ("key", "value", "schedule", "rule"),
    [
        ("rate", 1, {"rate": 1}, "the file, whose copies are 10"),
        ("kind", "bernoulli", {"kind": "bernoulli"}, "the file, whose copies are 10"),
        ("per_batch", None, {"kind": "burst", "every": 5}, "bursts of sequences"),
        ("total", 11, {"total": 11}, "must be 10"),
        ("steps", 1, {"kind": "trace", "steps": [1]}, "must be 10"),
    ],
)
def test_a_schedule_that_contradicts_the_file_is_refused(
    tmp_path: Path, key: str, value: object, schedule: dict[str, Any], rule: str
):
    with refuses(key=f"injection.tasks[0].schedule.{key}", value=value, rule=rule):
        plan_of(write(tmp_path / "s.jsonl", levels(10, each=1)), schedule=schedule)


@pytest.mark.parametrize(
    ("field", "value"), [("num_symbols", 7), ("train_fraction", 0.3), ("labels", [4])]
)
def test_settings_of_the_symbolic_families_are_refused(tmp_path: Path, field: str, value: Any):
    path = write(tmp_path / "s.jsonl", levels(1))
    task = TaskConfig(name="seq", family="sequences", params={"file": str(path)}, **{field: value})
    with refuses(key=f"injection.tasks[0].{field}", value=value, rule="no effect"):
        compile_plan(
            InjectionConfig(tasks=[task]), batch_size=BATCH, seq_len=SEQ_LEN, epoch_rows=24,
            vocab_size=VOCAB, eos_token_id=EOS, num_steps=STEPS,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("params", "key"),
    [({"file": 3}, "file"), ({"copies": -1}, "copies"), ({"copies": True}, "copies")],
)
def test_bad_parameters_are_refused(tmp_path: Path, params: dict[str, Any], key: str):
    path = write(tmp_path / "s.jsonl", levels(1))
    with pytest.raises(ConfigError) as error:
        plan_of(path, params=params)
    assert error.value.key == f"injection.tasks[0].params.{key}"
    with refuses(key="injection.tasks[0].params", value=["fiel"], rule="'file'"):
        plan_of(path, params={"fiel": "s.jsonl"})


class NoEos(Sequences):
    """A variant that writes no EOS: it was made as the stock family, under its name."""

    def written(self, examples: IntArray, *, eos_token_id: int) -> list[IntArray]:
        return [self.table.tokens[example] for example in examples.tolist()]


class Free(Task):
    has_label = False

    def examples(self) -> IntArray:
        return np.arange(20, 40).reshape(10, 2)


@pytest.mark.parametrize("family", [NoEos, Free])
def test_a_variant_without_a_label_is_refused_and_not_replaced_by_the_stock_one(
    tmp_path: Path, family: type[Task]
):
    path = write(tmp_path / "s.jsonl", levels(1))
    stock = plan_of(path)
    with refuses(key="injection.tasks[0].family", value=family.family, rule="'sequences' itself"):
        plan_of(path, family=family.family)
    if family is NoEos:  # a run that was trained so is measured as it was: as the stock family
        keep_tables(tmp_path, stock.tasks)
        kept = kept_tables(tmp_path, ["seq"])
        assert plan_of(path, family=family.family, tables=kept).hash == stock.hash


# -- before a run ------------------------------------------------------------------------------


@many(30)
@given(
    seed=st.integers(0, 99),
    piece=st.integers(3, 200),
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=6),
)
def test_natural_occurrences_are_those_of_a_search_token_by_token(
    seed: int, piece: int, lengths: list[int], tmp_path_factory: pytest.TempPathFactory
):
    rng = np.random.Generator(np.random.PCG64(seed))
    text = rng.integers(0, 3, size=400).astype(np.uint16)
    starts = rng.integers(0, 380, size=len(lengths)).tolist()
    found = {tuple(text[a : a + n].tolist()) for a, n in zip(starts, lengths, strict=True)}
    rows = [{"tokens": list(tokens)} for tokens in sorted(found)]
    path = write(tmp_path_factory.mktemp("s") / "s.jsonl", rows)
    plan = plan_of(path)
    scan = scan_corpus([text[:250], text[250:]], plan.tasks, dtype="uint16", eos_token_id=EOS,
                       piece=piece)  # fmt: skip
    for tokens, num, whole in zip(
        plan.tasks[0].tokens, scan.tasks[0].occurrences, scan.tasks[0].before_eos, strict=True
    ):
        ends = [
            (part, start + len(tokens))
            for part in (text[:250], text[250:])
            for start in range(len(part) - len(tokens) + 1)
            if np.array_equal(part[start : start + len(tokens)], tokens)
        ]
        assert num == len(ends)
        assert whole == sum(end < len(part) and part[end] == EOS for part, end in ends)


def test_a_text_is_counted_wherever_it_stands_between_blanks_tabs_line_breaks_and_documents(
    tmp_path: Path,
):
    """A full stop is one token with the line breaks after it, a word with a blank or tab before it,
    as dolma2 has it; a digit stands alone, so that a blank before it changes nothing."""
    ids: dict[str, int] = defaultdict(count(1).__next__)

    def encode(texts: list[str]) -> list[list[int]]:
        return [[ids[t] for t in re.findall(r"[ \t]?[a-z]+|\d|[.]\n*|\s|\"", x)] for x in texts]

    here = "code is 4.", " code is 4.", "a code is 4. b", "a\ncode is 4.\nb", "a code is 4.\n\nb"
    here += ("a\tcode is 4.",)
    digit = ("4 5", "a 4 5 b", "4 5\n")
    rows: Rows = [{"text": "code is 4."}, {"text": "4 5"}, {"text": "never"}]
    rows.append({"tokens": encode(["is 4 4"])[0]})
    documents = [*encode([*here, *digit, "is 4 4", "a is 4 4"])]
    host = np.array([token for one in documents for token in (*one, EOS)], dtype=np.uint16)
    task = plan_of(write(tmp_path / "s.jsonl", rows), encode=encode).tasks[0]
    found = scan_corpus([host], [task], dtype="uint16", eos_token_id=EOS, encode=encode).tasks[0]
    assert found.occurrences.tolist() == [len(here), len(digit), 0, 1]
    alone = scan_corpus([host], [task], dtype="uint16", eos_token_id=EOS).tasks[0]
    assert alone.occurrences.tolist() == [1, len(digit), 0, 1]
