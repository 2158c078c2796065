"""The tutorials, as they stand there: every command runs, in order, and prints what the page shows.

The pages after the first go on in its folder, so that one run serves them all.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pages
import pytest

from data_injection.corpus.prepare import prepare_embedded

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
FOLDERS = ("docs", "configs", "benchmarks", "examples", "packaging", ".github")
PREPARE = "olmo-ext prepare embedded --out corpus"
"""Half a minute, which tests/data_injection/corpus has already: here a few documents do."""


def follow(page: Path, *, folder: Path, exactly: bool = False) -> list[str]:
    """Do in a folder what a page says; the commands that ended or printed otherwise."""
    text, wrong = page.read_text(), []
    for name, content in pages.files(text).items():
        (folder / name).write_text(content)
    for line, shown in pages.commands(text):
        if line == PREPARE:
            continue
        status, printed = pages.run(line)
        expected = 2 if shown.startswith("error: ") else int("\ndiffers: " in shown)
        if status != expected or not pages.same(shown, printed, exactly=exactly):
            wrong.append(f"$ {line}\n{printed}\nstatus {status}; the page has\n{shown}")
    return wrong


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first tutorial was followed."""
    desk = tmp_path_factory.mktemp("desk")
    prepare_embedded(desk / "corpus", vocab_size=2048, max_documents=60)
    here = Path.cwd()
    os.chdir(desk)
    try:
        wrong = follow(TUTORIALS / "first-injection.md", folder=desk)
    finally:
        os.chdir(here)
    assert not wrong, "\n".join(wrong)
    return desk


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["own-task", "own-callback", "slurm-sweep", "audit-a-claim", "memorization"]
)
def test_a_tutorial_prints_what_it_shows(
    name: str, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(desk)
    assert "\n".join(follow(TUTORIALS / f"{name}.md", folder=desk)) == ""


def test_the_tutorial_on_budgets_shows_the_committed_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    assert "\n".join(follow(TUTORIALS / "loss-budget.md", folder=tmp_path, exactly=True)) == ""


def test_a_page_that_shows_something_else_is_found() -> None:
    for shown, printed in (
        ("3,200 rows", "3,201 rows"),
        ("rows ... a", "rows b"),
        ("score 0.5", "score none"),
        ("a ...", "b c"),
        ("rare", "rare 1"),
    ):
        assert not pages.same(shown, printed)
    assert not pages.same("score 0.5", "score 0.6", exactly=True)
    assert pages.same("score 0.5\n...\nend", "score  -0.61\nmore\nend")


PROGRAMS = re.compile(r"(olmo-ext|make|python3?) [^=]")


def test_every_command_of_every_page_can_be_typed() -> None:
    """Verbs, options, their values, settings, files, targets: nothing runs, so that pages on SLURM
    and GPUs are held to it too."""
    pages_of = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.md")))
    wrong, num = [], 0
    for page in (*sorted(ROOT.glob("*.md")), *pages_of):
        for line, mentioned in pages.typed(page.read_text()):
            if PROGRAMS.match(line):
                num += 1
                told = pages.problem(line, mentioned=mentioned)
                wrong += [f"{page.relative_to(ROOT)}: {line}: {told}"] if told else []
    assert wrong == []
    assert num > 150


def test_a_command_that_cannot_be_typed_is_found() -> None:
    for line, said in {
        "olmo-ext paint": "no verb",
        "olmo-ext report runs --loud": "--loud",
        "olmo-ext report": "Missing",
        "olmo-ext report runs --watch soon": "watch",
        "olmo-ext plan configs/none.yaml": "there is no",
        "olmo-ext train a.yaml -o train.sed=1": "Did you mean: 'seed'",
        "make tea": "target",
        "python benchmarks/loader.py --tea": "--tea",
    }.items():
        assert said in pages.problem(line, mentioned=False), line
    assert pages.problem("olmo-ext report RUN; echo status $?", mentioned=False) == ""


def test_every_tutorial_is_short_and_on_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    for page in sorted(TUTORIALS.glob("*.md")):
        assert f"tutorials/{page.name}" in site
        assert len(page.read_text().splitlines()) <= 120, page.name
