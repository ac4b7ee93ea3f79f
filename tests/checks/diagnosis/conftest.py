"""A checkpoint, its state_dict and averages, and TensorFlow's activations, for all tests of the diagnosis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from checks.core.builtin_checkpoint import built_in_tensors
from converter.convert import to_numpy_state_dict
from converter.layer_map import Variant
from tests.checks.diagnosis.faulty_ports import ACTIVATIONS, CLASSES, IMAGES, Arrays


@pytest.fixture(scope="package")
def tensors() -> Mapping[str, NDArray[Any]]:
    """Weights with embeddings near each other, so that float32 judgements hold on small images too."""
    tensors = built_in_tensors(Variant(embedding_size=128, num_classes=CLASSES))
    beta = "InceptionResnetV1/Bottleneck/BatchNorm/beta"
    return {**tensors, beta: tensors[beta] * np.float32(4)}


@pytest.fixture(scope="package")
def clean(tensors: Mapping[str, NDArray[Any]]) -> Arrays:
    return to_numpy_state_dict(tensors)


@pytest.fixture(scope="package")
def averages(clean: Arrays) -> Arrays:
    random = np.random.default_rng(1)
    return {
        key: (array + random.normal(0, 1e-3, array.shape)).astype(np.float32)
        for key, array in clean.items()
        if array.dtype == np.float32 and np.ptp(array) > 0
    }


@pytest.fixture(scope="package")
def reference(tensors: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    from facenet_tf.rebuilt_network import RebuiltNetwork

    with RebuiltNetwork(tensors, "float64") as network:
        return network.run(IMAGES, ACTIVATIONS)
