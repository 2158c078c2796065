"""A callback's state as a checkpoint keeps it: what torch.load reads again under weights_only.

plain_state(callback.state_dict(), key="callbacks.loss_budget.state_dict()")
"""

from __future__ import annotations

from io import BytesIO
from pickle import PickleError
from typing import Any

import numpy as np
import torch

from data_injection.errors import ConfigError

PLAIN = (type(None), bool, int, float, str, torch.Tensor)


def plain_state(value: Any, *, key: str) -> Any:
    """The state with Python's numbers for NumPy's, such as np.mean gives, which are not read again.

    Raises ConfigError for what else is not: every checkpoint with it would be found unreadable, at
    the next start.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if type(value) in (list, tuple):
        return type(value)(plain_state(one, key=f"{key}[{i}]") for i, one in enumerate(value))
    if type(value) is dict:
        parts = {name: plain_state(one, key=f"{key}[{name!r}]") for name, one in value.items()}
        return {plain_state(name, key=f"a key of {key}"): one for name, one in parts.items()}
    if type(value) not in PLAIN:
        try:
            torch.save(value, file := BytesIO())
            torch.load(BytesIO(file.getvalue()), weights_only=True)
        except (PickleError, AttributeError, TypeError) as error:
            kind = type(value)
            rule = f"is {kind.__module__}.{kind.__qualname__}, which a resume could not read"
            remedy = "give tensors, strings and Python's numbers, and lists and dicts of them"
            raise ConfigError(key=key, value=value, rule=rule, remedy=remedy) from error
    return value
