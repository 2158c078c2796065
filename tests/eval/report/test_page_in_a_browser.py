"""The report in headless Chromium: nothing fails in it, tables sort, and no name of a run acts.

Needs Debian's `chromium` and `chromium-driver`, which CI installs; skipped where they are not.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.records import RecordWriter
from eval.report.write import write_report

DRIVER = "/usr/bin/chromedriver"
FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"),
    *("disable-background-networking", "disable-component-update", "disable-dev-shm-usage"),
)
ACT = "document.title='caught'"
EVIL = f'</td></svg><img src=x onerror="{ACT}"><script>{ACT}</script>'

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (Path(DRIVER).exists() and shutil.which("chromium")), reason="no chromium-driver here"
    ),
]


def records(rung: str, *, seed: int) -> Iterator[dict[str, Any]]:
    """A run with names of the worst kind, and a score that rises with size."""
    for step in (0, 50, 100):
        shared = {
            **{"run": f"{EVIL} {rung}-s{seed}", "rung": rung, "params": int(rung[1:]) * 1000},
            **{"seed": seed, "plan_hash": "h", "protocol": "mixture", "step": step},
            **{"tokens": step * 2048, "rate_per_step": 0.0, "exposures_per_example": 0.0},
        }
        empty = {"task": "", "family": "", "split": "train", "metric": "train_loss", "value": 5.0}
        yield shared | empty
        for rate in (8.0, 2.0, 0.5):
            score = min(step / 100, int(rung[1:]) * rate / 100)
            values = {"score": score, "label_loss": 2 - score, "choice_loss": 1 - score}
            values |= {"format_loss": 1.0, "label_entropy": 0.7, "label_accuracy": score}
            for split in ("train", "test"):
                for metric, value in values.items():
                    told = {"task": f"{EVIL} {rate:g}", "family": EVIL, "rate_per_step": rate}
                    told |= {"exposures_per_example": rate, "split": split, "subset": "all"}
                    yield shared | told | {"metric": metric, "value": value}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 60 runs: 4 sizes of 15 seeds."""
    sweep = tmp_path_factory.mktemp("sweep")
    for rung in ("w8", "w16", "w32", "w64"):
        for seed in range(15):
            folder = sweep / f"{rung}-s{seed}"
            with RecordWriter(folder / "records.jsonl") as writer:
                writer.write(records(rung, seed=seed))
            tasks = {EVIL: {"per_step": 8.0, "instances": 800}}
            (folder / "run.json").write_text(
                json.dumps({"num_steps": 100, EVIL: 1, "tasks": tasks})
            )
    return write_report(sweep)


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(service=Service(DRIVER), options=options)
    driver.set_page_load_timeout(300)
    driver.get(page.as_uri())
    yield driver
    driver.quit()


def test_a_page_of_sixty_runs_is_small(page: Path) -> None:
    assert page.stat().st_size < 10_000_000


def test_figures_are_drawn_and_nothing_fails_or_acts(browser: Any) -> None:
    # What else a browser remarks depends on its version.
    assert [one for one in browser.get_log("browser") if one["level"] == "SEVERE"] == []
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(svg => {"
        "const box = svg.getBoundingClientRect(); return [box.width, box.height]})"
    )
    assert len(sizes) == 5  # heatmap, curves, training, train_test, choice_format
    assert all(width > 300 and height > 100 for width, height in sizes)
    assert "caught" not in browser.title
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    assert browser.execute_script("return document.scripts.length") == 1
    assert EVIL in browser.execute_script("return document.body.textContent")


def test_a_click_on_a_head_sorts_by_number_and_a_second_one_turns_it(browser: Any) -> None:
    column = (
        "const head = [...document.querySelectorAll('#cells ~ .wide th')]"
        ".find(one => one.textContent === 'rate / step'); head.click();"
        "return [...head.closest('table').tBodies[0].rows]"
        ".map(row => row.cells[head.cellIndex].textContent)"
    )
    up, down = browser.execute_script(column), browser.execute_script(column)
    assert up == ["0.5"] * 4 + ["2"] * 4 + ["8"] * 4
    assert down == up[::-1]


def test_dark_and_print_have_colours_of_their_own(browser: Any) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('figure svg text')).fill"
    curve = """figure[id="curves.png"] path[clip-path][style*="--c440154"]"""
    line = f"getComputedStyle(document.querySelector('{curve}')).stroke"

    def seen(media: str, scheme: str) -> list[str]:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        told = {"media": media, "features": features}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", told)
        return list(browser.execute_script(f"return [{paper}, {ink}, {line}]"))

    light = ["rgb(255, 255, 255)", "rgb(26, 26, 26)", "rgb(68, 1, 84)"]
    assert seen("screen", "light") == light
    assert seen("screen", "dark")[:2] == ["rgb(22, 24, 26)", "rgb(232, 232, 230)"]
    red, green, _ = (int(one) for one in re.findall(r"\d+", seen("screen", "dark")[2]))
    assert min(red, green) > 200  # as bright there as it is dark on white
    assert seen("print", "dark")[::2] == light[::2]
