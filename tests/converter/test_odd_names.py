"""Paths with bytes that are not UTF-8, as old archives and foreign disks bring: read, written and shown."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from checks.audit.__main__ import main as audit
from checks.core.inputs import photograph_inputs, read_photographs
from checks.core.photographs import find_photographs
from converter.__main__ import main
from converter.convert import to_numpy_state_dict
from converter.formats.detect import open_source
from converter.formats.torch.state_dict import map_state_dict
from converter.plan import describe
from tests.conftest import same_bits

FOLDER, NAME = os.fsdecode(b"\xff"), os.fsdecode(b"caf\xe9")


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder whose name is not UTF-8."""
    folder = tmp_path / FOLDER
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    return folder


def link_checkpoint(checkpoint, folder: Path) -> Path:
    """Link the files of a checkpoint under a name that is not UTF-8, and return its prefix."""
    prefix = folder / f"model-{NAME}.ckpt-90"
    for old, ending in ((checkpoint.index, ".index"), (checkpoint.data, ".data-00000-of-00001")):
        prefix.with_name(prefix.name + ending).hardlink_to(old)
    prefix.with_name(f"model-{NAME}.meta").hardlink_to(checkpoint.meta)
    (folder / f"{NAME}.pb").hardlink_to(checkpoint.frozen)
    return prefix


@pytest.mark.slow
def test_every_format_is_read_and_written(checkpoint, tensors, odd: Path) -> None:
    prefix = link_checkpoint(checkpoint, odd)
    expected = to_numpy_state_dict(tensors)
    assert main([str(odd), "-o", str(odd / f"{NAME}.safetensors"), "--quiet"]) == 0
    with safe_open(odd / f"{NAME}.safetensors", "np") as file:
        assert [key for key in expected if not same_bits(file.get_tensor(key), expected[key])] == []
    assert main([str(prefix), "-o", str(odd / f"{NAME}.pt"), "--parts", "--quiet"]) == 0
    assert main([str(odd), "-o", str(odd), "--all-steps", "--quiet"]) == 0
    back = odd / f"back-{NAME}.ckpt-1"
    assert main([str(odd / f"{NAME}.safetensors"), "-o", str(back), "--to", "tensorflow", "--quiet"]) == 0
    written = Path(f"{back}.data-00000-of-00001").read_bytes()
    assert written == checkpoint.data.read_bytes()
    with open_source(odd / f"{NAME}.pb") as source:
        assert len(source) == 490


def test_a_state_dict_is_mapped(single_files, tensors, odd: Path) -> None:
    path = odd / f"{NAME}.pt"
    path.hardlink_to(single_files / "weights.pt")
    expected = to_numpy_state_dict(tensors)
    actual = map_state_dict(path, describe(expected))
    assert [key for key in expected if not same_bits(actual[key].numpy(), expected[key])] == []


@pytest.fixture
def small(small_source: Path, odd: Path) -> Path:
    """P-Net's weights under such a name."""
    path = odd / f"{NAME}.npy"
    path.hardlink_to(small_source)
    return path


def test_the_manifest_and_the_json_hold_the_exact_names(small: Path, odd: Path) -> None:
    output, result = odd / f"{NAME}.pt", odd / f"{NAME}.json"
    assert main([str(small), "-o", str(output), "--json", str(result), "--quiet"]) == 0
    content = json.loads(result.read_bytes().decode("ascii"))
    assert os.fsencode(content["source"]) == os.fsencode(small)
    assert set(content["outputs"]) == {str(output), f"{output}.json"}
    manifest = json.loads(Path(f"{output}.json").read_bytes().decode("ascii"))
    assert set(manifest["output"]) == {output.name}
    assert manifest["source"]["name"] == small.name


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_screen_shows_such_bytes_as_escapes(encoding: str, small: Path, odd: Path, monkeypatch) -> None:
    screen, errors = (io.TextIOWrapper(io.BytesIO(), encoding, "strict") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", errors)
    assert main([str(small), "-o", str(odd / f"{NAME}.pt")]) == 0
    screen.flush()
    assert b"/\\xff/caf\\xe9.pt" in screen.buffer.getvalue()
    assert errors.buffer.getvalue() == b""


def test_an_audit_reads_them_and_writes_its_page(checkpoint, single_files, odd: Path, capsys) -> None:
    pytest.importorskip("jinja2")
    prefix = link_checkpoint(checkpoint, odd)
    port = odd / f"{NAME}.h5"
    port.hardlink_to(single_files / "weights.h5")
    page, result = odd / f"{NAME}.html", odd / f"{NAME}.json"
    options = ["--against", str(prefix), "--report", str(page), "--json", str(result)]
    assert audit([str(port), *options]) == 0
    assert "caf\\xe9.h5 (Keras HDF5)" in capsys.readouterr().out
    assert "caf\\xe9.h5" in page.read_text("utf-8")
    assert os.fsencode(json.loads(result.read_text())["port"]) == os.fsencode(port)


@pytest.mark.slow
def test_tensorflow_reads_them(checkpoint, odd: Path) -> None:
    from checks.core.tensorflow_side import open_own_graph

    prefix = link_checkpoint(checkpoint, odd)
    with open_source(prefix) as source:
        graph = open_own_graph(source, "variable")
    assert graph is not None


def test_photographs_of_such_names_are_read_and_named(odd: Path) -> None:
    with (odd / f"{NAME}.png").open("wb") as file:
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(file, "PNG")
    (batch,) = photograph_inputs(read_photographs(find_photographs(odd)))
    assert batch.images.shape == (1, 160, 160, 3)


def test_an_error_about_such_a_file_is_one_message(odd: Path, capsys) -> None:
    for ending, content in (
        (".pt", b"PK\3\4"),
        (".h5", b"\x89HDF\r\n\x1a\n"),
        (".npy", b"\x93NUMPY"),
        (".pb", b"x"),
    ):
        path = odd / (NAME + ending)
        path.write_bytes(content * 9)
        assert main([str(path), "-o", str(odd / "w.pt")]) == 3
        assert f"caf\\xe9{ending}: " in capsys.readouterr().err
    assert main([str(odd / f"no-{NAME}"), "-o", str(odd / "w.pt")]) == 3
    assert "no-caf\\xe9: no such file" in capsys.readouterr().err
