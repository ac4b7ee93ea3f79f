"""The network in Keras 3, with the layer names of facenet_keras.h5."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import pytest
from numpy.typing import NDArray

from converter.layer_map import CONVOLUTIONS
from tests.conftest import keras_layer


def import_keras() -> Any:
    """Import Keras 3 with its TensorFlow backend; skip the test without them."""
    if any(importlib.util.find_spec(name) is None for name in ("keras", "tensorflow")):
        pytest.skip("Keras is not installed")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    import keras

    return keras


def keras_network(tensors: Mapping[str, NDArray[Any]], *, named: bool = True) -> Any:
    """Build a Keras model with these variables.

    Each layer has an input of its own: a file of weights does not depend on the graph.

    Args:
        tensors: Variables by TensorFlow name.
        named: Whether layers have the names of facenet_keras.h5. Otherwise Keras numbers them.
    """
    keras = import_keras()
    layers = keras.layers
    inputs, outputs = [], []

    def add(layer: Any, start: Any, *variables: str) -> Any:
        result = layer(start)
        layer.set_weights([tensors[name] for name in variables])
        return result

    def unit(scope: str, layer: Any, size: tuple[None, ...] = ()) -> None:
        inputs.append(keras.Input((*size, tensors[f"{scope}/weights"].shape[-2])))
        if f"{scope}/biases" in tensors:
            outputs.append(add(layer, inputs[-1], f"{scope}/weights", f"{scope}/biases"))
            return
        norm = layers.BatchNormalization(
            scale=False, epsilon=1e-3, name=f"{keras_layer(scope)}_BatchNorm" if named else None
        )
        variables = [f"{scope}/BatchNorm/{leaf}" for leaf in ("beta", "moving_mean", "moving_variance")]
        outputs.append(add(norm, add(layer, inputs[-1], f"{scope}/weights"), *variables))

    for row in CONVOLUTIONS:
        name = keras_layer(row.scope) if named else None
        channels = tensors[f"{row.scope}/weights"].shape[-1]
        convolution = layers.Conv2D(channels, row.kernel, use_bias=not row.batch_norm, name=name)
        unit(row.scope, convolution, (None, None))
    for scope in ("InceptionResnetV1/Bottleneck", "Logits"):
        columns = tensors[f"{scope}/weights"].shape[-1]
        name = keras_layer(scope) if named else None
        unit(scope, layers.Dense(columns, use_bias=scope == "Logits", name=name))
    return keras.Model(inputs, outputs, name="facenet" if named else None)
