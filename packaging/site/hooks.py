"""What mkdocs does besides the pages of docs/: `make docs`, or mkdocs build --strict.

The start page is README.md. Files outside of docs/ that a page links to (code, configs, benchmarks)
come along as pages below source/, so that no link leaves the site for a forge it does not know. The
references are made by `reference.py`. A page that would load anything from a server is an error.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
from reference import PAGES

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
"""The path in a Markdown link, without its anchor; not a URL."""
LOADED = re.compile(
    r"<(?:link|script|img|iframe)\b[^>]*\b(?:href|src)=[\"']?((?:https?:)?//[^\s\"'>]*)"
)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json"}


def uri_of(path: str) -> str:
    """Where the site has a file or folder of the repository."""
    if path == "README.md":
        return "index.md"
    if (ROOT / path).is_dir():
        return f"source/{path}/index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{path.removesuffix('.md')}.md"


def relinked(text: str, path: str, note: Callable[[str], object] = lambda path: None) -> str:
    """The Markdown of a file or folder of the repository, its links as the site has them; `note`
    hears of each file that comes along because of a link."""
    base = path if (ROOT / path).is_dir() else posixpath.dirname(path)
    here = posixpath.dirname(uri_of(path)) or "."

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(base, match[1]))
        if not (ROOT / target).exists() or target.startswith(".."):
            return match[0]  # mkdocs says that it leads nowhere
        if uri_of(target).startswith("source/"):
            note(target)
        return posixpath.relpath(uri_of(target), here)

    return LINK.sub(moved, text)


def source_page(path: str) -> str:
    """A file as a page: Markdown as it is, other text as code, a folder as a list of its files."""
    file = ROOT / path
    if file.is_dir():
        names = sorted(p.name + "/" * p.is_dir() for p in file.iterdir() if p.name[0] not in "._")
        return f"# {path}/\n\n" + "".join(f"- [{n}]({n.rstrip('/')})\n" for n in names)
    if file.suffix == ".md":
        return file.read_text()
    language = LANGUAGES.get(file.suffix, "text")
    return f"# {path}\n\n~~~~~~{language}\n{file.read_text()}\n~~~~~~\n"


def linked_files(pages: Iterator[str]) -> dict[str, str]:
    """Each file that is no page of docs/ and that pages link to, or such files do, as a page."""
    found: dict[str, str] = {}
    waiting = ["README.md"]
    for path in pages:
        relinked((ROOT / path).read_text(), path, waiting.append)
    while waiting:
        path = waiting.pop()
        if path not in found:
            text = source_page(path)
            pure = path.endswith(".md") or (ROOT / path).is_dir()
            found[path] = relinked(text, path, waiting.append) if pure else text
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = (f"docs/{file.src_uri}" for file in list(files.documentation_pages()))
    made = {uri_of(path): text for path, text in linked_files(pages).items()}
    made |= {f"reference/{name}.md": make() for name, make in PAGES.items()}
    for uri, text in made.items():
        hidden = "---\nsearch: {exclude: true}\n---\n" if uri.startswith("source/") else ""
        files.append(File.generated(config, uri, content=hidden + text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.generated_by:
        return markdown
    return relinked(markdown, f"docs/{page.file.src_uri}")


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    if found := LOADED.findall(output):
        raise PluginError(
            f"{page.file.src_uri} would load {found[0]}; nothing may come from a server"
        )
    return output
