"""The plugin on stock ai2-olmo: the only room that trains. What a script of your own needs of it:

from olmo_ext import load_experiment, read_records, train_experiment
read_records(train_experiment(load_experiment("experiment.yaml")))
"""

from importlib import import_module
from typing import Any

PUBLIC = {
    "ConfigError": "data_injection.errors.ConfigError",
    "ExperimentConfig": "olmo_ext.config.ExperimentConfig",
    "load_experiment": "olmo_ext.config.load_experiment",
    "prepare_experiment": "olmo_ext.prepare.prepare",
    "train_experiment": "olmo_ext.train.train",
    "audit_run": "eval.audit.audit.audit_run",
    "read_records": "eval.records.read_records",
    "cells": "eval.scores.cells.cells",
    "write_report": "eval.report.write.write_report",
    "Callback": "olmo_ext.callbacks.base.Callback",
    "Task": "data_injection.tasks.base.Task",
}
"""A module is imported when its name is first asked for, so that the command line stays light."""
__all__ = list(PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, found = PUBLIC[name].rpartition(".")
    return getattr(import_module(module), found)
