"""examples/README.md names every example, and only options that exist."""

from __future__ import annotations

import re

import pytest

from tests.examples.conftest import EXAMPLES, import_example

PAGE = (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_every_example_is_listed():
    listed = set(re.findall(r"`(\w+\.(?:py|ipynb))`", PAGE))
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}


def test_every_option_that_the_page_names_exists(capsys):
    pytest.importorskip("uvicorn")
    for name in ("server", "load_test"):
        with pytest.raises(SystemExit):
            import_example(name).main(["--help"])
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) - {"--data-binary"} <= known
