"""The docs as a site: every page builds without a warning, and nothing comes from a server."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbclient
import nbformat
import pytest
import typer.main

from data_injection.config import InjectionConfig, ScheduleConfig, TaskConfig
from launch.cli import app

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "packaging/site/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_site_builds_strictly_and_its_references_are_whole(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    search = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=search, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.stem: path.read_text() for path in (tmp_path / "reference").glob("*.html")}
    for verb in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"<code>olmo-ext {verb}</code>" in pages["cli"], verb
    for section in (InjectionConfig, TaskConfig, ScheduleConfig):
        for field in dataclasses.fields(section):
            assert re.search(rf"<code>injection[\w.\[\]]*\.{field.name}</code>", pages["config"])
    assert "must be in [0, 4294967295]" in pages["config"]
    assert "<code>str or None</code>" in pages["config"]
    assert "exposures_per_example" in pages["records"]
    assert "Read an experiment from YAML" in pages["api"]
    assert (tmp_path / "source/olmo_ext/config.py.html").is_file()
    assert "fonts.googleapis" not in (tmp_path / "index.html").read_text()


def test_a_page_that_would_load_from_a_server_is_found(hooks: ModuleType) -> None:
    for html in ('<script async src="https://a.b/c.js">', "<link rel=x href=//a.b/c.css>"):
        assert hooks.LOADED.search(html)
    for html in ('<a href="https://arxiv.org">', '<img alt="" src="quickstart/heatmap.png">'):
        assert not hooks.LOADED.search(html)


def test_links_lead_to_where_the_site_has_the_file(hooks: ModuleType) -> None:
    linked: list[str] = []
    text = "[a](../README.md#b) [c](../configs/sites) [d](data.md) [e](https://x.y) [f](../gone.py)"
    moved = hooks.relinked(text, "docs/clusters.md", linked.append)
    assert moved == (
        "[a](index.md#b) [c](source/configs/sites/index.md) [d](data.md) [e](https://x.y) "
        "[f](../gone.py)"
    )
    assert linked == ["configs/sites"]


@pytest.mark.slow
def test_the_notebook_redraws_the_main_figure() -> None:
    path = ROOT / "docs" / "notebooks" / "main_figure.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    client = nbclient.NotebookClient(
        notebook,
        resources={"metadata": {"path": str(path.parent)}},
        timeout=None,
        startup_timeout=600,  # 60 by itself, which a loaded machine needs
    )
    client.execute(env=os.environ | {"PYTHONPATH": str(ROOT)})
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    shown = [out.data for out in outputs if "data" in out]
    table = (ROOT / "docs" / "quickstart" / "cells.md").read_text()
    assert any(data.get("text/markdown") == table for data in shown)
    assert any(len(data.get("image/png", "")) > 20_000 for data in shown)
