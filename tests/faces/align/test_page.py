"""The contact sheet: every photograph, the doubtful ones first."""

from __future__ import annotations

import re

import pytest

from facenet_port import main
from tests.faces.align.conftest import ONE, picture, write

pytest.importorskip("jinja2")


def test_every_photograph_is_shown_the_doubtful_ones_first(detector, tmp_path):
    folder = tmp_path / "photos"
    write(folder, "Ana/good.png", "Ana/<b>.png")
    for name, faces in {
        "several": (ONE, (2, 2, 12, 12, 240)),
        "low": ((40, 30, 42, 46, 230),),
        "small": ((40, 30, 30, 46, 250),),
        "nobody": (),
    }.items():
        picture(*faces).save(folder / f"Ana/{name}.png")
    (folder / "Ana/page.jpg").touch()
    report = tmp_path / "sheet.html"
    main(["align", str(folder), str(tmp_path / "crops"), "--quiet", "--report", str(report)])
    page = report.read_text()
    assert page.count("<img ") == 6
    assert page.count("data:image/jpeg;base64,") == 6
    captions = [re.sub("<wbr>|<[^>]*>", "", text) for text in re.findall("<figcaption>(.*?)</figc", page)]
    assert captions == [
        "Ana/page.jpgcannot be decoded as a photograph: it is empty. Leave it out, or save it again as JPEG "
        "or PNG.",
        "Ana/nobody.png",
        "Ana/several.png2 faces",
        "Ana/low.pngscore 0.90",
        "Ana/small.pnga face of 30 pixels",
        "Ana/&lt;b&gt;.png",
        "Ana/good.png",
    ]
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles[:-1] == [
        "Cannot be read",
        "No face",
        "Several faces",
        "A low score",
        "A small face",
        "One face, no doubt",
    ]
    assert "5 faces of 7 photographs; 2 without a crop." in re.sub("<wbr>", "", page)
