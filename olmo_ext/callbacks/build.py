"""The callbacks a run can have, and how an experiment's settings become them."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_injection.errors import ConfigError
from data_injection.extensions import resolve
from olmo_ext.callbacks.base import Callback
from olmo_ext.callbacks.features import Features
from olmo_ext.callbacks.interference import Interference
from olmo_ext.callbacks.loss_budget import LossBudget
from olmo_ext.callbacks.progress import Progress
from olmo_ext.callbacks.retention import Retention
from olmo_ext.callbacks.task_eval import TaskEval

CALLBACKS: dict[str, type[Callback]] = {
    # Before any that enters the model in on_step: they compare the parameters before and after the
    # optimizer's step, and FSDP leaves some of them gathered after a forward pass.
    "interference": Interference,
    "loss_budget": LossBudget,
    "task_eval": TaskEval,
    "retention": Retention,
    "features": Features,
    "progress": Progress,
}

GROUP = "olmo_ext.callbacks"
"""Entry points of packages that bring callbacks of their own."""

ALWAYS = ("progress",)
"""Callbacks that a run has without asking."""


def build_callbacks(settings: dict[str, Any]) -> dict[str, Callback]:
    """The callbacks that `callbacks:` describes: ours in the order of CALLBACKS, then those of
    others (data_injection/extensions.py) in the experiment's. null switches one off.

    Raises ConfigError for an unknown callback, field or value.
    """
    wanted: dict[str, Any] = {name: {} for name in ALWAYS} | settings
    names = [name for name in CALLBACKS if name in wanted]
    callbacks = {}
    for name in [*names, *(name for name in wanted if name not in CALLBACKS)]:
        kind = resolve(name, CALLBACKS, group=GROUP, base=Callback, key="callbacks")
        if wanted[name] is None:
            continue
        try:
            merged = OmegaConf.merge(OmegaConf.structured(kind), wanted[name])
            callbacks[name] = OmegaConf.to_object(merged)
        except OmegaConfBaseException as error:
            rule = f"cannot be read: {(error.msg or str(error)).splitlines()[0]}"
            known = f"it has {', '.join(kind.__dataclass_fields__)}"
            key = f"callbacks.{name}"
            raise ConfigError(key=key, value=wanted[name], rule=rule, remedy=known) from None
    return callbacks  # type: ignore[return-value]
