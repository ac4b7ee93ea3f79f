"""The maps of MTCNN's networks: the layout computes the same, and every published tensor is facenet's own.

What runs on real weights needs a package index, once; without one it is skipped, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from converter.formats.detect import open_source
from converter.formats.source import TensorSource
from converter.layouts import CONVOLUTION, CONVOLUTION_WIDTH_FIRST
from converter.mtcnn_layer_map import NETWORKS, find_network
from tests.conftest import same_bits


def variables(name: str) -> set[str]:
    return {row.variable for row in NETWORKS[name]}


def keys(name: str) -> set[str]:
    return {row.key for row in NETWORKS[name]}


def test_a_network_is_known_by_most_of_its_names() -> None:
    for name in NETWORKS:
        for naming, names in (("tensorflow", variables(name)), ("pytorch", keys(name))):
            some = sorted(names)
            for given in (some, some[1:], [*some, "global_step"]):
                found = find_network(given, naming)
                assert found is not None and found.name == name
            for other in ([], [one.upper() for one in some], some[: len(some) // 2]):
                assert find_network(other, naming) is None
            assert find_network([*some, *(f"layer{n}.weight" for n in range(100))], naming) is None
        assert find_network(keys(name), "tensorflow") is find_network(variables(name), "pytorch") is None
        assert find_network(variables(name), "keras") is None


def test_a_foreign_network_is_not_called_one() -> None:
    """LeNet and AlexNet as tutorials write them share names with the first layers."""
    layers = ("conv1", "conv2", "fc1", "fc2", "fc3")
    lenet = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert find_network(lenet, "pytorch") is None
    caffe = [f"conv{n}/{kind}" for n in range(1, 6) for kind in ("weights", "biases")]
    assert find_network([*caffe, *(f"fc{n}/weights" for n in (6, 7, 8))], "tensorflow") is None


def correlate(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Compute tf.nn.conv2d, VALID, stride 1: NHWC images, an HWIO kernel."""
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


@pytest.fixture(params=NETWORKS)
def pair(
    request: pytest.FixtureRequest, mtcnn_files: dict[str, tuple[Path, Path]]
) -> Iterator[tuple[str, TensorSource, TensorSource]]:
    original, port = mtcnn_files[request.param]
    with open_source(original) as source, open_source(port) as state_dict:
        yield request.param, source, state_dict


@pytest.mark.real
def test_the_names_and_shapes_are_those_of_the_files(pair: tuple[str, TensorSource, TensorSource]) -> None:
    name, source, state_dict = pair
    found = find_network(source, "tensorflow")
    assert found == find_network(state_dict, "pytorch") and found is not None and found.name == name
    assert [row.key for row in NETWORKS[name]] == list(state_dict)
    for row in NETWORKS[name]:
        assert source.info[row.variable].shape == row.shape
        assert source.info[row.variable].dtype == np.float32
        assert state_dict.info[row.key] == row.info


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
