"""Weights & Biases beside a run: joined if the config asks for it, a mirror of the records.

    start_wandb(cfg, folder)
    mirror("task_eval", row)

records.jsonl is what counts; nothing reads from W&B.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from data_injection.files import replace_file
from eval.records import record_name

if TYPE_CHECKING:
    from olmo.config import TrainConfig


def has_wandb_key() -> bool:
    """Whether W&B can log in: a key in the environment, or one left in netrc by `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, NetrcParseError):
        return False


def start_wandb(cfg: TrainConfig, folder: Path) -> None:
    """Join W&B if the config asks for it, offline without an API key; resumes its own run."""
    if cfg.wandb is None:
        return
    import wandb

    from olmo_ext.compat import outlive_wandb

    mode = os.environ.get("WANDB_MODE")
    if mode is None and not has_wandb_key():
        mode = "offline"
    id_file = folder / "wandb_id"
    # Renamed into place: after a kill an empty one would make the next start another W&B run.
    if not id_file.exists() or not id_file.read_text():
        replace_file(id_file, secrets.token_hex(4))
    wandb.init(
        dir=folder,
        id=id_file.read_text(),
        resume="allow",
        mode=mode,  # type: ignore[arg-type]
        project=cfg.wandb.project,
        entity=cfg.wandb.entity,
        group=cfg.wandb.group,
        name=cfg.wandb.name or cfg.run_name,
        tags=cfg.wandb.tags,
        config=cfg.asdict(exclude=["wandb"]),
    )
    outlive_wandb()


def mirror(callback: str, row: Mapping[str, Any]) -> None:
    """Show a record in W&B, if the run has joined it."""
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:  # nobody has asked for it
        return
    wandb.log({record_name(callback, row): row["value"]}, step=row["step"])
