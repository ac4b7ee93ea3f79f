"""Other seeded weights, images, and the rebuilt network on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    from facenet_tf.rebuilt_network import RebuiltNetwork

SCOPE = "InceptionResnetV1"
BOTTLENECK = f"{SCOPE}/Bottleneck"
POOL = f"{SCOPE}/Logits/AvgPool_1a_8x8"
Tensors = dict[str, NDArray[np.float32]]
Activations = dict[str, NDArray]


def seeded_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Tensors:
    """Weights that keep activations near one: He-scaled kernels, moving statistics of that order."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        leaf = name.rpartition("/")[2]
        if leaf == "weights":
            value = generator.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
        elif leaf in ("moving_variance", "gamma"):
            value = generator.uniform(0.5, 1.5, shape)
        else:
            value = generator.standard_normal(shape) * 0.1
        tensors[name] = value.astype(np.float32)
    return tensors


def older_variant(tensors: Tensors) -> Tensors:
    """The same network with a top-level Bottleneck, a gamma of two in every BatchNorm, and no head."""
    moved = {
        name.replace(f"{BOTTLENECK}/", "Bottleneck/"): value
        for name, value in tensors.items()
        if not name.startswith("Logits/")
    }
    betas = {name: value for name, value in moved.items() if name.endswith("/beta")}
    return moved | {name.replace("/beta", "/gamma"): np.full_like(v, 2.0) for name, v in betas.items()}


def relative_error(value: NDArray, truth: NDArray) -> float:
    return float(np.linalg.norm(value - truth) / np.linalg.norm(truth))


@pytest.fixture(scope="session")
def images() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((2, 160, 160, 3), dtype=np.float32)


@pytest.fixture(scope="session")
def rebuilt(tensors: Tensors) -> Iterator[RebuiltNetwork]:
    from facenet_tf.rebuilt_network import RebuiltNetwork

    with RebuiltNetwork(tensors) as network:
        yield network


@pytest.fixture(scope="session")
def activations(rebuilt: RebuiltNetwork, images: NDArray) -> Activations:
    return rebuilt.run(images)


def assert_same_activations(published: Activations, rebuilt: Activations) -> None:
    """Equal bits down to the last map; after it, equal to rounding.

    The published graph pools with AvgPool over a fixed window, the rebuilt one with Mean over any map, and
    nothing says that the two add in the same order.
    """
    assert published
    for activation, value in published.items():
        assert value.shape == rebuilt[activation].shape, activation
        if activation in (POOL, BOTTLENECK) or not activation.startswith(SCOPE):
            assert relative_error(value, rebuilt[activation]) < 1e-6, activation
        else:
            np.testing.assert_array_equal(value, rebuilt[activation], err_msg=activation)
