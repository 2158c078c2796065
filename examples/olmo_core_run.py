"""The plan in OLMo-core 3: give the loader a plan, give the trainer one callback.

python examples/olmo_core_run.py FOLDER        # in an environment with '.[core]'
"""

import sys
from pathlib import Path

import numpy as np
from olmo_core.data import DataCollator, NumpyFSLDataLoader, NumpyFSLDataset
from olmo_core.nn.attention import AttentionBackendName
from olmo_core.optim import AdamWConfig
from olmo_core.train import Duration, TrainerConfig
from olmo_core.train.callbacks import ConfigSaverCallback
from olmo_core.train.train_module import TransformerTrainModule

from data_injection.config import injection_config
from data_injection.ledger import read_segments
from olmo_ext.core.callback import Injection
from olmo_ext.core.loader import inject
from olmo_ext.core.recipes import ladder

VOCAB, EOS, PAD, ROWS, LENGTH, STEPS = 512, 0, 1, 16, 32, 20
SECTION = {"tasks": [{"name": "cmp", "num_symbols": 20, "schedule": {"rate": "5/2"}}]}

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
corpus = np.random.default_rng(0).integers(2, VOCAB, size=200 * LENGTH)
corpus.astype(np.uint16).tofile(folder / "tokens.npy")
dataset = NumpyFSLDataset(
    folder / "tokens.npy", sequence_length=LENGTH, pad_token_id=PAD, eos_token_id=EOS,
    vocab_size=VOCAB,
)  # fmt: skip
dataset.work_dir = folder / "work"
dataset.prepare()
loader = NumpyFSLDataLoader(
    dataset, collator=DataCollator(pad_token_id=PAD), work_dir=folder / "work",
    global_batch_size=ROWS * LENGTH, seed=3,
)  # fmt: skip
loader = inject(loader, injection_config(SECTION))
# attn_backend only because this runs on a CPU.
config = ladder("4M", vocab_size=VOCAB, attn_backend=AttentionBackendName.torch)
train = TransformerTrainModule(
    config.build(init_device="cpu"), AdamWConfig(lr=1e-3), rank_microbatch_size=ROWS * LENGTH,
    max_sequence_length=LENGTH,
)  # fmt: skip
measured = {"task_eval": {"every": 10}, "interference": {"every": 10}}
trainer = TrainerConfig(
    save_folder=str(folder / "run"), max_duration=Duration.steps(STEPS), save_overwrite=True
).with_callback("injection", Injection(callbacks=measured)).with_callback(
    "config_saver", ConfigSaverCallback()
).build(train, loader)  # fmt: skip
trainer.callbacks["config_saver"].config = {"model": config.as_config_dict()}
# Every batch is checked against the plan and the corpus before it is trained on; a step that
# was taken stands in the ledger.
trainer.fit()
(segment,) = read_segments(folder / "run" / "ledger").values()
planned = [slot for step in range(STEPS) for slot in loader.plan.at(step).slots]
assert segment.rows["slot"].tolist() == planned
print(f"{STEPS * ROWS} rows, {len(planned)} injected, 0 differences")
