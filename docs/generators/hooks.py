"""Hooks of the docs site: pages that are made while it is built, and links that lead out of `docs/`.

- `index.md` is the README, and the other pages of `FROM_THE_ROOT` are the files beside it.
- `reference/cli.md` is Typer's reference of the command line.
- A link to a file that is no page must lead to one, and only its text is shown: the repository may be anywhere.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
FROM_THE_ROOT = {"index.md": "README.md"}  # page -> file
FROM_THE_ROOT |= {f"{name}.md": f"{name}.md" for name in ("CHANGELOG", "CODE_OF_CONDUCT", "CONTRIBUTING", "SECURITY")}
CLI = "reference/cli.md"

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, source in FROM_THE_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, CLI, content=_command_line()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files, **_: Any) -> str:
    source = FROM_THE_ROOT.get(page.file.src_uri)
    folder = posixpath.dirname(source if source is not None else f"docs/{page.file.src_uri}")
    pages = {f"docs/{file.src_uri}": file.src_uri for file in files.documentation_pages()}
    pages |= {file: name for name, file in FROM_THE_ROOT.items()}
    media = {f"docs/{file.src_uri}": file.src_uri for file in files.media_files()}
    here = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        image, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in pages or path in media:
            return f"{image}[{text}]({posixpath.relpath((pages | media)[path], here or '.')}{anchor})"
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri}: the link to {target} leads to no file")
        return text

    # What stands in a fence is no Markdown.
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in _FENCE.split(markdown))


def _command_line() -> str:
    """Of every command, as `typer utils docs` writes it."""
    import typer
    from typer.cli import get_docs_for_click

    from fencepost_cli.main import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="fencepost", title="Command line")
    return text.replace("\n\n# `fencepost`", "\n\n## `fencepost`", 1)
