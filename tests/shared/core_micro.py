"""A micro run of OLMo-core on the CPU, for tests in the environment of `make test-core`.

torchrun --nproc-per-node 2 tests/shared/core_micro.py FOLDER '[{"dp": "fsdp", "steps": 8}]'
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from olmo_core.config import DType
from olmo_core.data import (
    DataCollator,
    NumpyFSLDataLoader,
    NumpyFSLDataset,
    TokenizerConfig,
)
from olmo_core.data.composable import (
    ComposableDataLoader,
    ConcatAndChunkInstanceSource,
    InMemoryTokenSource,
)
from olmo_core.data.numpy_dataset import InstanceFilterConfig
from olmo_core.distributed import parallel
from olmo_core.distributed.parallel import DataParallelType
from olmo_core.distributed.utils import (
    barrier,
    get_fs_local_rank,
    get_rank,
    get_world_size,
    is_distributed,
)
from olmo_core.nn.attention import AttentionBackendName
from olmo_core.nn.transformer import TransformerBlockType, TransformerConfig
from olmo_core.optim import AdamWConfig, SkipStepAdamWConfig
from olmo_core.train import Duration, TrainerConfig, prepare_training_environment
from olmo_core.train.callbacks import CheckpointerCallback, ConfigSaverCallback
from olmo_core.train.train_module import TransformerDataParallelConfig, TransformerTrainModule
from olmo_core.utils import seed_all

from data_injection.config import injection_config
from olmo_ext.core.callback import Injection
from olmo_ext.core.loader import inject

VOCAB, EOS, PAD, SEQ_LEN, BATCH, NUM_ROWS = 256, 0, 1, 16, 16, 98
SECTION: dict[str, Any] = {
    "seed": 5,
    "tasks": [
        {"name": "cmp", "num_symbols": 10, "schedule": {"rate": 3}},
        {
            "name": "add",
            "family": "modular_addition",
            "num_symbols": 11,
            "schedule": {"kind": "burst", "rate": "5/2", "every": 4},
        },
    ],
}


def write_corpus(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = rng.integers(2, VOCAB, size=(NUM_ROWS, SEQ_LEN))
    rows[::3, 5] = EOS
    rows[::4] = 7  # what the instance filter masks
    path = folder / "tokens.npy"
    rows.astype(np.uint16).tofile(path)
    return path


def build_loader(
    folder: Path, kind: str = "fsl", *, world: int = 1, rank: int = 0, **settings: Any
) -> Any:
    """kind: fsl, lengths (doc_lens), filter (instance filter) or composable."""
    path = write_corpus(folder) if rank == 0 else folder / "tokens.npy"
    barrier()
    tokenizer = TokenizerConfig(vocab_size=VOCAB, eos_token_id=EOS, pad_token_id=PAD)
    rules = InstanceFilterConfig(repetition_max_count=4) if kind == "filter" else None
    shared: dict[str, Any] = {
        "collator": DataCollator(pad_token_id=PAD),
        "work_dir": folder / f"work-{kind}",
        "global_batch_size": BATCH * SEQ_LEN,
        "dp_world_size": world,
        "dp_rank": rank,
        "fs_local_rank": get_fs_local_rank(),
        "seed": 3,
        **settings,
    }
    if kind == "composable":
        tokens = np.fromfile(path, dtype=np.uint16).astype(np.int64)
        source = InMemoryTokenSource(tokens, work_dir=folder / "source")
        rows = ConcatAndChunkInstanceSource(
            source, sequence_length=SEQ_LEN, work_dir=folder / "source"
        )
        return ComposableDataLoader(
            rows, tokenizer=tokenizer, display_source_visualization=False, **shared
        )
    dataset = NumpyFSLDataset(
        path,
        sequence_length=SEQ_LEN,
        pad_token_id=PAD,
        eos_token_id=EOS,
        vocab_size=VOCAB,
        generate_doc_lengths=kind == "lengths",
        instance_filter_config=rules,
    )
    dataset.work_dir = folder / "dataset"
    dataset.prepare()
    return NumpyFSLDataLoader(dataset, **shared)


def model_config(kind: str = "olmo2") -> Any:
    shape: dict[str, Any] = {"d_model": 32, "vocab_size": VOCAB, "n_layers": 2, "n_heads": 2}
    shape["attn_backend"] = AttentionBackendName.torch
    if kind == "olmo2":  # as TransformerConfig.olmo2_1M
        shape |= {"block_name": TransformerBlockType.reordered_norm, "qk_norm": True}
    return TransformerConfig.llama_like(**shape)


def build_trainer(folder: Path, given: dict[str, Any]) -> Any:
    seed_all(11)
    dp, world = given.get("dp"), get_world_size()
    sizes = {name: given[name] for name in ("global_batch_size",) if name in given}
    loader = build_loader(folder, given.get("kind", "fsl"), world=world, rank=get_rank(), **sizes)
    if given.get("plan", True):
        section = injection_config(given.get("section", SECTION))
        loader = inject(loader, section, num_steps=given.get("steps", 8))
    config_of_model = model_config(given.get("model", "olmo2"))
    model = config_of_model.build(init_device="cpu")
    dp_config = None
    if dp is not None:
        kwargs = {"param_dtype": DType.float32} if dp == "fsdp" else {}
        dp_config = TransformerDataParallelConfig(name=DataParallelType(dp), **kwargs)
    optim: Any = AdamWConfig(lr=given.get("lr", 1e-2))
    if "sigma" in given:
        optim = SkipStepAdamWConfig(lr=1e-2, sigma_factor=given["sigma"], rolling_interval_length=4)
    model.init_weights(max_seq_len=SEQ_LEN, device=torch.device("cpu"))
    train = TransformerTrainModule(
        model,
        optim,
        rank_microbatch_size=given.get("rows", 4) * SEQ_LEN,
        max_sequence_length=SEQ_LEN,
        dp_config=dp_config,
        z_loss_multiplier=1e-5,
        max_grad_norm=given.get("clip", 1.0),
        device=torch.device("cpu"),
    )
    config = TrainerConfig(
        save_folder=str(folder / given.get("run", "run")),
        work_dir=str(folder / "trainer"),
        save_overwrite=True,
        load_path=given.get("load_path"),
        max_duration=Duration.steps(given.get("steps", 8)),
        metrics_collect_interval=1,
        hard_stop=None if "stop" not in given else Duration.steps(given["stop"]),
        steps_to_skip=given.get("steps_to_skip"),
    ).with_callback(
        "checkpointer",
        CheckpointerCallback(save_interval=given.get("save", 100), save_async=False),
    )
    if "callbacks" in given:
        config = config.with_callback("injection", Injection(callbacks=given["callbacks"]))
    for name, callback in given.get("more", {}).items():
        config = config.with_callback(name, callback)
    trainer = config.with_callback("config_saver", ConfigSaverCallback()).build(train, loader)
    trainer.callbacks["config_saver"].config = {"model": config_of_model.as_config_dict()}
    return trainer


def digest(model: Any) -> str:
    """Of all weights, gathered."""
    sha = hashlib.sha256()
    for _, tensor in sorted(model.named_parameters()):
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        sha.update(whole.detach().numpy().tobytes())
    return sha.hexdigest()


def main(folder: Path, given: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    parallel._WORLD_MESH = None  # made once a process; here one run follows the other
    trainer = build_trainer(folder, given)
    trainer.fit()
    found = digest(trainer.train_module.model)
    if get_rank() == 0:
        (folder / given.get("run", "run") / "weights").write_text(found)


if __name__ == "__main__":
    if "RANK" in os.environ:
        prepare_training_environment(backend="gloo")
    for one in json.loads(sys.argv[2]):
        main(Path(sys.argv[1]), one)
    if is_distributed():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        # All is written. Once in some dozens of two-rank processes torch aborts after training and
        # tear-down ("terminate called without an active exception": a thread that nobody joined),
        # which says nothing of the run.
        sys.stdout.flush()
        os._exit(0)
