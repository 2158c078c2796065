"""The house holds its shape: who imports whom, how long a file is.

    python tests/test_architecture.py       # lines by room, and of the path in docs/reading.md

docs/architecture.md draws the arrows and says where a new thing goes. Imports inside functions and
for type checking count: an arrow is about what a reader has to know, not about when Python looks.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("data_injection", "olmo_ext", "eval", "launch", "theory")
MAY_IMPORT = {
    "data_injection": set(),
    "theory": set(),
    "eval": {"data_injection", "theory"},
    "olmo_ext": {"data_injection", "eval"},
    "launch": {"data_injection", "eval", "olmo_ext", "theory"},
}
LAYERS = {
    "eval": (
        {"advice", "findings"},
        {"report"},
        {"figures"},
        {"interference", "retention", "reference"},
        {"scores", "features"},
        {"alignment", "audit", "export"},
        {"checkpoints"},
        {"records"},
        {"run", "record_lines", "statistics", "text", "commit", "processes"},
    ),
    "launch": (
        {"__main__"},
        {"cli"},
        {"doctor", "verify", "sweep", "slurm", "plan", "scaling", "lab", "show"},
        {"train", "runs", "reckon"},
        {"grid", "grid_loader"},
        {"terminal", "yaml_file", "json_file"},
    ),
}
"""From the top down: a part imports from parts below it and from itself, never beside or above."""
THEORY = {"eval.advice", "eval.figures", "eval.findings"}
"""The parts of eval that lay measurements beside predictions."""
ENGINE = {"olmo_ext", "eval.checkpoints", "launch"}
CORE = {"olmo_ext.core.compat", "eval.checkpoints.core"}
HEAVY = (
    "torch",
    "olmo",
    "olmo_core",
    "numpy",
    "pandas",
    "scipy",
    "matplotlib",
    "sklearn",
    "transformers",
    "wandb",
)

MOST_LINES_OF_A_FILE = 350
MOST_MODULES_OF_A_FOLDER = 14
MOST_LINES_OF_THE_PATH = 3_100
MOST_LINES_OF_THE_ROOMS = 42_488
"""Far from the aim, 28,500: shared scaffolding is worth hundreds of lines, the rest would be
function. Raised by the loss budget, by what refuses, resumes and tells of bad input, by OLMo-core
and by the report; lower it whenever something has gone."""


@cache
def modules() -> dict[str, Path]:
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


@cache
def imports() -> tuple[tuple[str, str, int], ...]:
    """(module, what it imports, line) of every import in the rooms."""
    return tuple(
        (name, target, line)
        for name, path in modules().items()
        for target, line in _imports_of(path)
    )


def _imports_of(path: Path, *, typing: bool = True) -> Iterator[tuple[str, int]]:
    tree = ast.parse(path.read_text())
    left_out = set()
    for node in ast.walk(tree):
        if not typing and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            left_out |= {id(child) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides its room"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield (module if module in modules() else str(node.module)), node.lineno


def part(module: str) -> str:
    """The room, or inside a layered one the folder or file below it: eval.scores."""
    room, *below = module.split(".")
    return ".".join((room, *below[:1])) if room in LAYERS else room


def line_counts(paths: Iterator[Path] | list[Path]) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def room_files(room: str) -> list[Path]:
    return [
        p for p in (ROOT / room).rglob("*") if p.suffix == ".py" or p.parent.name == "templates"
    ]


def evening_path() -> list[Path]:
    """The files that docs/reading.md walks, in its order: its headings link to them."""
    text = (ROOT / "docs" / "reading.md").read_text()
    links = re.findall(r"^#+ .*\]\(\.\./([^)]+\.py)\)", text, flags=re.MULTILINE)
    return [ROOT / link for link in dict.fromkeys(links)]


def test_no_room_imports_one_that_it_may_not() -> None:
    wrong = [
        f"{module}:{line} imports {target}"
        for module, target, line in imports()
        for room, other in [(module.split(".")[0], target.split(".")[0])]
        if other in ROOMS and other != room and other not in MAY_IMPORT[room]
    ]
    assert not wrong


def test_inside_a_room_nothing_points_up_or_sideways() -> None:
    wrong = []
    for room, layers in LAYERS.items():
        rank = {f"{room}.{name}": i for i, layer in enumerate(layers) for name in layer}
        parts = {part(module) for module in modules() if module.startswith(f"{room}.")}
        assert parts == set(rank), f"{room}: these have no layer, or are gone: {parts ^ set(rank)}"
        for module, target, line in imports():
            here, there = part(module), part(target)
            known = here in rank and there in rank and here != there
            if known and rank[there] <= rank[here]:
                wrong.append(f"{module}:{line} imports {target}")
    assert not wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for module, path in modules().items():
        # A name that only annotations use makes no circle of what runs.
        graph[module] = {t for t, _ in _imports_of(path, typing=False) if t in graph} - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_the_rooms_that_may_know_the_engine_and_the_theory() -> None:
    wrong = []
    for module, target, line in imports():
        here, (room, *_), (other, *_) = part(module), module.split("."), target.split(".")
        engine = other == "olmo" and not {room, here} & ENGINE
        engine |= other == "olmo_core" and module not in CORE
        theory = other == "theory" and room == "eval" and here not in THEORY
        torch = other == "torch" and room == "data_injection"
        if engine or theory or torch:
            wrong.append(f"{module}:{line} imports {target}")
    assert not wrong


def test_the_command_starts_without_any_heavy_import() -> None:
    ask = f"import sys, launch.cli; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_file_is_too_long_and_no_folder_too_full() -> None:
    lengths = {name: line_counts([path]) for name, path in modules().items()}
    assert {n: lines for n, lines in lengths.items() if lines > MOST_LINES_OF_A_FILE} == {}
    folders = [path.parent for path in modules().values() if path.name != "__init__.py"]
    assert {f for f in folders if folders.count(f) > MOST_MODULES_OF_A_FOLDER} == set()


def test_an_error_of_input_says_what_it_is_about() -> None:
    """A key, its rule and remedy: what a program can take apart, and a test can ask for."""
    prose = [
        str(path.relative_to(ROOT))
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("ConfigError", "DivergedError")
        if not {word.arg for word in node.keywords} & {"key", None}
    ]
    assert prose == []


def test_tests_ask_an_error_for_its_key_and_not_for_its_text() -> None:
    """By refuses() of tests/shared/refusals.py; what is printed is for the tests of the edge."""
    prose = re.compile(r"raises\(\s*(ConfigError|DivergedError),\s*match=")
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert [str(p.relative_to(ROOT)) for p in tests if prose.search(p.read_text())] == []


def test_the_rooms_stay_small() -> None:
    assert sum(line_counts(room_files(room)) for room in ROOMS) <= MOST_LINES_OF_THE_ROOMS


def test_the_evenings_reading_is_one_evenings() -> None:
    assert len(evening_path()) > 10
    assert line_counts(evening_path()) <= MOST_LINES_OF_THE_PATH
    assert all(path.is_file() for path in evening_path())


if __name__ == "__main__":
    for room in ROOMS:
        print(f"{line_counts(room_files(room)):7,} {room}")
    print(f"{sum(line_counts(room_files(room)) for room in ROOMS):7,} rooms")
    for path in evening_path():
        print(f"{line_counts([path]):7,} {path.relative_to(ROOT)}")
    print(f"{line_counts(evening_path()):7,} the path of docs/reading.md")
