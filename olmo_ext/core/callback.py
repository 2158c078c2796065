"""The bridge: one OLMo-core callback that checks each batch, keeps the ledger and runs ours.

    loader = inject(loader, InjectionConfig(...))
    config.with_callback("injection", Injection(folder=save_folder, callbacks={"task_eval": {}}))

In `folder` what any run has: records.jsonl, plan.json, run.json, experiment.yaml and ledger/;
`olmo-ext report` and `olmo-ext eval` read them.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch.distributed as dist
from omegaconf import OmegaConf

from data_injection.errors import ConfigError
from data_injection.extensions import origins
from data_injection.files import replace_file
from data_injection.ledger import LEDGER_FOLDER, LedgerWriter, Position
from data_injection.lock import lock_folder
from data_injection.plan import StepRows
from data_injection.tasks.sequences import keep_tables
from eval.checkpoints.checkpoint import IDENTITY_FILE
from eval.records import FILE_NAME, RecordWriter
from eval.run import EXPERIMENT, PLAN, RUN
from olmo_ext.batch_check import StreamError, Witness
from olmo_ext.callbacks.base import Callback as Ours
from olmo_ext.callbacks.build import build_callbacks
from olmo_ext.core.checks import check_run, settings_for_checks
from olmo_ext.core.compat import Callback, SkipStepOptimizer, kept, require_core
from olmo_ext.core.host import CoreHost
from olmo_ext.core.loader import LoaderRows
from olmo_ext.engines.ranks import get_global_rank, get_world_size


@dataclass
class Injection(Callback):
    """Runs before the Checkpointer (priority 1): a checkpoint never knows more than the ledger."""

    priority: ClassVar[int] = 10

    folder: str = ""
    """Of the run's records, plan and ledger; one that all nodes see. Empty: the trainer's."""

    callbacks: dict[str, Any] = field(default_factory=dict)
    """The settings of our callbacks by name, as in an experiment's `callbacks:`; those served are
    `olmo_ext.core.checks.SERVED`."""

    run: str = "olmo-core"
    """Name of the run and of its size in every record."""

    rung: str = "olmo-core"
    seed: int = 0
    """Of the model, for the records."""

    def __post_init__(self) -> None:
        require_core()
        self._loaded: dict[str, Any] = {}
        self._stack = ExitStack()
        self._ours: dict[str, Ours] = {}
        self._ledger: LedgerWriter | None = None

    # -- OLMo-core's hooks -----------------------------------------------------------------------

    def pre_train(self) -> None:
        trainer = self.trainer
        check_run(trainer, [name for name, value in self.callbacks.items() if value is not None])
        self._plan = plan = trainer.data_loader.plan
        # OLMo-core shows progress itself.
        self._ours = build_callbacks({"progress": None, **self.callbacks})
        settings = settings_for_checks(trainer.train_module)
        for callback in self._ours.values():
            callback.check(plan, settings, num_steps=trainer.max_steps)
        plan.check(trainer.max_steps)
        folder, writer = Path(self.folder or trainer.save_folder), None
        if get_global_rank() == 0:
            self._stack.enter_context(lock_folder(folder))
            self._write_run_files(folder)
            self._ledger = self._stack.enter_context(self._open_ledger(folder))
            writer = RecordWriter(folder / FILE_NAME)
        self._host = CoreHost(trainer, run_fields=self._fields(), writer=writer)
        if "loss_budget" in self._ours:
            self._stack.callback(self._host.engine.watch_clipping().remove)
        self._witness = Witness(
            plan,
            trainer.data_loader.order(),
            LoaderRows(trainer.data_loader),
            rank=get_global_rank(),
            world_size=get_world_size(),
        )
        for name, callback in self._ours.items():
            if name in self._loaded.get("callbacks", {}):
                callback.load_state_dict(self._loaded["callbacks"][name])
            callback.on_start(self._host)

    def pre_step(self, batch: dict[str, Any]) -> None:
        loader, step = self.trainer.data_loader, self.step - 1
        if loader.step != step + 1:  # the loader has counted this batch
            raise StreamError(f"step {step}: the loader has given the batch of {loader.step - 1}")
        self._rows: StepRows = self._witness.see(step, batch)
        self._batch = kept(batch, self.trainer.train_module.device)
        self._updated = False
        for callback in self._ours.values():
            callback.on_batch(self._host, self._batch)

    def pre_optim_step(self) -> None:
        self._updated = True
        for callback in self._ours.values():
            callback.on_gradients(self._host, self._batch)

    def post_train_batch(self) -> None:
        optim = self.trainer.train_module.optim
        skipped = not self._updated  # steps_to_skip
        if isinstance(optim, SkipStepOptimizer):
            skipped |= bool(optim.step_skipped)
        if self._ledger is not None:
            write = self._ledger.skip if skipped else self._ledger.append
            write(self.step - 1, self._rows)
        if skipped:
            self._host.record("injection", metric="step_skipped", value=1.0)
        wanted = [callback.wants_global_loss(self._host) for callback in self._ours.values()]
        metrics = {"train/CrossEntropyLoss": self._loss() if any(wanted) else float("nan")}
        for callback in self._ours.values():
            callback.on_step(self._host, metrics)

    def post_checkpoint_saved(self, path: Any) -> None:
        if get_global_rank() == 0 and Path(path).is_dir():  # not in a bucket
            text = json.dumps(self._identity | {"step": self.step})
            replace_file(Path(path) / IDENTITY_FILE, text, sync=True)
        for callback in self._ours.values():
            callback.on_checkpoint(self._host)

    def post_train(self) -> None:
        for callback in self._ours.values():
            callback.on_end(self._host)

    def close(self) -> None:
        self._stack.close()
        self._ledger = None

    # -- what a checkpoint keeps -----------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        place = None if self._ledger is None else asdict(self._ledger.seal(self.step))
        ours = {name: callback.state_dict() for name, callback in self._ours.items()}
        return {"plan_hash": self._plan.hash, "ledger": place, "callbacks": ours}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict  # the loader has refused another plan before

    # -- the run's folder ------------------------------------------------------------------------

    def _write_run_files(self, folder: Path) -> None:
        """What later readers compile the plan from, and the fields that all records share."""
        path, plan, loader = folder / PLAN, self._plan, self.trainer.data_loader
        if path.exists() and (before := json.loads(path.read_text())["plan_hash"]) != plan.hash:
            rule = f"holds a run of another plan ({before[:12]}..., this is {plan.hash[:12]}...)"
            raise ConfigError(key=folder, rule=rule, remedy="choose another folder")
        fields = self._fields()
        model = {"model": {"vocab_size": loader.vocabulary["vocab_size"]}}
        self._identity = {
            "plan_hash": plan.hash,
            "plan": plan.canonical,
            "engine": "olmo_core",
            "corpus_hash": fields["corpus_hash"],
            **loader.vocabulary,
            "train": model,
        }
        replace_file(path, json.dumps(self._identity, indent=1), sync=True)
        keep_tables(folder, plan.tasks)
        asked = {"injection": asdict(loader.section), "callbacks": self.callbacks, "train": model}
        replace_file(folder / EXPERIMENT, OmegaConf.to_yaml(OmegaConf.create(asked)))
        kinds = {task.family: type(task) for task in plan.tasks}
        kinds |= {name: type(callback) for name, callback in self._ours.items()}
        run = {"run": self.run, "num_steps": self.trainer.max_steps, "plan_hash": plan.hash}
        run |= {"record_fields": fields, "extensions": origins(kinds)}
        replace_file(folder / RUN, json.dumps(run, indent=1))

    def _open_ledger(self, folder: Path) -> LedgerWriter:
        place = self._loaded.get("ledger")
        header = {
            "run": self.run,
            "plan_hash": self._plan.hash,
            "tasks": [task.name for task in self._plan.tasks],
            "world_size": get_world_size(),
            "engine": "olmo_core",
        }
        return LedgerWriter(
            folder / LEDGER_FOLDER,
            start_step=self.step,
            parent=None if place is None else Position(**place),
            header=header,
        )

    def _fields(self) -> dict[str, Any]:
        train, loader, plan = self.trainer.train_module, self.trainer.data_loader, self._plan
        total, embedding = train.model.num_params, train.model.num_non_embedding_params
        return {
            "run": self.run,
            "rung": self.rung,
            "params": embedding,
            "params_total": total,
            "d_model": train.model.d_model,
            "seed": self.seed,
            "plan_hash": plan.hash,
            "corpus_hash": _corpus_hash(loader),
            "protocol": "single" if len(plan.tasks) == 1 else "mixture",
            "batch_size": plan.geometry.batch_size,
            "seq_len": plan.geometry.seq_len,
            "learning_rate": float(train.optim.param_groups[0]["lr"]),
        }

    def _loss(self) -> float:
        """The step's cross-entropy, the mean over ranks; all must call."""
        value = self.trainer.get_metric("train/CE loss")
        if value is None:
            return float("nan")
        value = value.detach().clone().float().to(self.trainer.train_module.device)
        if get_world_size() > 1:
            dist.all_reduce(value)
        return float(value) / get_world_size()


def _corpus_hash(loader: Any) -> str:
    """The engine's own identity of the corpus."""
    if hasattr(loader, "dataset"):
        return str(loader.dataset.fingerprint)
    return "/".join(loader.source_fingerprints)
