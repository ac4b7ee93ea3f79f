"""The tables of MTCNN's three networks: every TensorFlow variable and its PyTorch key.

MTCNN finds the faces for the network of `layer_map`. Its networks are audited, not converted. TensorFlow
names are those of davidsandberg/facenet: `PNet`, `RNet` and `ONet` in `src/align/detect_face.py`, with the
weights det1.npy, det2.npy and det3.npy. PyTorch names are those of facenet-pytorch 2.6.0: `models/mtcnn.py`,
with the weights pnet.pt, rnet.pt and onet.pt. Shapes are those of the files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from converter.layer_map import ConvertedRow
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


def network_of_variables(variables: Collection[str]) -> str | None:
    """Find the network that has exactly these TensorFlow variables; None if there is none."""
    return next(
        (name for name, rows in NETWORKS.items() if {row.variable for row in rows} == set(variables)), None
    )


def network_of_keys(keys: Collection[str]) -> str | None:
    """Find the network whose state_dict has exactly these keys; None if there is none."""
    return next((name for name, rows in NETWORKS.items() if {row.key for row in rows} == set(keys)), None)


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
