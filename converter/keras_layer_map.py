"""The names that published Keras files of this network give to its TensorFlow variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from converter.layer_map import NETWORK_SCOPE, ConvertedRow, Variant, table

# The last block8 has a scope of its own in TensorFlow; Keras files count it as the sixth.
_LAST_BLOCK = "Block8_6"
_WEIGHTS = {
    "weights": "{layer}/kernel:0",
    "biases": "{layer}/bias:0",
    "beta": "{layer}_BatchNorm/beta:0",
    "gamma": "{layer}_BatchNorm/gamma:0",
    "moving_mean": "{layer}_BatchNorm/moving_mean:0",
    "moving_variance": "{layer}_BatchNorm/moving_variance:0",
}


def _keras_layer(scope: str) -> str:
    layer = scope.removeprefix(f"{NETWORK_SCOPE}/")
    layer = re.sub(r"^Repeat(_[12])?/block", "Block", layer)
    layer = re.sub(r"^Block8/", f"{_LAST_BLOCK}/", layer)
    return layer.replace("/", "_")


def keras_weight(scope: str, leaf: str) -> str:
    """Give the Keras name of a layer's weight.

    Args:
        scope: TensorFlow scope of the layer, without `BatchNorm`.
        leaf: The last part of the variable's name: `weights`, `biases`, `beta`, `gamma`, `moving_mean` or
            `moving_variance`.
    """
    return _WEIGHTS[leaf].format(layer=_keras_layer(scope))


@cache
def keras_names() -> Mapping[str, str]:
    """Map Keras weight names to TensorFlow variables, as in facenet_keras.h5 and keras-facenet.

    deepface has Branch_2 in the names of some layers of Branch_1 in Block17 and Block8, which have no
    Branch_2; those names are accepted too.
    """
    names: dict[str, str] = {}
    for row in table(Variant(num_classes=1, gamma=True)):
        if not isinstance(row, ConvertedRow):
            continue
        weight = keras_weight(row.scope, row.variable.rpartition("/")[2])
        names[weight] = row.variable
        if re.match(r"Block(17|8)_\d+_Branch_1_", weight):
            names[weight.replace("_Branch_1_", "_Branch_2_")] = row.variable
    return names
