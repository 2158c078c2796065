"""Checkpoints of a run: find them, load the model and the plan they were trained with.

for checkpoint in find_checkpoints("runs/w32"):
    model = load_model(checkpoint.path)

A checkpoint is verified when it is read: SHA256SUMS beside its files, as of `sha256sum`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from data_injection.config import InjectionConfig
from data_injection.errors import ConfigError
from data_injection.extensions import remembering
from data_injection.plan import InjectionPlan, compile_plan
from data_injection.tasks.sequences import kept_tables
from eval.run import EXPERIMENT, PLAN, extensions_of, load_config, load_identity, read_object

if TYPE_CHECKING:
    import torch

# torch, and sharded.py that needs it, are imported where weights are read: `status` reads none.
IDENTITY_FILE = "olmo_ext.json"
"""Beside the engine's files in every checkpoint: the stream that it was trained on, under "ledger"
with its place in the ledger and the digest of that stream; see `olmo_ext.batch_check`."""

CHECKSUMS = "SHA256SUMS"
"""Of all other files of a checkpoint; `cd step12-unsharded && sha256sum -c SHA256SUMS`."""

FILES = ("model.pt", "optim.pt", "train.pt", "config.yaml", IDENTITY_FILE)

_NAME = re.compile(r"step(\d+)-unsharded")


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint on disk."""

    path: Path
    step: int


def by_step(path: Path) -> Path:
    """A checkpoint's path under the name that says its step.

    `latest-unsharded` is followed; one that lies on scratch and is linked back keeps the link's own
    name, which its target need not have, and lies in its run's folder.
    """
    path = Path(os.path.abspath(path))
    while path.is_symlink() and not path.name.startswith("step"):
        path = Path(os.path.abspath(path.parent / path.readlink()))
    return path


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


def read_identity(path: Path) -> dict[str, Any]:
    """A checkpoint's olmo_ext.json, empty where it has none (stock OLMo); raises as `read_run`."""
    return read_object(path / IDENTITY_FILE) if (path / IDENTITY_FILE).is_file() else {}


def write_checksums(folder: Path) -> None:
    """Write CHECKSUMS for all files of a folder that is about to become a checkpoint."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != CHECKSUMS)
    lines = [f"{sha}  {name}\n" for name, sha in _sha256(folder, names).items()]
    (folder / CHECKSUMS).write_text("".join(lines))


def verify_checkpoint(path: Path, *, names: Collection[str] | None = None) -> list[str]:
    """What is wrong with a checkpoint's files (all, or those named), empty if nothing is.

    Nothing can be said of a checkpoint that never had checksums: stock OLMo's, or ours from before.
    """
    if not (path / CHECKSUMS).is_file():
        return [f"{CHECKSUMS} is missing"] if _had_checksums(path) else []
    expected = {}
    for line in (path / CHECKSUMS).read_text(errors="replace").splitlines():
        sha, _, name = line.partition("  ")
        if Path(name).name != name:
            return [f"{CHECKSUMS} leads out of the checkpoint, to {name!r}"]
        if names is None or name in names:
            expected[name] = sha
    present = [name for name in expected if (path / name).is_file()]
    problems = [f"{name} is missing" for name in expected if name not in present]
    found = _sha256(path, present)
    problems += [
        f"{name} has sha256 {found[name][:12]}..., {expected[name][:12]}... was written"
        for name in present
        if found[name] != expected[name]
    ]
    if unnamed := set(FILES if names is None else names) - set(expected):
        problems.append(f"{CHECKSUMS} does not name {', '.join(sorted(unnamed))}")
    return problems


def check_whole(path: Path, *names: str) -> None:
    """Raise ConfigError if one of a checkpoint's files is not what was written."""
    if problems := verify_checkpoint(path, names=names):
        rule, remedy = f"is damaged: {'; '.join(problems)}", "use another checkpoint of the run"
        raise ConfigError(key=str(path), rule=rule, remedy=remedy)


def _had_checksums(path: Path) -> bool:
    """Whether a checkpoint was written with them: with a place in the ledger, or no one can say."""
    try:
        return "ledger" in read_identity(path)
    except ConfigError:
        return True


def _sha256(folder: Path, names: Collection[str]) -> dict[str, str]:
    def digest(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor() as threads:  # hashing lets go of the interpreter's lock
        return dict(zip(names, threads.map(digest, names), strict=True))


def load_model(path: str | Path, *, device: str = "cpu") -> torch.nn.Module:
    """The OLMo model of a checkpoint in evaluation mode, on one device, fp32.

    Unsharded, or sharded as stock OLMo's FSDP runs write them (`eval.checkpoints.sharded`).
    model.pt is read with weights_only, so that nothing in it can run, and through a map, so that
    the kernel may drop what has been copied.

    Raises:
        FileNotFoundError: no checkpoint of OLMo there.
        ConfigError: a file is not the one that was written, or not of this model.
    """
    import torch
    from olmo.model import OLMo

    from eval.checkpoints.sharded import READABLE, checkpoint_kind, read_sharded

    path = Path(path)
    kind = checkpoint_kind(path)
    if kind is None or kind == "hf":
        raise FileNotFoundError(
            f"{path} holds no model.pt with its config.yaml; give an unsharded checkpoint, a "
            "folder step*-unsharded, or a sharded one of torch_new or olmo_core"
        )
    check_whole(path, "model.pt", "config.yaml")
    if kind not in READABLE:
        read_sharded(path, kind, {})  # says why not
    model = OLMo(_model_config(path, "meta"), init_params=False)
    if kind == "unsharded":
        state = read_weights(path / "model.pt")
    else:
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        state = read_sharded(path, kind, shapes)
    try:
        # Copied out of the map: a file that is written over while it is mapped kills the process.
        state = {name: tensor.to(torch.float32, copy=True) for name, tensor in state.items()}
        model.load_state_dict(state, strict=True, assign=True)
    except Exception as error:
        said = " ".join(str(error).split())[:400]
        rule = f"are not those of the model in config.yaml ({said})"
        remedy = "give the config.yaml that was saved with them"
        raise ConfigError(key=f"{path}: the weights", rule=rule, remedy=remedy) from error
    return model.requires_grad_(False).to(device).eval()


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a model.pt, mapped; ConfigError if it holds anything else."""
    import torch

    from eval.checkpoints.sharded import RESTORE, first_line

    try:
        # Only the zip format can be mapped; torch has written it since 1.6.
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        rule = "cannot be read as tensors alone (cut off, or it holds code, which is not run): "
        rule += f"{first_line(error)}"
        raise ConfigError(key=path, rule=rule, remedy=RESTORE) from error


def load_model_config(path: str | Path) -> dict[str, Any]:
    """The engine's ModelConfig of a checkpoint as plain values, with the engine's defaults."""
    return json.loads(json.dumps(asdict(_read_model_config(Path(path)))))


def random_model(path: str | Path, *, seed: int, device: str = "cpu") -> torch.nn.Module:
    """A model of a checkpoint's configuration with new weights of the same distribution.

    A pure function of the configuration and the seed; the global generators are put back.
    """
    import torch
    from olmo.model import OLMo

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return OLMo(_model_config(Path(path), "cpu")).to(device).eval()


def _model_config(path: Path, device: str) -> Any:
    """The engine's ModelConfig of a checkpoint, for fp32 on one device."""
    config = _read_model_config(path)
    config.init_device, config.precision = device, "fp32"
    config.flash_attention = False  # it takes half precision alone
    return config


def _read_model_config(path: Path) -> Any:
    from olmo.config import ModelConfig

    from eval.checkpoints.sharded import RESTORE, first_line

    if not (path / "config.yaml").is_file():
        refuse_core(path, "for this convert it to a folder of transformers and give that")
        rule = "has no config.yaml, which says what model the weights are of"
        raise ConfigError(key=path, rule=rule, remedy=RESTORE)
    load_config(path / "config.yaml")  # in words where it is no YAML
    try:
        return ModelConfig.load(path / "config.yaml", key="model", validate_paths=False)
    except Exception as error:  # the engine's and YAML's own, of many kinds
        rule = f"holds no model of OLMo: {first_line(error)}"
        raise ConfigError(key=f"{path}/config.yaml", rule=rule, remedy=RESTORE) from error


def refuse_core(folder: Path, remedy: str) -> None:
    """Raise ConfigError for a run or a checkpoint of OLMo-core, where ai2-olmo's are asked for."""
    from eval.checkpoints.sharded import checkpoint_kind

    is_run = (folder / PLAN).is_file() and load_identity(folder).get("engine") == "olmo_core"
    if is_run or checkpoint_kind(folder) == "core":
        rule = "is of OLMo-core 2 or later, whose models are others than ai2-olmo's"
        told = "`olmo-ext eval` reads it, OLMo-core's convert_checkpoint_to_hf converts it "
        raise ConfigError(key=str(folder), rule=rule, remedy=f"{told}(docs/olmo_core.md); {remedy}")


def load_plan(folder: str | Path) -> InjectionPlan:
    """Recompile the plan of a run from its saved experiment and check that it is the same.

    Raises:
        ConfigError: this version of the code compiles another plan from the saved experiment.
    """
    identity = load_identity(folder)
    plan = compile_saved_plan(folder, identity)
    if plan.hash != identity["plan_hash"]:
        rule = f"compiles to plan {plan.hash[:12]}, but the run was trained on "
        rule += f"{identity['plan_hash'][:12]}"
        remedy = "use the olmo-ext version in run.json"
        raise ConfigError(key=f"{folder}: the saved experiment", rule=rule, remedy=remedy)
    return plan


def compile_saved_plan(folder: str | Path, identity: dict[str, Any]) -> InjectionPlan:
    """The plan that a run's saved experiment compiles to, whatever plan.json says of its hash.

    `identity` (see `load_identity`) gives what follows from the corpus. Raises ConfigError.
    """
    raw = OmegaConf.select(load_config(Path(folder) / EXPERIMENT), "injection", default={})
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(InjectionConfig), raw))
    assert isinstance(config, InjectionConfig)
    canonical = identity["plan"]
    with remembering(extensions_of(folder)):
        return compile_plan(
            config,
            batch_size=canonical["batch_size"],
            seq_len=canonical["seq_len"],
            epoch_rows=canonical["epoch_rows"],
            vocab_size=identity["vocab_size"],
            eos_token_id=canonical["eos_token_id"],
            reserved_tokens=identity["reserved_tokens"],
            num_steps=canonical.get("num_steps"),
            tables=kept_tables(folder, [task.name for task in config.tasks]),
        )
