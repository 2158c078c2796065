"""Settings of an experiment from a mapping (a YAML file), refused where a key is not known.

    settings = from_mapping(PhaseSettings, {"seeds": [0, 1, 2]})

What is left out keeps its default. Every refusal names key, value and remedy.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from theory.mixture import Mixture, power_law

T = TypeVar("T")


@dataclass(frozen=True)
class PowerLaw:
    """A power-law mixture: pi_k ~ k^-a, lambda_j = j^-b."""

    num_tasks: int = 32
    """K; the study's."""

    rank: int = 8
    """m: features a task."""

    a: float = 1.25
    """Exponent of the frequencies."""

    b: float = 0.9
    """Exponent of the spectra."""

    nuisance: int = 256
    """Input dimensions that no task asks for: without them a random encoder already spans N / K m
    of every feature."""

    def mixture(self) -> Mixture:
        num_inputs = self.num_tasks * self.rank + self.nuisance
        return power_law(self.num_tasks, self.rank, a=self.a, b=self.b, num_inputs=num_inputs)


def from_mapping(kind: type[T], mapping: Mapping[str, Any], *, where: str = "") -> T:
    """An instance of a settings dataclass; nested ones and mappings of them too.

    Raises ValueError for keys that are not fields, for values of another type and for a field
    without default that is left out.
    """
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{where or 'the settings'} must be keys with values, got {mapping!r}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for key, value in mapping.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"{place} is no setting; {meant}there are {', '.join(fields)}")
        values[key] = _convert(value, fields[key], place)
    needed = [
        field.name
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.default is field.default_factory is dataclasses.MISSING and field.init
    ]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(
            f"{where or 'the settings'} lacks {', '.join(missing)}; there is no default for it"
        )
    return kind(**values)


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(value, next(one for one in inner if one is not type(None)), where)
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, where=where)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise ValueError(f"{where} must be a list of at least one value, got {value!r}")
        return tuple(_convert(one, inner[0], f"{where}[{i}]") for i, one in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be keys with values, got {value!r}")
        return {
            _convert(key, inner[0], where): _convert(one, inner[1], f"{where}.{key}")
            for key, one in value.items()
        }
    return _plain(value, hint, where)


def _plain(value: Any, hint: type, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} must be of type {hint.__name__}, got {value!r}")
    return value


def check_positive(settings: object, *names: str) -> None:
    """Raise ValueError unless each named number, or all of a list of them, is above 0."""
    for name in names:
        value = getattr(settings, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(number <= 0 for number in numbers):
            raise ValueError(f"{name} must be above 0, got {value}")


def check_seeds(seeds: tuple[int, ...]) -> None:
    """Raise ValueError for seeds that are negative or come twice."""
    if any(seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different numbers of at least 0, got {list(seeds)}")
