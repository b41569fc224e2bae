"""Hook of MkDocs: generated pages, and README, CONTRIBUTING and CHANGELOG as pages of the site."""

from __future__ import annotations

import re
from pathlib import Path

import reference
from keys import config_page, plan_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages outside docs/, by their place in the site."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that no file of docs/ contains."""
    pages = {f"reference/{name}": text for name, text in reference.command_pages().items()}
    pages |= {"reference/index.md": reference.index_page()}
    pages |= {"reference/config.md": config_page(), "reference/plan.md": plan_page()}
    pages |= {target: from_root((ROOT / source).read_text(encoding="utf-8")) for source, target in PAGES.items()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page to files outside docs/ at their pages in the site, and set its place in the search."""
    uri = page.file.src_uri
    if uri.startswith("benchmark/") and uri != "benchmark/measurements.md":
        page.meta["search"] = {"exclude": True}  # tables of numbers match everything
    elif uri.startswith("reference/"):
        page.meta["search"] = {"boost": 2}
    for source, target in PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({target}")
    return markdown


def from_root(text: str) -> str:
    """Return a page of the repository's root with links that work from docs/."""
    text = re.sub(r"\]\(docs/", "](", text)
    text = re.sub(r"(src|href)=\"docs/", r'\1="', text)
    for source, target in PAGES.items():
        text = text.replace(f"]({source}", f"]({target}")
    return re.sub(r"\[(\w+)\]\(LICENSE\)", r"\1", text)
