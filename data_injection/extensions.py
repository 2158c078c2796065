"""Classes that others wrote: task families and callbacks, found without an edit of this package.

    resolve("comparison", TASKS, group="olmo_ext.tasks", base=Task, key="injection.tasks[0].family")
    resolve("mypkg.tasks:Canary", TASKS, ...)        # by import path
    resolve("canary", TASKS, ...)                    # an entry point of an installed package

An import path is looked up as Python would in the folder one works in: what is installed, what is
on PYTHONPATH, and at last that folder itself. An entry point is declared by its package:

    [project.entry-points."olmo_ext.tasks"]
    canary = "mypkg.tasks:Canary"
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any, TypeVar, cast

from data_injection.errors import ConfigError

T = TypeVar("T")

OURS = ("data_injection", "olmo_ext", "eval", "launch", "theory")
"""Top-level packages whose classes are part of this release."""


def resolve(
    name: str, builtins: Mapping[str, type[T]], *, group: str, base: type, key: str
) -> type[T]:
    """The class that a setting names.

    Args:
        name: of a built-in, an import path "package.module:Class", or the name of an entry point.
        builtins: this release's classes by name; they come before entry points of the same name.
        group: of the entry points, "olmo_ext.tasks" or "olmo_ext.callbacks".
        base: what the class must be a subclass of.
        key: the setting, for errors.

    Raises:
        ConfigError: there is no such class, it cannot be imported, or it is not a `base`.
    """
    if name in builtins:
        return builtins[name]
    if ":" in name:
        found = _load(metadata.EntryPoint(name, name, group), key=key)
    else:
        points = {point.value: point for point in metadata.entry_points(group=group, name=name)}
        if not points:
            known = {*builtins, *metadata.entry_points(group=group).names}
            rule = f"must be one of {sorted(known)}, or an import path 'package.module:Class'"
            remedy = _meant(name, known) or f"or install the package that has it ({group})"
            raise ConfigError(key=key, value=name, rule=rule, remedy=remedy)
        if len(points) > 1:
            rule = f"must name one class, but packages offer {sorted(points)}"
            remedy = "write the import path of the one that is meant"
            raise ConfigError(key=key, value=name, rule=rule, remedy=remedy)
        found = _load(*points.values(), key=key)
    if not (isinstance(found, type) and issubclass(found, base)):
        what = f"a subclass of {base.__module__}.{base.__qualname__}"
        raise ConfigError(key=key, value=name, rule=f"must be {what}", remedy="derive it from that")
    if inspect.isabstract(found):
        lacks = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise ConfigError(
            key=key, value=name, rule="must be a complete class", remedy=f"define its {lacks}"
        )
    return cast("type[T]", found)


def import_path(cls: type) -> str:
    """ "package.module:Class"; `resolve` finds the class by it."""
    return f"{cls.__module__}:{cls.__qualname__}"


def origin(cls: type) -> dict[str, str | None] | None:
    """Where a class that is not ours comes from; None for one of this release.

    path: its import path; package: the distribution to install, or the top-level module of one that
    is not installed; version: of the distribution, or None.
    """
    top = cls.__module__.partition(".")[0]
    if top in OURS:
        return None
    for package in metadata.packages_distributions().get(top, []):
        return {"path": import_path(cls), "package": package, "version": metadata.version(package)}
    return {"path": import_path(cls), "package": top, "version": None}


def origins(classes: Mapping[str, type]) -> list[dict[str, str | None]]:
    """What a run keeps of the classes it used, by the names it found them by; ours left out."""
    found = {name: origin(cls) for name, cls in classes.items()}
    return [{"name": name, **known} for name, known in found.items() if known is not None]


@contextmanager
def remembering(known: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Where a class cannot be found any more, say where it came from when it was (`origins`)."""
    try:
        yield
    except ConfigError as error:
        for one in known:
            if error.value in (one["name"], one["path"]):
                version = f"=={one['version']}" if one["version"] else ""
                raise ConfigError(
                    key=error.key,
                    value=error.value,
                    rule=error.rule,
                    remedy=f"the run used {one['path']} of {one['package']}{version}: install that "
                    f"({error.remedy})",
                ) from error
        raise


def _load(point: metadata.EntryPoint, *, key: str) -> Any:
    """What an entry point, or an import path written as one, leads to."""
    # Python starts with the script's folder there, which of an installed command is .../bin; last,
    # so that a file of the user's can hide nothing that is installed.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    match = metadata.EntryPoint.pattern.match(point.value)
    if match is None or not match["attr"]:
        rule = "must be an import path 'package.module:Class'"
        remedy = "as in 'mypkg.tasks:Canary'"
        raise ConfigError(key=key, value=point.value, rule=rule, remedy=remedy)
    name, attributes = match["module"], match["attr"]
    try:
        module = importlib.import_module(name)
    except Exception as error:
        # What the user's own code raises while it is imported can be anything.
        absent = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        rule = f"cannot be imported: {type(error).__name__}: {error}"
        remedy = (
            "install its package, or put its folder on PYTHONPATH" if absent else f"mend {name}"
        )
        raise ConfigError(key=key, value=point.name, rule=rule, remedy=remedy) from error
    found: Any = module
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            names = [each for each, value in vars(found).items() if isinstance(value, type)]
            rule = f"names {attribute!r}, which {name} does not define"
            remedy = _meant(attribute, names) or f"it has the classes {sorted(names)}"
            raise ConfigError(key=key, value=point.name, rule=rule, remedy=remedy) from None
    return found


def _meant(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else ""
