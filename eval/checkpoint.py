"""Checkpoints of a run: find them, load the model and the plan they were trained with.

for checkpoint in find_checkpoints("runs/w32"):
    model = load_model(checkpoint.path)
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from data_injection.config import ConfigError, InjectionConfig
from data_injection.plan import InjectionPlan, compile_plan

IDENTITY_FILE = "olmo_ext.json"
"""Beside the engine's files in every checkpoint: the stream that it was trained on."""

FILES = ("model.pt", "optim.pt", "train.pt", "config.yaml", IDENTITY_FILE)

_NAME = re.compile(r"step(\d+)-unsharded")


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint on disk."""

    path: Path
    step: int


def find_checkpoints(folder: str | Path) -> list[Checkpoint]:
    """Complete unsharded checkpoints of a run in the order of their steps.

    Complete means renamed into place with every file: a writer that was killed leaves a "-tmp"
    folder, which is not one.
    """
    found = []
    for path in Path(folder).glob("step*"):
        match = _NAME.fullmatch(path.name)
        if match is not None and all((path / name).exists() for name in FILES):
            found.append(Checkpoint(path, int(match[1])))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def load_model(path: str | Path, *, device: str = "cpu") -> torch.nn.Module:
    """The OLMo model of an unsharded checkpoint in evaluation mode, on one device, fp32.

    The file is read with weights_only: nothing in it can run.

    Raises:
        FileNotFoundError: no unsharded checkpoint there.
    """
    from olmo.config import ModelConfig
    from olmo.model import OLMo

    path = Path(path)
    if not (path / "model.pt").is_file():
        raise FileNotFoundError(
            f"{path} holds no model.pt; give an unsharded checkpoint, a folder step*-unsharded"
        )
    config = ModelConfig.load(path / "config.yaml", key="model", validate_paths=False)
    config.init_device, config.precision = device, "fp32"
    config.flash_attention = False  # it takes half precision alone
    model = OLMo(config, init_params=False)
    state = torch.load(path / "model.pt", map_location=device, weights_only=True)
    model.load_state_dict(state, strict=True)
    return model.eval()


def load_identity(folder: str | Path) -> dict[str, Any]:
    """The identity of a run's stream as it was saved: plan, corpus, seeds; see plan.json."""
    path = Path(folder) / "plan.json"
    if not path.is_file():
        raise FileNotFoundError(f"no plan.json in {folder}; is it the folder of a run?")
    return json.loads(path.read_text())


def load_plan(folder: str | Path) -> InjectionPlan:
    """Recompile the plan of a run from its saved experiment and check that it is the same.

    Raises:
        ConfigError: this version of the code compiles another plan from the saved experiment.
    """
    folder = Path(folder)
    identity = load_identity(folder)
    raw = OmegaConf.select(OmegaConf.load(folder / "experiment.yaml"), "injection", default={})
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(InjectionConfig), raw))
    assert isinstance(config, InjectionConfig)
    canonical = identity["plan"]
    plan = compile_plan(
        config,
        batch_size=canonical["batch_size"],
        seq_len=canonical["seq_len"],
        epoch_rows=canonical["epoch_rows"],
        vocab_size=identity["vocab_size"],
        eos_token_id=canonical["eos_token_id"],
        reserved_tokens=identity["reserved_tokens"],
    )
    if plan.hash != identity["plan_hash"]:
        raise ConfigError(
            f"{folder}: the saved experiment compiles to plan {plan.hash[:12]}, but the run was "
            f"trained on {identity['plan_hash'][:12]}; use the olmo-ext version in run.json"
        )
    return plan
