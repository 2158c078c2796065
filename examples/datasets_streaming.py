"""The plan in a streaming loop of Hugging Face datasets: splice each batch, by its step.

python examples/datasets_streaming.py        # datasets, torch and the plan side; no network
"""

import json
import tempfile

import numpy as np
import torch
from datasets import load_dataset

from data_injection.config import injection_config
from data_injection.plan import compile_plan
from data_injection.splice import splice_batch

VOCAB, EOS, ROWS, LENGTH, STEPS = 300, 0, 16, 32, 40
SECTION = {"tasks": [{"name": "cmp", "num_symbols": 20, "schedule": {"rate": "5/2"}}]}


def pack(texts):
    """Texts in bytes above EOS, packed into rows; what does not fill one is left out."""
    ids = [byte + 1 for text in texts["text"] for byte in text.encode()]
    return {"input_ids": [ids[i : i + LENGTH] for i in range(0, len(ids) - LENGTH + 1, LENGTH)]}


def batches(file):
    stream = load_dataset("json", data_files=file, split="train", streaming=True)
    stream = stream.shuffle(seed=7, buffer_size=50)
    stream = stream.map(pack, batched=True, batch_size=100, remove_columns=["text"])
    for batch in stream.batch(ROWS, drop_last_batch=True):
        yield {"input_ids": torch.tensor(batch["input_ids"])}


with tempfile.NamedTemporaryFile("w", buffering=1, suffix=".jsonl") as file:
    for letters in np.random.default_rng(0).integers(97, 123, size=(400, 80)):
        file.write(json.dumps({"text": "".join(map(chr, letters))}) + "\n")
    plan = compile_plan(
        injection_config(SECTION), batch_size=ROWS, seq_len=LENGTH, epoch_rows=ROWS * STEPS,
        vocab_size=VOCAB, eos_token_id=EOS,
    )  # fmt: skip
    model = torch.nn.Sequential(torch.nn.Embedding(VOCAB, 32), torch.nn.Linear(32, VOCAB))
    optimizer, trained = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for step, batch in zip(range(STEPS), batches(file.name), strict=False):
        # The stream does not say which row comes when: splice by the step, counted from 0.
        splice_batch(batch, plan, step=step)
        ids = batch["input_ids"]
        logits = model(ids[:, :-1]).flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        trained.append(ids)
    # What was trained on is the stream but for the plan's examples, each in its row.
    for step, (batch, ids) in enumerate(zip(batches(file.name), trained, strict=False)):
        expected, rows = batch["input_ids"], plan.at(step)
        expected[rows.slots, :3] = torch.tensor(plan.tasks[0].tokens[rows.examples])
        expected[rows.slots, 3] = EOS
        assert expected.equal(ids)
assert len(trained) == STEPS
print(f"{STEPS * ROWS} rows, {plan.instances(0, STEPS)} injected, 0 differences")
