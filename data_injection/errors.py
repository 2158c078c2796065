"""The error of a setting or an input that cannot be used; what went wrong travels as attributes.

raise ConfigError(
    key="injection.tasks[0].train_fraction", value=1.5,
    rule="must be in (0, 1)", remedy="the study uses 0.5",
)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

NO_VALUE: Any = ...
"""Stands for the value where the rule is about several settings at once; one object in all
processes, as an object() that was pickled is not."""


def short(value: object, *, length: int = 80) -> str:
    """A value in a message: a whole file in one helps nobody."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 4]} ..."


class ConfigError(ValueError):
    """A setting or an input that cannot be used.

    Args:
        message: the whole sentence, where it is not the text below.
        key: the setting, as the user writes it, e.g. "train.global_train_batch_size", or the file.
        value: what it is.
        rule: what it must be, as the sentence goes on from the key: "must be at least 1".
        remedy: what to do; may be left out where the rule says it.

    As text: "KEY RULE, got VALUE; REMEDY".
    """

    def __init__(
        self, message: str = "", *, key: str | Path = "", value: Any = NO_VALUE, rule: str = "",
        remedy: str = "",
    ) -> None:  # fmt: skip
        # The text is made at once and kept in `args`, so that the error survives pickling by a
        # process pool, which makes it anew from `args` and `__dict__`.
        self.key, self.rule, self.remedy = str(key), rule, remedy
        self.value = str(value) if isinstance(value, Path) else value
        length = 160
        if isinstance(self.value, str):  # a path is shown whole, a file's text is not
            length = 80 if "\n" in self.value or len(self.value) > 300 else 300
        got = "" if value is NO_VALUE else f", got {short(self.value, length=length)}"
        super().__init__(message or f"{key} {rule}{got}{remedy and f'; {remedy}'}")

    @property
    def problem(self) -> str:
        """The text without its remedy, for those who know a better one."""
        return str(self).removesuffix(f"; {self.remedy}")

    def under(self, prefix: str) -> ConfigError:
        """The same error of a part, told by the whole: its key begins with `prefix`.

        error.under("injection.tasks[0]")           # params.k becomes injection.tasks[0].params.k
        """
        return ConfigError(**self._told | {"key": f"{prefix}.{self.key}"})

    def told_of(self, where: str | Path) -> ConfigError:
        """The same error, whose text begins with the file or run that it is of."""
        text = str(self)
        return ConfigError(
            text if text.startswith(str(where)) else f"{where}: {text}", **self._told
        )

    @property
    def _told(self) -> dict[str, Any]:
        return {"key": self.key, "value": self.value, "rule": self.rule, "remedy": self.remedy}


def check_equal(why: str, *settings: tuple[str, Any, Any], remedy: str = "") -> None:
    """Raise ConfigError for the first setting, (key, value, what it must be), that is another.

    `why` is how the rule goes on: " for KEY", ": the rows come in another order otherwise".
    """
    for key, value, needed in settings:
        if value != needed:
            text = "null" if needed is None else str(needed).lower()
            raise ConfigError(key=key, value=value, rule=f"must be {text}{why}", remedy=remedy)


class DivergedError(ConfigError):
    """A model whose numbers are not finite: it can be neither trained further nor measured."""
