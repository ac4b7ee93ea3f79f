"""A hook of mkdocs: Markdown files outside the folder docs become pages of the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT_PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
    "examples/android.md": "android.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root, with their links as the site needs them."""
    root = Path(config.config_file_path).parent
    for name, page in ROOT_PAGES.items():
        text = (root / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=site_links(text)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn a page's links to files of the root into links to their pages."""
    return site_links(markdown)


def site_links(text: str) -> str:
    """Rewrite links: `docs/x.md` is `x.md` in the site, and `../SECURITY.md` is `security.md`."""

    def rewrite(match: re.Match[str]) -> str:
        target = match["target"].removeprefix("../").removeprefix("docs/")
        return f"]({ROOT_PAGES.get(target, target)}{match['anchor']})"

    return re.sub(r"\]\((?!\w+:)(?P<target>[^)#\s]+)(?P<anchor>(?:#[^)\s]*)?)\)", rewrite, text)
