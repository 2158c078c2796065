"""olmo-ext plan --export: the table's rows put into a batch are the spliced batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet

from data_injection.config import InjectionConfig, ScheduleConfig, TaskConfig
from data_injection.plan import InjectionPlan, compile_plan
from data_injection.splice import splice_batch
from eval.audit.host_rows import HostRows
from launch.plan import rows as rows_module
from launch.plan.rows import write_rows

BATCH, SEQ_LEN, STEPS = 6, 40, 9


def plan_of(folder: Path, **layout: Any) -> InjectionPlan:
    rows = [{"id": f"text {n}", "tokens": list(range(2, 4 + n)), "copies": 3 * n} for n in range(8)]
    (folder / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [
        TaskConfig(name="cmp", num_symbols=4, schedule=ScheduleConfig(rate="3/2")),
        TaskConfig(name="seq", family="sequences", params={"file": str(folder / "s.jsonl")}),
    ]
    return compile_plan(
        InjectionConfig(tasks=tasks, offset=2, **layout), batch_size=BATCH, seq_len=SEQ_LEN,
        epoch_rows=12, vocab_size=300, eos_token_id=0, num_steps=STEPS,
    )  # fmt: skip


def test_the_exported_rows_are_the_spliced_batches_in_both_formats(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(rows_module, "STEPS_AT_ONCE", 4)
    plan = plan_of(tmp_path)
    total = sum(plan.instances(index, STEPS) for index in range(2))
    assert plan.instances(1, STEPS) == 84 > BATCH * STEPS
    names = [tmp_path / "rows.jsonl", tmp_path / "rows.parquet"]
    assert [write_rows(name, plan, num_steps=STEPS) for name in names] == [total, total]
    lines = [json.loads(line) for line in names[0].read_text().splitlines()]
    table = pyarrow.parquet.read_table(names[1])
    assert table.to_pylist() == lines
    assert table.schema.metadata[b"plan_hash"].decode() == plan.hash
    assert len(pd.read_parquet(names[1])) == total
    for step in range(STEPS):
        ours, theirs = np.full((2, BATCH, SEQ_LEN), 299)
        for row in (line for line in lines if line["step"] == step):
            ours[row["slot"], row["offset"] : row["offset"] + len(row["tokens"])] = row["tokens"]
        splice_batch({"input_ids": theirs}, plan, step=step)
        assert np.array_equal(ours, theirs)
    texts = [line for line in lines if line["task"] == "seq"]
    assert all(line["id"] == f"text {line['example']}" for line in texts)


def test_where_the_text_decides_the_exported_offsets_are_those_of_the_corpus(tmp_path: Path):
    plan = plan_of(tmp_path, sequences_at="documents", sequences_per_row=3)
    tokens = np.random.Generator(np.random.PCG64(0)).integers(30, 299, size=14 * SEQ_LEN)
    tokens[::11] = 0
    tokens.astype("<u2").tofile(tmp_path / "tokens.npy")
    shape = {"dtype": "uint16", "seq_len": SEQ_LEN, "batch_size": BATCH, "seed": 1}
    host = HostRows([tmp_path / "tokens.npy"], **shape)
    write_rows(tmp_path / "rows.jsonl", plan, num_steps=STEPS, host=host)
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    for step in range(STEPS):
        ours = host.tokens(host.rows_of_step(step))
        theirs = {"input_ids": ours.copy()}
        for row in (line for line in lines if line["step"] == step):
            ours[row["slot"], row["offset"] : row["offset"] + len(row["tokens"])] = row["tokens"]
        splice_batch(theirs, plan, step=step)
        assert np.array_equal(ours, theirs["input_ids"])
