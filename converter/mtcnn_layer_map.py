"""The tables of MTCNN's three networks: every TensorFlow variable and its PyTorch key.

MTCNN finds the faces for the network of `layer_map`. TensorFlow names are those of davidsandberg/facenet:
`PNet`, `RNet` and `ONet` in `src/align/detect_face.py`, with the weights det1.npy, det2.npy and det3.npy.
PyTorch names are those of facenet-pytorch 2.6.0: `models/mtcnn.py`, with the weights pnet.pt, rnet.pt and
onet.pt. Shapes are those of the files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.formats.source import Naming
from converter.layer_map import ConvertedRow, Row, Variant, table
from converter.layouts import CONVOLUTION_WIDTH_FIRST, FULLY_CONNECTED, VECTOR

# (TensorFlow scope, PyTorch module, shape of the weights in TensorFlow). The shape is (height, width, inputs,
# outputs) for a convolution, (inputs, outputs) for a fully connected layer, (channels,) for a PReLU without
# biases.
_Layer = tuple[str, str, tuple[int, ...]]

P_NET: tuple[_Layer, ...] = (
    ("conv1", "conv1", (3, 3, 3, 10)),
    ("PReLU1", "prelu1", (10,)),
    ("conv2", "conv2", (3, 3, 10, 16)),
    ("PReLU2", "prelu2", (16,)),
    ("conv3", "conv3", (3, 3, 16, 32)),
    ("PReLU3", "prelu3", (32,)),
    ("conv4-1", "conv4_1", (1, 1, 32, 2)),
    ("conv4-2", "conv4_2", (1, 1, 32, 4)),
)
R_NET: tuple[_Layer, ...] = (
    ("conv1", "conv1", (3, 3, 3, 28)),
    ("prelu1", "prelu1", (28,)),
    ("conv2", "conv2", (3, 3, 28, 48)),
    ("prelu2", "prelu2", (48,)),
    ("conv3", "conv3", (2, 2, 48, 64)),
    ("prelu3", "prelu3", (64,)),
    ("conv4", "dense4", (576, 128)),
    ("prelu4", "prelu4", (128,)),
    ("conv5-1", "dense5_1", (128, 2)),
    ("conv5-2", "dense5_2", (128, 4)),
)
O_NET: tuple[_Layer, ...] = (
    ("conv1", "conv1", (3, 3, 3, 32)),
    ("prelu1", "prelu1", (32,)),
    ("conv2", "conv2", (3, 3, 32, 64)),
    ("prelu2", "prelu2", (64,)),
    ("conv3", "conv3", (3, 3, 64, 64)),
    ("prelu3", "prelu3", (64,)),
    ("conv4", "conv4", (2, 2, 64, 128)),
    ("prelu4", "prelu4", (128,)),
    ("conv5", "dense5", (1152, 256)),
    ("prelu5", "prelu5", (256,)),
    ("conv6-1", "dense6_1", (256, 2)),
    ("conv6-2", "dense6_2", (256, 4)),
    ("conv6-3", "dense6_3", (256, 10)),
)


def _rows(scope: str, module: str, shape: tuple[int, ...]) -> Iterator[ConvertedRow]:
    if len(shape) == 1:
        yield ConvertedRow(f"{module}.weight", f"{scope}/alpha", VECTOR, shape, scope)
        return
    layout = CONVOLUTION_WIDTH_FIRST if len(shape) == 4 else FULLY_CONNECTED
    yield ConvertedRow(f"{module}.weight", f"{scope}/weights", layout, shape, scope)
    yield ConvertedRow(f"{module}.bias", f"{scope}/biases", VECTOR, shape[-1:], scope)


NETWORKS: Mapping[str, tuple[ConvertedRow, ...]] = {
    name: tuple(row for layer in layers for row in _rows(*layer))
    for name, layers in (("P-Net", P_NET), ("R-Net", R_NET), ("O-Net", O_NET))
}
"""Name of a network to its tensors, in the order of the published state_dict."""


_FILE_ORDER: Mapping[str, tuple[str, ...]] = {
    "P-Net": ("conv4-2", "conv4-1", "conv3", "conv2", "conv1"),
    "R-Net": ("conv5-2", "conv5-1", "conv3", "conv2", "conv1", "conv4"),
    "O-Net": ("conv6-1", "conv6-2", "conv6-3", "conv3", "conv2", "conv1", "conv5", "conv4"),
}
"""Layers in the order of the .npy files, which a dict of Python 2 gave them; PReLUs follow in theirs."""


@dataclass(frozen=True, slots=True)
class MtcnnNetwork:
    """A network of MTCNN; in a plan it stands where `Variant` stands for Inception-ResNet-v1.

    Attributes:
        name: A key of `NETWORKS`.
    """

    name: str

    @property
    def rows(self) -> tuple[ConvertedRow, ...]:
        """Its tensors, in the order of the published state_dict."""
        return NETWORKS[self.name]

    @property
    def class_name(self) -> str:
        """The name of its class, in `reference.mtcnn` as in davidsandberg/facenet and facenet-pytorch."""
        return self.name.replace("-", "")

    @property
    def state_dict_stem(self) -> str:
        """The name of the published state_dict without its ending."""
        return self.class_name.lower()

    @property
    def npy_name(self) -> str:
        """The name of the file of davidsandberg/facenet."""
        return f"det{list(NETWORKS).index(self.name) + 1}.npy"

    def __str__(self) -> str:
        """The network in a sentence."""
        return f"the {self.name} of MTCNN"


Network = Variant | MtcnnNetwork
"""A network that is converted."""


def rows_of(network: Network) -> tuple[Row, ...]:
    """List every tensor of a network's state_dict, in the published order."""
    return network.rows if isinstance(network, MtcnnNetwork) else table(network)


def names_of(network: str, naming: Naming) -> frozenset[str]:
    """The names of a network's tensors; Keras has none."""
    rows = () if naming == "keras" else NETWORKS[network]
    return frozenset(row.key if naming == "pytorch" else row.variable for row in rows)


def find_network(names: Collection[str], naming: Naming) -> MtcnnNetwork | None:
    """Find the network that names belong to; None without one.

    Over half of its names have to be there, and they have to be over a quarter of all: a larger network may
    use some of them too, and a training adds slots. The networks share the names of their first layers, so
    the one that fits best is taken.
    """
    given = frozenset(names)
    common = {name: len(given & names_of(name, naming)) for name in NETWORKS}
    best = max(common, key=lambda name: 2 * common[name] - len(NETWORKS[name]))
    fits = 2 * common[best] > len(NETWORKS[best]) and 4 * common[best] > len(given)
    return MtcnnNetwork(best) if fits else None


def in_file_order(network: MtcnnNetwork, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Bring a network's variables into the order and the memory layout of facenet's .npy files.

    The published state_dicts then give the bytes of those files. Their outputs' weights were transposed from
    Caffe's without a copy, so they are in Fortran's memory order.

    Args:
        network: The network.
        tensors: Variable to array, all of the network's.
    """
    scopes = dict.fromkeys([*_FILE_ORDER[network.name], *(row.scope for row in network.rows)])
    ordered = [row for scope in scopes for row in network.rows if row.scope == scope]
    return {
        row.variable: np.asfortranarray(tensors[row.variable])
        if "-" in row.scope and row.variable.endswith("/weights")
        else np.ascontiguousarray(tensors[row.variable])
        for row in ordered
    }


def _check_tables() -> None:
    """Check the tables against the counts of the files, so that a wrong row fails at import."""
    actual = {
        name: (len(rows), len({row.key for row in rows}), len({row.variable for row in rows}))
        for name, rows in NETWORKS.items()
    }
    expected = {"P-Net": (13,) * 3, "R-Net": (16,) * 3, "O-Net": (21,) * 3}
    if actual != expected:
        raise AssertionError(f"the map of MTCNN is broken: {actual} rows, not {expected}")


_check_tables()
