"""The plan in a training loop of one's own: splice a batch, then train on it.

python examples/plain_pytorch.py        # needs the plan side alone, with torch
"""

import numpy as np
import torch
import torch.nn.functional as F

from data_injection.config import injection_config
from data_injection.plan import compile_plan
from data_injection.splice import splice_batch

VOCAB, EOS, ROWS, LENGTH, STEPS = 512, 0, 16, 32, 60
SECTION = {"tasks": [{"name": "cmp", "num_symbols": 20, "schedule": {"rate": "5/2"}}]}


def main() -> None:
    torch.manual_seed(0)
    corpus = np.random.default_rng(0).integers(1, VOCAB, size=(400, LENGTH))
    plan = compile_plan(
        injection_config(SECTION), batch_size=ROWS, seq_len=LENGTH, epoch_rows=400,
        vocab_size=VOCAB, eos_token_id=EOS,
    )  # fmt: skip
    plan.check(STEPS)
    model = torch.nn.Sequential(torch.nn.Embedding(VOCAB, 32), torch.nn.Linear(32, VOCAB))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rank, world = 0, 1  # of data parallelism: this rank's rows are slots rank, rank + world, ...
    trained = []
    for step in range(STEPS):
        rows = (np.arange(ROWS) + step * ROWS) % len(corpus)
        batch = {"input_ids": torch.tensor(corpus[rows][rank::world])}
        splice_batch(batch, plan, step=step, slots=range(rank, ROWS, world))
        ids = batch["input_ids"]
        # Inputs and targets come of the spliced tokens: splice before they are split.
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trained.append(ids.numpy())
    check(plan, corpus, np.stack(trained))


def check(plan, corpus, trained) -> None:
    """What was trained on is the corpus but for the plan's examples, each in its row."""
    task, expected = plan.tasks[0], np.resize(corpus, trained.shape)
    for step in range(STEPS):
        rows = plan.at(step)
        expected[step, rows.slots, : task.length] = task.tokens[rows.examples]
        expected[step, rows.slots, task.length] = EOS
    assert np.array_equal(trained, expected)
    assert (trained != np.resize(corpus, trained.shape)).any()
    print(f"{STEPS * ROWS} rows, {plan.instances(0, STEPS)} injected, 0 differences")


if __name__ == "__main__":
    main()
