"""Comparisons of MTCNN's networks: the published files are proven, every planted fault is found and named.

The weights are published ones from a package index; without an index every test is skipped, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("tensorflow")

from checks.compare.__main__ import main
from checks.compare.expected import ExpectedInput
from checks.compare.judge import judge_mapping, judge_rounding
from checks.compare.measure import run_and_measure
from checks.compare.result import InputMeasurement
from checks.compare.run import compare
from checks.core import thresholds
from checks.core.activations import activations_of
from checks.core.inputs import InputBatch, inputs_of
from checks.core.models import Port, build_port
from checks.core.source_tensors import BrokenSource
from checks.core.tensorflow_side import Activations, TensorFlowSide
from checks.diagnosis.causes import Cause
from checks.gradients.__main__ import main as gradients
from converter.formats.detect import open_source
from converter.mtcnn_layer_map import NETWORKS, MtcnnNetwork
from tests.support.first_images import TAKEN_FROM, four_images

pytestmark = pytest.mark.real

StateDict = dict[str, Tensor]
Files = dict[str, tuple[Path, Path]]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_published_networks_are_proven(name: str, mtcnn_files: Files, photographs: Path) -> None:
    original, port = mtcnn_files[name]
    result = compare(original, state_dict=port, images=photographs)
    assert result.passed, result.judgements
    assert [judgement.name for judgement in result.judgements] == ["tensors", "mapping", "rounding"]
    tensors, mapping, rounding = result.judgements
    assert f"{len(NETWORKS[name])} converted bit for bit" in tensors.statement
    assert mapping.share is not None and mapping.share < 0.5
    assert rounding.share is not None and rounding.share < 0.5
    crops = "photographs" if name == "P-Net" else "crops of photographs"
    inputs = [batch.name for batch in result.inputs]
    assert inputs[:4] == ["standard normal", "smooth", "constant", "near-black"]
    assert ("odd size 37x29" in inputs) is (name == "P-Net")
    assert f"{crops} 1-5" in inputs and f"{crops} 6-10" in inputs
    for batch in result.inputs:
        assert len(batch.activations) == len(batch.rounding) == {"P-Net": 10, "R-Net": 13, "O-Net": 17}[name]
        assert all(measured.float32.relative_l2 < 5e-6 for measured in batch.activations)


@pytest.mark.slow
def test_the_command(
    mtcnn_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, _ = mtcnn_files["P-Net"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TAKEN_FROM, four_images)
    files = ["--json", "result.json", "--report", "page.html", "--save-activations", "stored.h5"]
    assert main([str(original), "--verbose", *files]) == 0
    out = capsys.readouterr().out
    assert "The port is exact" in out and "float64: outputs" in out and "✕" not in out
    written = json.loads(Path("result.json").read_text())
    assert written["passed"] is True and written["variant"] == {"name": "P-Net"}
    assert "P-Net of MTCNN" in Path("page.html").read_text()
    # The stored activations judge a port without TensorFlow, and with the source they name the cause.
    torch.save(exchange_axes(torch.load(mtcnn_files["P-Net"][1], weights_only=True)), "wrong.pt")
    assert main(["--activations", "stored.h5", "--state-dict", str(mtcnn_files["P-Net"][1])]) == 0
    capsys.readouterr()
    assert main(["--activations", "stored.h5", "--state-dict", "wrong.pt"]) == 1
    assert "conv2 is the first activation that differs" in capsys.readouterr().out
    assert main([str(original), "--activations", "stored.h5", "--state-dict", "wrong.pt"]) == 1
    assert "height and width exchanged at conv2" in capsys.readouterr().out


# Faults in the weights


def exchange_axes(weights: StateDict) -> StateDict:
    return weights | {"conv2.weight": weights["conv2.weight"].transpose(2, 3).contiguous()}


def flatten_as(*order: int) -> Callable[[StateDict], StateDict]:
    """R-Net's first matrix for maps that are flattened in this order of (width, height, channels)."""

    def change(weights: StateDict) -> StateDict:
        matrix = weights["dense4.weight"].reshape(128, 3, 3, 64)
        moved = matrix.permute(0, *(axis + 1 for axis in order)).reshape(128, 576)
        return weights | {"dense4.weight": moved}

    return change


def swap(first: str, second: str) -> Callable[[StateDict], StateDict]:
    return lambda weights: weights | {first: weights[second], second: weights[first]}


def leaky(weights: StateDict) -> StateDict:
    return weights | {"prelu1.weight": torch.full_like(weights["prelu1.weight"], 0.01)}


def one_step(weights: StateDict) -> StateDict:
    changed = weights["conv3.bias"].clone()
    changed.view(torch.int32)[3] += 1
    return weights | {"conv3.bias": changed}


WEIGHTS = {
    "height and width exchanged": (
        "P-Net",
        exchange_axes,
        Cause.HEIGHT_WIDTH,
        "conv2.weight",
        "is laid out as (outputs, inputs, height, width)",
    ),
    "flattened as PyTorch does": (
        "R-Net",
        flatten_as(2, 1, 0),
        Cause.FLATTENED,
        "dense4.weight",
        "takes its inputs in the order (channels, height, width), not (width, height, channels)",
    ),
    "flattened as TensorFlow does": (
        "R-Net",
        flatten_as(1, 0, 2),
        Cause.FLATTENED,
        "dense4.weight",
        "takes its inputs in the order (height, width, channels), not (width, height, channels)",
    ),
    "two PReLUs exchanged": (
        "O-Net",
        swap("prelu2.weight", "prelu3.weight"),
        Cause.OTHER_TENSOR,
        "prelu2.weight",
        "belongs to prelu3",
    ),
    "leaky ReLU": ("R-Net", leaky, Cause.UNLOADED, "prelu1.weight", "is 0.01 throughout"),
    "BGR": (
        "P-Net",
        lambda weights: weights | {"conv1.weight": weights["conv1.weight"].flip(1)},
        Cause.PERMUTED,
        "conv1.weight",
        "has its input channels in another order",
    ),
    "matrix not transposed": (
        "O-Net",
        lambda weights: weights | {"dense5.weight": weights["dense5.weight"].T.contiguous()},
        Cause.IN_OUT,
        "dense5.weight",
        "is laid out as (inputs, outputs)",
    ),
    "kernel with inputs first": (
        "P-Net",
        lambda weights: weights | {"conv3.weight": weights["conv3.weight"].transpose(0, 1).contiguous()},
        Cause.IN_OUT,
        "conv3.weight",
        "is laid out as (inputs, outputs, width, height)",
    ),
    "one float32 step": ("P-Net", one_step, Cause.VALUES, "conv3.bias", "off by one float32 step"),
}


@pytest.mark.parametrize("fault", WEIGHTS)
def test_wrong_weights_are_named_and_repaired(
    fault: str, mtcnn_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TAKEN_FROM, four_images)
    name, change, cause, key, statement = WEIGHTS[fault]
    original, port = mtcnn_files[name]
    weights = torch.load(port, weights_only=True)
    torch.save(change(weights), tmp_path / "wrong.pt")
    result = compare(original, state_dict=tmp_path / "wrong.pt", repair=tmp_path / "repaired.pt")
    assert not result.passed and result.exit_code == 1
    assert result.diagnosis is not None, result.undiagnosed
    first = result.diagnosis.findings[0]
    assert (first.cause, first.key) == (cause, key)
    assert statement in first.statement
    assert first.variable == next(row.variable for row in NETWORKS[name] if row.key == key)
    assert {finding.key for finding in result.diagnosis.findings} == {
        changed for changed, tensor in change(weights).items() if not torch.equal(tensor, weights[changed])
    }
    repaired = torch.load(tmp_path / "repaired.pt", weights_only=True)
    assert all(torch.equal(repaired[each], tensor) for each, tensor in weights.items())
    if result.inputs:  # the state_dict loads
        assert result.diverging is not None
        assert result.diverging.first_divergence == first.activation
        mapping = next(judgement for judgement in result.judgements if judgement.name == "mapping")
        assert mapping.share is not None and mapping.share > thresholds.MARGIN


# Faults in the modules and the input, on TensorFlow's activations that are computed once


@pytest.fixture(scope="module")
def expected(mtcnn_files: Files) -> Iterator[dict[str, tuple[dict[str, Any], Activations]]]:
    """Network to its state_dict and TensorFlow's activations on an input, P-Net's of an odd size."""
    made = {}
    for name, (original, port) in mtcnn_files.items():
        network = MtcnnNetwork(name)
        with open_source(original) as source:
            tensors = {variable: source[variable] for variable in source}
            with TensorFlowSide(source, tensors, "variable", network=network) as tensorflow:
                batch = inputs_of(network, 0)[-1 if name == "P-Net" else 0]
                names = activations_of(network, every_layer=True)
                arrays = {key: tensor.numpy() for key, tensor in torch.load(port, weights_only=True).items()}
                made[name] = arrays, tensorflow.run(InputBatch(batch.name, batch.images[:4]), names)
    yield made


class SharedPReLU(nn.Module):
    """One factor for all channels, as Keras' `shared_axes` or `nn.PReLU()` give."""

    def __init__(self, prelu: nn.PReLU) -> None:
        super().__init__()
        self.weight = prelu.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight.mean()[None])


class Function(nn.Module):
    """A function in place of a module without weights."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def replace(name: str, make: Callable[[Any], nn.Module]) -> Callable[[nn.Module], None]:
    return lambda model: setattr(model, name, make(getattr(model, name)))


MODULES: dict[str, tuple[str, Callable[[nn.Module], None], str]] = {
    "PReLU as leaky ReLU": ("R-Net", replace("prelu2", lambda _: nn.LeakyReLU(0.01)), "prelu2"),
    "PReLU as ReLU": ("O-Net", replace("prelu5", lambda _: nn.ReLU()), "prelu5"),
    "PReLU shared": ("P-Net", replace("prelu1", SharedPReLU), "PReLU1"),
    "pool without its rest": ("O-Net", replace("pool1", lambda _: nn.MaxPool2d(3, 2, padding=1)), "pool1"),
    "pool padded before": (
        "R-Net",
        replace("pool1", lambda _: Function(lambda x: F.max_pool2d(F.pad(x, (1, 0, 1, 0)), 3, 2))),
        "pool1",
    ),
    "average pool": ("P-Net", replace("pool1", lambda _: nn.AvgPool2d(2, 2, ceil_mode=True)), "pool1"),
    "softmax over another axis": ("P-Net", replace("softmax4_1", lambda _: nn.Softmax(dim=2)), "prob1"),
    "sigmoid": ("O-Net", replace("softmax6_1", lambda _: nn.Sigmoid()), "prob1"),
}


def measure(port: Port, activations: Activations) -> InputMeasurement:
    measured = run_and_measure(port, [ExpectedInput.of(activations)])
    assert not isinstance(measured, BrokenSource)
    return measured[0]


@pytest.mark.parametrize("fault", MODULES)
def test_a_wrong_module_is_found_at_its_layer(
    fault: str, expected: dict[str, tuple[dict[str, Any], Activations]]
) -> None:
    name, plant, place = MODULES[fault]
    arrays, activations = expected[name]
    port = build_port(arrays, MtcnnNetwork(name))
    assert isinstance(port, Port)
    clean = judge_mapping([measure(port, activations)])
    assert clean.passed and clean.share is not None and clean.share < 0.5
    for model in (port.float32, port.float64):
        plant(model)
    batch = measure(port, activations)
    judgement = judge_mapping([batch])
    assert not judgement.passed
    assert judgement.share is not None and judgement.share > thresholds.MARGIN
    assert batch.first_divergence == place


@pytest.mark.parametrize(
    "wrong",
    [
        lambda images: images[..., ::-1],
        lambda images: images[:, ::-1],
        lambda images: images * (128 / 127.5),
        lambda images: images.astype(np.float16).astype(np.float32),
    ],
    ids=["BGR", "upside down", "divided by 127.5", "in half precision"],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_wrong_input_is_found(
    name: str,
    wrong: Callable[[np.ndarray], np.ndarray],
    expected: dict[str, tuple[dict[str, Any], Activations]],
) -> None:
    arrays, activations = expected[name]
    port = build_port(arrays, MtcnnNetwork(name))
    assert isinstance(port, Port)
    for model in (port.float32, port.float64):
        model.register_forward_pre_hook(
            lambda _, given: (
                torch.from_numpy(
                    np.ascontiguousarray(wrong(given[0].permute(0, 2, 3, 1).numpy()))
                ).to(given[0].dtype).permute(0, 3, 1, 2),
            )
        )  # fmt: skip
    batch = measure(port, activations)
    judgement = judge_mapping([batch])
    assert batch.first_divergence == "conv1"
    assert judgement.share is not None and judgement.share > thresholds.MARGIN


@pytest.mark.parametrize("name", NETWORKS)
def test_rounding_has_a_margin_on_both_sides(
    name: str, expected: dict[str, tuple[dict[str, Any], Activations]]
) -> None:
    """Products in TF32, whose operands have ten bits, are above the bound at every layer with weights."""
    arrays, activations = expected[name]
    port = build_port(arrays, MtcnnNetwork(name))
    assert isinstance(port, Port)
    clean = judge_rounding([measure(port, activations)])
    assert clean.passed and clean.share is not None and clean.share < 0.5

    def coarse(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (x,) = given
        return ((x.view(torch.int32) & -(1 << 13)).view(torch.float32),)

    for module in port.float32.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_pre_hook(coarse)
    batch = measure(port, activations)
    assert not judge_rounding([batch]).passed
    for layer in batch.rounding:
        is_linear = layer.activation.startswith("conv")
        assert not is_linear or layer.share > thresholds.MARGIN, layer


# Sources and ports that do not fit


def test_another_network_is_refused(
    mtcnn_files: Files, keras: Path, single_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = single_files / "weights.pt"
    for source, port, message in (
        (mtcnn_files["P-Net"][0], mtcnn_files["R-Net"][1], "this is the R-Net of MTCNN, but"),
        (mtcnn_files["P-Net"][0], large, "this is not a network of MTCNN, but"),
        (keras, mtcnn_files["O-Net"][1], "this is the O-Net of MTCNN, but"),
    ):
        assert main([str(source), "--state-dict", str(port)]) == 3
        assert message in capsys.readouterr().err


def test_a_command_for_the_large_network_refuses_them(
    mtcnn_files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    original, port = mtcnn_files["P-Net"]
    assert gradients([str(original)]) == 3
    assert "this is the P-Net of MTCNN, and this command is for Inception" in capsys.readouterr().err
    assert main([str(port)]) == 2
    assert "Give det1.npy." in capsys.readouterr().err


def test_a_file_with_a_tensor_missing(mtcnn_files: Files, tmp_path: Path) -> None:
    weights = torch.load(mtcnn_files["R-Net"][1], weights_only=True)
    del weights["prelu4.weight"]
    torch.save(weights, tmp_path / "short.pt")
    result = compare(mtcnn_files["R-Net"][0], state_dict=tmp_path / "short.pt")
    assert result.exit_code == 1
    assert [judgement.passed for judgement in result.judgements] == [False] * 3
    assert result.judgements[0].details == ("prelu4.weight: not in the state_dict",)
    assert "'prelu4.weight' first" in result.judgements[1].details[0]
    assert "facenet-port audit" in result.undiagnosed
