"""Render a page: the verdict at its head, the content of a command, the provenance at its foot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from checks.report.content import Head
from checks.report.provenance import Provenance
from converter.atomic import replace_file
from converter.command_line import ESCAPE

_KIT = Path(__file__).parent
_NUMBER = re.compile(r"(\b\d(?:\.\d{1,3})?e[-+]\d{1,3}\b)")
_BREAK = re.compile(r"(?<=/)(?=\w)|(?<=\.)(?=[a-z_])")  # after a slash or a dot, not in a decimal fraction


def write_html(path: Path, template: str, head: Head, provenance: Provenance, **content: Any) -> None:
    """Render a page and write it, whole or not at all.

    Args:
        path: The file to write; an older page is replaced.
        template: The path of the template within `checks`, such as "audit/page.html", or from the
            packages' folder, such as "faces/evaluate/page.html".
        head: The head of the page.
        provenance: The foot of the page.
        content: The variables of the template.

    Raises:
        UsageError: The folder does not exist, or the path is a folder.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([_KIT, _KIT.parent, _KIT.parents[1]]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"split": split, "zip": zip}
    environment.filters["breakable"] = breakable
    page = environment.get_template(template).render(head=head, provenance=provenance, **content)
    written = page.encode("utf-8", ESCAPE)
    replace_file(path, written)


def breakable(text: str) -> Markup:
    """Escape a text; lines may break after the dots and slashes of its names, not within its numbers."""
    pieces = _NUMBER.split(text)
    pieces[::2] = [Markup("<wbr>").join(map(escape, _BREAK.split(piece))) for piece in pieces[::2]]
    pieces[1::2] = [Markup('<span class="number">{}</span>').format(number) for number in pieces[1::2]]
    return Markup("").join(pieces)


def split(lines: Sequence[Any], most: int) -> tuple[Sequence[Any], Sequence[Any]]:
    """Split lines into those that are shown and those that are folded; a single line is never folded."""
    return (lines, ()) if len(lines) <= most + 1 else (lines[:most], lines[most:])
