"""TorchScript and exported programs: refused by name, with a line that writes the weights."""

import re
import warnings
from pathlib import Path

import pytest
import torch

from converter.__main__ import main
from converter.errors import SourceError
from converter.formats.detect import open_source


@pytest.fixture
def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2)).eval()


def save(model: torch.nn.Module, kind: str, path: Path) -> None:
    images = torch.zeros(1, 3, 8, 8)
    with warnings.catch_warnings(action="ignore"):
        if kind == "script":
            torch.jit.script(model).save(path)
        elif kind == "trace":
            torch.jit.save(torch.jit.trace(model, images), path)
        elif kind == "mobile":
            torch.jit.script(model)._save_for_lite_interpreter(str(path))
        elif kind == "frozen":
            torch.jit.freeze(torch.jit.script(model)).save(path)
        else:
            torch.export.save(torch.export.export(model, (images,)), path)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("script", "this is a TorchScript file: it holds code beside the weights"),
        ("trace", "this is a TorchScript file: it holds code beside the weights"),
        ("mobile", "this is a TorchScript file: it holds code beside the weights"),
        ("export", "this is an exported program (torch.export): it holds code beside the weights"),
    ],
)
def test_the_line_in_the_message_writes_the_weights(kind, says, model, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("facenet.pt2" if kind == "export" else "facenet.pt")
    save(model, kind, path)
    assert main([str(path), "-o", "w.pt"]) == 3
    error = capsys.readouterr().err
    assert says in error
    line = re.search(r"write its weights with: (torch\.save\(.*\))\.\n", error)
    assert line is not None
    with warnings.catch_warnings(action="ignore"):
        exec(line[1], {"torch": torch})
    with open_source("weights.pt") as source:
        expected = model.state_dict()
        assert set(source) == set(expected)
        assert all((torch.from_numpy(source[name].copy()) == expected[name]).all() for name in expected)


def test_a_frozen_module_has_no_names_left(model, tmp_path: Path) -> None:
    save(model, "frozen", tmp_path / "frozen.pt")
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path / "frozen.pt")
    assert "whose weights have become constants without names (torch.jit.freeze). Ask its author" in str(
        caught.value
    )
