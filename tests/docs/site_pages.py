"""Takes pages of the project's root into the site: a hook of mkdocs.yml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    from mkdocs.structure.files import File  # an extra: the tests import this folder without it

    for page in PAGES:
        text = (ROOT / page).read_text().replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let links lead to where the pages are in the site."""
    for page in PAGES:
        markdown = markdown.replace(f"](../{page}", f"]({page}")
    return markdown
