"""HeadNorms: how much each attention head can write into the residual stream.

callbacks: {"olmo_ext_canary.callbacks:HeadNorms": {every: 100}}
"""

from dataclasses import dataclass

from olmo.config import TrainConfig

from data_injection.errors import ConfigError
from data_injection.plan import InjectionPlan
from olmo_ext.callbacks.base import Callback, due
from olmo_ext.trainer import ExperimentTrainer


@dataclass
class HeadNorms(Callback):
    """Frobenius norm of every head's part of the output projection; `head` is our own field."""

    every: int = 100
    """Steps between two measurements."""

    def check(self, plan: InjectionPlan, train: TrainConfig, *, num_steps: int) -> None:
        if train.distributed_strategy == "fsdp":
            key, rule = "train.distributed_strategy", "must be ddp for HeadNorms"
            raise ConfigError(key=key, value="fsdp", rule=rule, remedy="FSDP cuts the heads apart")

    def on_step(self, trainer: ExperimentTrainer, metrics: dict[str, float]) -> None:
        if not due(trainer.global_step, every=self.every, last_step=trainer.last_step):
            return
        for layer, block in enumerate(trainer.model.transformer.blocks):
            # (d_model, n_heads * head width): the columns of a head are what it writes.
            heads = block.attn_out.weight.detach().chunk(trainer.cfg.model.n_heads, dim=1)
            for head, columns in enumerate(heads):
                norm = float(columns.norm())
                trainer.record("head_norms", metric="head_norm", value=norm, layer=layer, head=head)
