"""The plan in Hugging Face's Trainer: SplicedStream is a map-style dataset, read in its order.

python examples/huggingface_trainer.py        # transformers, accelerate and the plan side
"""

import tempfile

import numpy as np
import torch
from torch.utils.data import SequentialSampler
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from data_injection.config import injection_config
from data_injection.order import RowOrder
from data_injection.plan import compile_plan
from data_injection.splice import SplicedStream

VOCAB, EOS, ROWS, LENGTH, STEPS = 512, 0, 16, 32, 40
SECTION = {"tasks": [{"name": "cmp", "num_symbols": 20, "schedule": {"rate": "5/2"}}]}


class Corpus(list):
    """Fresh rows, as `data_injection.splice.Host` asks."""

    def __getitem__(self, row):
        return {"input_ids": torch.tensor(super().__getitem__(row))}


class InOrder(Trainer):
    def _get_train_sampler(self, *args):  # the stream has its own order: not to be shuffled again
        return SequentialSampler(self.train_dataset)


def collate(rows):
    ids = torch.stack([row["input_ids"] for row in rows])
    return {"input_ids": ids, "labels": ids}


corpus = Corpus(np.random.default_rng(0).integers(1, VOCAB, size=(200, LENGTH)).tolist())
order = RowOrder(num_rows=len(corpus), batch_size=ROWS, seed=1)
plan = compile_plan(
    injection_config(SECTION), batch_size=ROWS, seq_len=LENGTH, epoch_rows=order.epoch_rows,
    vocab_size=VOCAB, eos_token_id=EOS,
)  # fmt: skip
stream = SplicedStream(corpus, order=order, plan=plan, num_positions=STEPS * ROWS, pad_token_id=1)
shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, num_attention_heads=2, **shape))
trained = []
model.register_forward_pre_hook(
    lambda module, args, given: trained.append(given["input_ids"]), with_kwargs=True
)
arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(), per_device_train_batch_size=ROWS, max_steps=STEPS, use_cpu=True,
    report_to=[], save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
)  # fmt: skip
InOrder(model, arguments, train_dataset=stream, data_collator=collate).train()
assert torch.cat(trained).equal(torch.stack([stream[at]["input_ids"] for at in range(len(stream))]))
ends = int((torch.cat(trained)[:, 3] == EOS).sum())  # EOS stands in no host row
assert ends == plan.instances(0, STEPS)
print(f"{len(trained) * ROWS} rows, {ends} injected, 0 differences")
