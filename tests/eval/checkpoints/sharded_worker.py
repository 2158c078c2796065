"""Write one model as stock ai2-olmo's sharded checkpointers do, from FSDP ranks, and unsharded.

torchrun --nproc-per-node 2 tests/eval/checkpoints/sharded_worker.py OUT \\
    torch_new torch_legacy olmo_core

OUT/unsharded holds the same weights as model.pt. The weights of one optimizer step are saved, so
that no two ranks' parts are alike.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from olmo.checkpoint import build_sharded_checkpointer
from olmo.config import ModelConfig, ShardedCheckpointerType, TrainConfig
from olmo.model import OLMo
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP


def main(out: Path, kinds: list[str]) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    config = TrainConfig(
        model=ModelConfig(
            d_model=24,  # three heads of 8: shards end inside rows
            n_heads=3,
            n_layers=2,
            mlp_ratio=4,
            rope=True,
            max_sequence_length=16,
            vocab_size=250,
            embedding_size=256,
            eos_token_id=0,
            pad_token_id=1,
            include_bias=False,
            layer_norm_type="rms",
            weight_tying=False,
        )
    )
    config.model.init_device = "cpu"
    plain = OLMo(config.model)
    model = FSDP(
        plain,
        use_orig_params=True,
        auto_wrap_policy=plain.get_fsdp_wrap_policy("by_block"),
        device_id=torch.device("cpu"),
    )
    optim = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(torch.arange(2, 18)[None]).logits.logsumexp(-1).mean().backward()
    optim.step()
    with FSDP.summon_full_params(model, writeback=False):
        if dist.get_rank() == 0:
            (out / "unsharded").mkdir(parents=True)
            state = {
                name.replace("_fsdp_wrapped_module.", ""): p.clone()
                for name, p in model.named_parameters()
            }
            torch.save(state, out / "unsharded" / "model.pt")
            config.save(out / "unsharded" / "config.yaml")
    dist.barrier()
    for kind in kinds:
        config.sharded_checkpointer = ShardedCheckpointerType(kind)
        config.save_folder = str(out)
        build_sharded_checkpointer(config).save_checkpoint(out / kind, model, optim, {"step": 1})
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
