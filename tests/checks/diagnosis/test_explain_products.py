"""TF32 is named if PyTorch's layers round as float32 without it, and only then."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from checks.compare.run import compare
from checks.controls.faults.layer_faults import truncated
from checks.core.inputs import inputs_of
from checks.core.models import Port, build_port
from checks.diagnosis.causes import Cause
from checks.diagnosis.explain_products import explain_products
from converter.convert import tensorflow_tensors, to_numpy_state_dict
from converter.formats.detect import open_source
from converter.mtcnn_layer_map import NETWORKS, MtcnnNetwork
from tests.support.numpy_files import by_python2

NETWORK = MtcnnNetwork("P-Net")
IMAGE = inputs_of(NETWORK, 0)[0].images[:1]


def convolutions_in_tf32() -> bool:
    return torch.backends.cudnn.allow_tf32


def always() -> bool:
    return True


def coarse(model: nn.Module, when: Callable[[], bool]) -> None:
    """Multiply as a GPU with TF32 does, while it is allowed."""

    def shorten(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (truncated(given[0]),) if when() else given

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(shorten)


@pytest.fixture
def source(tmp_path):
    """P-Net with weights that keep its values near one."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for seed, row in enumerate(NETWORKS["P-Net"]):
        layer, _, parameter = row.variable.partition("/")
        values = np.random.default_rng(seed).standard_normal(row.shape, np.float32)
        layers.setdefault(layer, {})[parameter] = values / np.float32(np.sqrt(np.prod(row.shape[:-1]) or 1))
    (tmp_path / "p-net.npy").write_bytes(by_python2(layers))
    return tmp_path / "p-net.npy"


@pytest.fixture
def port(source):
    with open_source(source) as opened:
        state_dict = to_numpy_state_dict(tensorflow_tensors(opened))
    built = build_port(state_dict, NETWORK)
    assert isinstance(built, Port)
    return built


def test_tf32_is_named_with_its_setting(port):
    coarse(port.float32, convolutions_in_tf32)
    finding = explain_products(port, NETWORK, IMAGE)
    assert finding is not None
    assert (finding.activation, finding.cause) == ("conv1", Cause.TF32)
    assert "(torch.backends.cudnn.allow_tf32)" in finding.statement
    assert torch.backends.cudnn.allow_tf32  # as before


@pytest.mark.parametrize("when", [always, None])
def test_it_is_not_named_without_evidence(port, when):
    if when is not None:
        coarse(port.float32, when)
    assert explain_products(port, NETWORK, IMAGE) is None


def test_it_is_not_named_where_it_is_forbidden(port, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    coarse(port.float32, always)
    assert explain_products(port, NETWORK, IMAGE) is None


def test_compare_names_it(source, monkeypatch):
    """The float32 network is built as on a GPU that multiplies in TF32."""

    def build(*arguments: object, **options: object) -> Port | str:
        built = build_port(*arguments, **options)
        coarse(built.float32, convolutions_in_tf32)
        return built

    monkeypatch.setattr("checks.compare.run.build_port", build)
    result = compare(source)
    assert {judgement.name for judgement in result.judgements if not judgement.passed} == {"rounding"}
    assert result.diagnosis is not None
    assert [finding.cause for finding in result.diagnosis.findings] == [Cause.TF32]
    assert result.diagnosis.summary[0].startswith("products in TF32 at conv1: PyTorch multiplies in TF32")
    assert np.isfinite(result.diagnosis.findings[0].distance)
    assert result.device == "cpu"
