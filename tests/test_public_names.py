"""Every name of docs/reference/api.md can be imported and says what it is and what it raises."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import griffe
import pytest

ROOT = Path(__file__).parents[1]
NAMES = re.findall(r"^::: (\S+)$", (ROOT / "docs/reference/api.md").read_text(), re.MULTILINE)


def documented(path: str) -> Iterator[griffe.Object | griffe.Alias]:
    """A public name and, of a class, its public members that are its own."""
    module, _, name = path.rpartition(".")
    file = ROOT / f"{module.replace('.', '/')}.py"
    found = griffe.visit(module, filepath=file, code=file.read_text())[name]
    yield found
    if found.is_class:
        own = (member for key, member in found.members.items() if not key.startswith("_"))
        yield from (member for member in own if not member.is_attribute or in_class(member))


def in_class(member: griffe.Object | griffe.Alias) -> bool:
    """Whether an attribute is declared in the body: what __init__ sets has its place there."""
    return "instance-attribute" not in member.labels or "class-attribute" in member.labels


def raised(member: griffe.Object | griffe.Alias) -> set[str]:
    """Names of the errors that a function's own body raises."""
    if not member.is_function or "property" in member.labels:
        return set()
    tree = ast.parse(dedent("\n".join(member.lines)))
    errors = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc)
    names = (re.match(r"\w+Error", ast.unparse(error)) for error in errors)
    return {name[0] for name in names if name}


@pytest.mark.parametrize("path", NAMES)
def test_a_public_name_is_documented(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert hasattr(importlib.import_module(module), name)
    for member in documented(path):
        said = member.docstring.value if member.docstring else ""
        assert said, f"{member.path} has no docstring"
        for error in raised(member):
            assert error in said, f"{member.path} raises {error} and does not say so"


def test_there_are_public_names_of_every_kind() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 20
    assert {name.split(".")[0] for name in NAMES} == {"data_injection", "olmo_ext", "eval"}


def test_what_the_package_itself_offers_is_on_the_page_and_imported_when_asked_for() -> None:
    import olmo_ext

    assert set(olmo_ext.PUBLIC.values()) <= set(NAMES)
    for name, path in olmo_ext.PUBLIC.items():
        module, _, found = path.rpartition(".")
        assert getattr(olmo_ext, name) is getattr(importlib.import_module(module), found)
    assert not hasattr(olmo_ext, "paint")
    ask = "import sys, olmo_ext; print({'torch', 'olmo', 'numpy', 'pandas'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
