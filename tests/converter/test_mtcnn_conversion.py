"""Networks of MTCNN converted in both directions: bit for bit, and the .npy files of facenet byte for byte.

What runs on published weights needs a package index, once; without one it is skipped.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from converter.__main__ import main
from converter.convert import to_pytorch, to_tensorflow
from converter.convert_file import convert_file
from converter.errors import UsageError
from converter.formats.detect import open_source
from converter.formats.numpy_arrays_writer import write_numpy_pickle
from converter.mtcnn_layer_map import NETWORKS, MtcnnNetwork
from converter.plan import MappingError, describe, plan_conversion
from reference import load
from tests.conftest import MTCNN_FILES, random_bits, same_bits
from tests.support.numpy_files import by_python2, small_network

SHORT = {"P-Net": "pnet", "R-Net": "rnet", "O-Net": "onet"}
Variables = dict[str, NDArray[Any]]


def variables_of(name: str) -> Variables:
    return {row.variable: random_bits(row.shape, seed) for seed, row in enumerate(NETWORKS[name])}


def write_det(folder: Path, name: str) -> tuple[Path, Variables]:
    """A network with random bits, as facenet's file of another name."""
    layers: dict[str, dict[str, NDArray[Any]]] = {}
    variables = variables_of(name)
    for variable, array in variables.items():
        layer, _, parameter = variable.partition("/")
        layers.setdefault(layer, {})[parameter] = array
    path = folder / "source.npy"
    path.write_bytes(by_python2(layers))
    return path, variables


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(list(map(str, arguments)))
    said = capsys.readouterr()
    return code, said.out, said.err


# The functions


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back_bit_for_bit(name: str) -> None:
    variables = variables_of(name)
    state_dict = to_pytorch(variables)
    assert list(state_dict) == [row.key for row in NETWORKS[name]]
    again = to_tensorflow(state_dict)
    assert set(again) == set(variables)
    assert all(same_bits(again[variable], array) for variable, array in variables.items())
    prefixed = {f"module.{SHORT[name]}.{key}": tensor for key, tensor in state_dict.items()}
    assert all(same_bits(to_tensorflow(prefixed)[variable], array) for variable, array in variables.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_plan_names_every_problem(name: str) -> None:
    variables = variables_of(name)
    assert plan_conversion(describe(variables)).network == MtcnnNetwork(name)
    missing, misshapen = next(iter(variables)), list(variables)[-2]
    del variables[missing]
    variables[misshapen] = variables[misshapen].T[:-1]
    variables["other/weights"] = np.zeros(3, np.float32)
    with pytest.raises(MappingError) as caught:
        plan_conversion(describe(variables))
    assert {(problem.kind, problem.name) for problem in caught.value.problems} == {
        ("missing", missing),
        ("misshapen", misshapen),
        ("unexpected", "other/weights"),
    }
    assert f"not the tensors of the {name} of MTCNN: 1 missing, 1 misshapen, 1 unexpected" in str(
        caught.value
    )
    with pytest.raises(MappingError, match="Leave out --weights average"):
        plan_conversion(describe(variables_of(name)), weights="average")


# The command


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_of_facenet_becomes_a_state_dict(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, variables = write_det(tmp_path, name)
    expected = {
        key: tensor.numpy()
        for key, tensor in to_pytorch(variables).items()  # proven against the published files elsewhere
    }
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, source, "--json", "result.json")
    port = tmp_path / f"{SHORT[name]}.pt"
    count = len(expected)
    assert code == 0
    assert f"the {name} of MTCNN, from the variables" in out
    assert f"{count} of {count} variables consumed, {count} of {count} keys produced" in out
    state_dict = torch.load(port, weights_only=True)
    assert list(state_dict) == list(expected)
    assert all(same_bits(state_dict[key], array) for key, array in expected.items())
    manifest = json.loads((tmp_path / f"{port.name}.json").read_text())
    assert manifest["network"] == {"architecture": SHORT[name][0].upper() + "Net", "weights": "variable"}
    assert [entry["key"] for entry in manifest["tensors"]] == list(expected)
    assert manifest["output"] == {port.name: hashlib.sha256(port.read_bytes()).hexdigest()}
    written = json.loads((tmp_path / "result.json").read_text())
    assert (written["architecture"], written["converted"]) == (manifest["network"]["architecture"], count)
    assert run(capsys, source, "-o", "port.safetensors")[0] == 0
    assert all(same_bits(array, expected[key]) for key, array in load_file("port.safetensors").items())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_state_dict_becomes_the_file_of_facenet(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, variables = write_det(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    torch.save({f"net.{key}": tensor for key, tensor in to_pytorch(variables).items()}, "port.pt")
    assert run(capsys, "port.pt", "-o", "by-name.npy")[0] == 0
    assert run(capsys, "port.pt", "--to", "tensorflow", "--quiet")[0] == 0
    default = Path(MTCNN_FILES[name][0])
    assert default.read_bytes() == Path("by-name.npy").read_bytes()
    # The judge is NumPy, as facenet calls it; the file is this test's own.
    layers = np.load(default, allow_pickle=True, encoding="latin1").item()
    judge = {f"{layer}/{each}": array for layer, arrays in layers.items() for each, array in arrays.items()}
    assert set(judge) == set(variables)
    assert all(same_bits(judge[variable], array) for variable, array in variables.items())
    assert json.loads(Path(f"{default}.json").read_text())["output"].keys() == {default.name}


def test_the_writer_gives_the_bytes_of_numpy_under_python_2(tmp_path: Path) -> None:
    """The published files are the judge below; this one holds more than they do."""
    tensors = {
        f"layer{number}/{kind}": np.full((number + 1, 300), number, np.float32, order="F")
        for number in range(130)
        for kind in ("weights", "biases")
    }  # more objects than a number of one byte counts, and extents of more than one byte
    tensors |= {"one/scalar": np.array(1.5, np.float32), "wide/alpha": np.zeros(70_000, np.float32)}
    write_numpy_pickle(tmp_path / "written.npy", tensors)
    layers = np.load(tmp_path / "written.npy", allow_pickle=True, encoding="latin1").item()
    with open_source(tmp_path / "written.npy") as source:
        for name, array in tensors.items():
            layer, _, kind = name.partition("/")
            assert same_bits(layers[layer][kind], array)
            assert same_bits(source[name], array)
    for name, array in (
        ("a/b/c", np.zeros(1, np.float32)),
        ("a", np.zeros(1, np.float32)),
        ("a/b", np.zeros(1)),
    ):
        with pytest.raises(ValueError, match="cannot be written"):
            write_numpy_pickle(tmp_path / "refused.npy", {name: array})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "tensorflow", "-o", "model.ckpt-0"], "Give a name such as det1.npy"),
        (["--parts", "-o", "parts.pt"], "--parts needs a source with logits"),
        (["-o", "pnet.npy", "--format", "pt"], "the ending says npy, but the format is pt"),
        (["-o", "pnet.npz"], "the converter writes no file that ends in .npz"),
        (["--weights", "average", "-o", "out.pt"], "Leave out --weights average"),
    ],
)
def test_options_that_do_not_fit(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, _ = write_det(tmp_path, "P-Net")
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, source, *arguments)
    assert code == (3 if "average" in arguments else 2)
    assert out == "" and message in err
    assert [path.name for path in tmp_path.iterdir()] == ["source.npy"]


def test_the_large_network_is_no_npy_file(
    single_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["-o", tmp_path / "det1.npy"], ["-o", tmp_path / "det1.npy", "--to", "tensorflow"]):
        code, out, err = run(capsys, single_files / "weights.safetensors", *arguments)
        assert (code, out) == (2, "")
        assert ".npy is the format of MTCNN's networks" in err
        assert not list(tmp_path.iterdir())


def test_another_npy_file_is_none_of_mtcnn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.npy"
    path.write_bytes(by_python2({"conv1": small_network()["conv4-1"]}))
    code, _, err = run(capsys, path, "-o", tmp_path / "out.pt")
    assert code == 3 and "not an Inception-ResNet-v1: none of its 2 tensors" in err
    assert "MTCNN" not in err


def test_half_precision_is_cast_and_values_that_are_not_finite_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state_dict = {row.key: torch.ones(row.info.shape) for row in NETWORKS["P-Net"]}
    state_dict["conv2.weight"][0, 0, 0, 0] = float("nan")
    torch.save({key: tensor.half() for key, tensor in state_dict.items()}, tmp_path / "half.pt")
    code, out, err = run(capsys, tmp_path / "half.pt", "-o", tmp_path / "whole.npy")
    assert code == 0
    assert "float16" in out
    assert "1 of 13 tensors holds values that are not finite: conv2.weight" in err
    assert main([str(tmp_path / "half.pt"), "-o", str(tmp_path / "strict.npy"), "--strict"]) == 3


@pytest.mark.parametrize("name", NETWORKS)
def test_reference_loads_the_network_that_a_file_needs(name: str, tmp_path: Path) -> None:
    source, variables = write_det(tmp_path, name)
    convert_file(source, tmp_path / "port.pt")
    with pytest.warns(UserWarning, match="not finite"):  # random bits
        model = load(tmp_path / "port.pt")
    assert type(model).__name__ == SHORT[name][0].upper() + "Net"
    assert not model.training
    expected = to_pytorch(variables)
    assert all(same_bits(tensor, expected[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(UsageError, match="Convert it first"):
        load(source)


# Real weights


@pytest.mark.real
@pytest.mark.parametrize("name", NETWORKS)
def test_the_published_files_come_back_byte_for_byte(
    name: str, mtcnn_files: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    original, published = mtcnn_files[name]
    convert_file(original, tmp_path / "port.pt")
    ours, theirs = (torch.load(path, weights_only=True) for path in (tmp_path / "port.pt", published))
    assert list(ours) == list(theirs)
    assert all(same_bits(ours[key], theirs[key]) for key in theirs)
    for port in (tmp_path / "port.pt", published):
        convert_file(port, tmp_path / original.name, output_format="npy", overwrite=True)
        assert (tmp_path / original.name).read_bytes() == original.read_bytes()
