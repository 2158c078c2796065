"""What is known of a checkpoint: its run, plan, exposures and scores; what an export carries on.

    provenance = find_provenance("runs/w32", step=1200)
    print(provenance.summary()["plan_hash"])

A checkpoint away from its run's folder, or one of stock OLMo, is exported too; what is not known
is then not said.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from data_injection.corpus.encoder import tokenizer_path
from data_injection.corpus.manifest import MANIFEST, load_manifest
from data_injection.errors import ConfigError
from data_injection.plan import InjectionPlan
from eval.checkpoints.checkpoint import (
    IDENTITY_FILE,
    by_step,
    check_whole,
    find_checkpoints,
    load_model_config,
    load_plan,
    read_identity,
    refuse_core,
)
from eval.records import records_of
from eval.run import PLAN, load_config, read_run

METRICS = ("accuracy", "label_accuracy", "score")


@dataclass(frozen=True)
class Provenance:
    """A checkpoint and all that its folder and its run's folder say about it."""

    path: Path
    step: int | None
    """Optimizer steps taken; None if the folder's name does not say."""

    model: dict[str, Any]
    """The engine's ModelConfig."""

    identity: dict[str, Any]
    """The checkpoint's olmo_ext.json; empty for one of stock OLMo."""

    run: dict[str, Any]
    """The run's run.json; empty without the run's folder."""

    plan: InjectionPlan | None
    """The run's plan; None without the run's folder."""

    scores: list[dict[str, Any]]
    """Records of METRICS on the test split at this step, one a task and metric."""

    def summary(self) -> dict[str, Any]:
        """Where the weights come from, as JSON values; no paths of this machine."""
        plan, run, fields = self.identity.get("plan", {}), self.run, self.run.get("record_fields")
        tokens = None
        if self.step is not None and plan:
            tokens = self.step * plan["batch_size"] * plan["seq_len"]
        return {
            "run": run.get("run"),
            "rung": self.identity.get("rung"),
            "seed": fields["seed"] if fields else None,
            "step": self.step,
            "training_tokens": tokens,
            "plan_hash": self.identity.get("plan_hash"),
            "corpus": run.get("corpus"),
            "corpus_hash": self.identity.get("corpus_hash"),
            "stream_digest": self.identity.get("ledger", {}).get("stream_digest"),
            "commits": sorted({str(s["commit"]) for s in run.get("starts", ()) if s["commit"]}),
            "versions": {
                name: run[name]
                for name in ("olmo-ext", "ai2-olmo", "torch", "numpy", "python")
                if name in run
            },
            "exposures_per_example": self.exposures(),
        }

    def exposures(self) -> dict[str, float]:
        """How often each task's train examples were seen on average by this step, by task."""
        if self.plan is None or self.step is None:
            return {}
        return {
            task.name: self.plan.exposures_per_example(index, self.step)
            for index, task in enumerate(self.plan.tasks)
        }


def find_provenance(source: str | Path, *, step: int | None = None) -> Provenance:
    """What is known of a checkpoint, or of a run's latest (or `step`'s) complete one.

    Raises:
        FileNotFoundError: no checkpoint there.
        ConfigError: no such step, a damaged file, or a run that is not the checkpoint's.
    """
    path = _find_checkpoint(Path(source), step)
    check_whole(path, "config.yaml", IDENTITY_FILE)
    named = re.match(r"step(\d+)", path.name)
    number = int(named[1]) if named else None
    identity = read_identity(path)
    plan, run, scores = None, {}, []
    folder = path.parent
    if identity and (folder / PLAN).is_file():
        plan = load_plan(folder)
        if plan.hash != identity["plan_hash"]:
            rule = f"was trained on plan {identity['plan_hash'][:12]}, but the run it lies in has "
            rule += f"{plan.hash[:12]}"
            raise ConfigError(key=path, rule=rule, remedy="move it back to its own run's folder")
        run = read_run(folder)
        scores = _scores(folder, number)
    return Provenance(path, number, load_model_config(path), identity, run, plan, scores)


def find_tokenizer(provenance: Provenance) -> Path:
    """The tokenizer.json that the run's corpus was written with.

    Raises ConfigError with the ways out if it is not here, or is of another corpus by now.
    """
    config = load_config(provenance.path / "config.yaml")
    name = str(OmegaConf.select(config, "tokenizer.identifier", default=""))
    key = "train.tokenizer.identifier"
    remedy = "pass --tokenizer with the right tokenizer.json (or dolma-v1_5), or --no-tokenizer"
    try:
        path = tokenizer_path(name)
    except FileNotFoundError:
        rule = "must be a file here"
        raise ConfigError(key=key, value=name, rule=rule, remedy=remedy) from None
    if (path.parent / MANIFEST).is_file():
        ours, theirs = load_manifest(path.parent).hash, provenance.identity.get("corpus_hash")
        if theirs is not None and ours != theirs:
            rule = f"must be of the corpus that the run was trained on ({theirs[:12]}), not of "
            raise ConfigError(key=key, value=name, rule=rule + ours[:12], remedy=remedy)
    return path


def _find_checkpoint(source: Path, step: int | None) -> Path:
    if (source / "model.pt").is_file():
        if step is not None:
            rule = f"chooses in a run, but {source} is a checkpoint"
            raise ConfigError(key="--step", value=step, rule=rule)
        return by_step(source)
    refuse_core(source, "export makes folders of ai2-olmo's alone")
    found = {checkpoint.step: checkpoint.path for checkpoint in find_checkpoints(source)}
    if not found:
        raise FileNotFoundError(
            f"{source} is neither a checkpoint (a folder with model.pt) nor a run with a complete "
            "one (step*-unsharded)"
        )
    if step is not None and step not in found:
        steps = ", ".join(map(str, found))
        rule = f"must be a checkpoint of {source}, which has {steps}"
        raise ConfigError(key="--step", value=step, rule=rule)
    return by_step(found[max(found) if step is None else step])


def _scores(folder: Path, step: int | None) -> list[dict[str, Any]]:
    rows = records_of(folder, "subset")
    rows = rows[(rows.step == step) & (rows.split == "test") & (rows.subset == "all")]
    return rows[rows.metric.isin(METRICS)].to_dict("records")
