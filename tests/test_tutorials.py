"""The pages, as they stand there: every command runs, in order, and prints what the page shows.

All go on in the folder of the first tutorial, so that one run serves them; what cannot run here is
in the table of tests/shared/elsewhere.py with its reason.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import shutil
from pathlib import Path

import pages
import pytest
from elsewhere import ELSEWHERE, elsewhere

from data_injection.corpus.embedded import embedded_documents
from data_injection.corpus.prepare import prepare_embedded

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
FOLDERS = ("docs", "configs", "benchmarks", "examples", "packaging", ".github")
PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in (
        *sorted(ROOT.glob("*.md")),
        *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("*.md"))),
    )
}
PREPARE = "olmo-ext prepare embedded --out "
"""Half a minute, which tests/data_injection/corpus has already: here a few documents do."""
COUNTS_TEXT = {"docs/data.md", "docs/reference_tasks.md", "docs/audit.md"}
"""Pages whose numbers are of the whole embedded text."""
FIRM = {"docs/advice.md", "docs/scaling.md", "docs/sweeps.md", "docs/clusters.md"}
"""Pages whose numbers are of committed records, or reckoned: here they come out again."""
RUN = [
    name
    for name, text in PAGES.items()
    if not name.startswith("docs/tutorials")
    and any(elsewhere(name, command.line) is None for command in pages.commands(text))
]


def follow(
    page: str, *, folder: Path, measured: re.Pattern[str] | None = pages.MEASURED
) -> list[str]:
    """Do in a folder what a page says; the commands that ended or printed otherwise."""
    text, wrong = PAGES[page], []
    for name, content in pages.files(text).items():
        (folder / name).write_text(content)
    for line, shown in pages.commands(text):
        if line.startswith(PREPARE) or elsewhere(page, line):
            continue
        status, printed = pages.run(line)
        expected = 2 if (shown or "").startswith("error: ") else int("\ndiffers: " in printed)
        within = 0.02 if page in FIRM else math.inf
        same = shown is None or pages.same(shown, printed, measured=measured, within=within)
        if status != expected or not same:
            wrong.append(f"$ {line}\n{printed}\nstatus {status}; the page has\n{shown}")
    return wrong


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a reader who followed the first tutorial, and fetched a little of Dolma."""
    desk = tmp_path_factory.mktemp("desk")
    prepare_embedded(desk / "corpus", vocab_size=2048, max_documents=60)
    for shipped in ("docs", "configs"):
        shutil.copytree(ROOT / shipped, desk / shipped)
    here = Path.cwd()
    os.chdir(desk)
    try:
        wrong = follow("docs/tutorials/first-injection.md", folder=desk)
    finally:
        os.chdir(here)
    assert not wrong, "\n".join(wrong)
    (desk / "runs" / "corpus").symlink_to("../corpus")
    (desk / "dolma-text").mkdir()
    for number, texts in enumerate(embedded_documents(max_documents=40)):
        lines = [json.dumps({"id": str(i), "text": text}) for i, text in enumerate(texts)]
        with gzip.open(desk / "dolma-text" / f"c4-{number:04}.json.gz", "wt") as file:
            file.write("\n".join(lines))
    return desk


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_a_page_prints_what_it_shows(
    page: str, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a copy of the folder, so that no page sees what another has left there."""
    shutil.copytree(desk, tmp_path / "desk", symlinks=True)
    monkeypatch.chdir(tmp_path / "desk")
    measured = pages.COUNTED if page in COUNTS_TEXT else pages.MEASURED
    assert "\n".join(follow(page, folder=Path(), measured=measured)) == ""


def test_a_command_is_run_or_it_is_said_why_not() -> None:
    commands = [(page, c.line) for page, text in PAGES.items() for c in pages.commands(text)]
    told = [reason for reason in (elsewhere(*command) for command in commands) if reason]
    for page, starts in ELSEWHERE.items():
        lines = [line for of, line in commands if of == page]
        for start in starts:
            assert any(f"{line}\n".startswith(start) for line in lines), (
                f"{page} has no more: {start}"
            )
    assert len(told) < len(commands) / 2, f"{len(told)} of {len(commands)} commands are not run"
    for page, text in PAGES.items():
        assert pages.unfenced(text) == [], f"{page}: put it into a block ```console or ```bash"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["own-task", "own-callback", "slurm-sweep", "audit-a-claim", "memorization"]
)
def test_a_tutorial_prints_what_it_shows(
    name: str, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(desk)
    assert "\n".join(follow(f"docs/tutorials/{name}.md", folder=desk)) == ""


def test_the_tutorial_on_budgets_shows_the_committed_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    wrong = follow("docs/tutorials/loss-budget.md", folder=tmp_path, measured=None)
    assert "\n".join(wrong) == ""


def test_a_page_that_shows_something_else_is_found() -> None:
    for shown, printed in (
        ("3,200 rows", "3,201 rows"),
        ("rows ... a", "rows b"),
        ("score 0.5", "score none"),
        ("a ...", "b c"),
        ("rare", "rare 1"),
    ):
        assert not pages.same(shown, printed)
    assert not pages.same("score 0.5", "score 0.6", measured=None)
    assert not pages.same("score 0.5 of 1.0", "score 0.6 of 1.0", within=0.1)
    assert pages.same("3 rows 0.50", "4 rows 0.51", measured=pages.COUNTED)
    assert pages.same("score 0.5\n...\nend", "score  -0.61\nmore\nend")


PROGRAMS = re.compile(r"(olmo-ext|make|python3?) [^=]")


def test_every_command_of_every_page_can_be_typed() -> None:
    """Verbs, options, their values, settings, files, targets: nothing runs, so that pages on SLURM
    and GPUs are held to it too."""
    wrong, num = [], 0
    for page, text in PAGES.items():
        for line, mentioned in pages.typed(text):
            if PROGRAMS.match(line):
                num += 1
                told = pages.problem(line, mentioned=mentioned)
                wrong += [f"{page}: {line}: {told}"] if told else []
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
