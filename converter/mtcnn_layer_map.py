"""The three networks of MTCNN: every TensorFlow variable and the PyTorch key it becomes.

They find the faces for the network of `layer_map`, and are audited, not converted. Names follow
davidsandberg/facenet (`PNet`, `RNet` and `ONet` in `src/align/detect_face.py`, whose weights are det1.npy,
det2.npy and det3.npy) on the one side and facenet-pytorch 2.6.0 (`models/mtcnn.py`, whose weights are
pnet.pt, rnet.pt and onet.pt) on the other. Shapes are those of the files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from converter.layer_map import Converted
from converter.layouts import CONVOLUTION_WIDTH_FIRST, FULLY_CONNECTED, VECTOR


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer with weights.

    Attributes:
        scope: TensorFlow variable scope.
        module: Name of the PyTorch module.
        weights: Shape of the weights in TensorFlow: (height, width, inputs, outputs) of a convolution,
            (inputs, outputs) of a fully connected layer, (channels,) of a PReLU, which has no biases.
    """

    scope: str
    module: str
    weights: tuple[int, ...]


P_NET = (
    Layer("conv1", "conv1", (3, 3, 3, 10)),
    Layer("PReLU1", "prelu1", (10,)),
    Layer("conv2", "conv2", (3, 3, 10, 16)),
    Layer("PReLU2", "prelu2", (16,)),
    Layer("conv3", "conv3", (3, 3, 16, 32)),
    Layer("PReLU3", "prelu3", (32,)),
    Layer("conv4-1", "conv4_1", (1, 1, 32, 2)),
    Layer("conv4-2", "conv4_2", (1, 1, 32, 4)),
)
R_NET = (
    Layer("conv1", "conv1", (3, 3, 3, 28)),
    Layer("prelu1", "prelu1", (28,)),
    Layer("conv2", "conv2", (3, 3, 28, 48)),
    Layer("prelu2", "prelu2", (48,)),
    Layer("conv3", "conv3", (2, 2, 48, 64)),
    Layer("prelu3", "prelu3", (64,)),
    Layer("conv4", "dense4", (576, 128)),
    Layer("prelu4", "prelu4", (128,)),
    Layer("conv5-1", "dense5_1", (128, 2)),
    Layer("conv5-2", "dense5_2", (128, 4)),
)
O_NET = (
    Layer("conv1", "conv1", (3, 3, 3, 32)),
    Layer("prelu1", "prelu1", (32,)),
    Layer("conv2", "conv2", (3, 3, 32, 64)),
    Layer("prelu2", "prelu2", (64,)),
    Layer("conv3", "conv3", (3, 3, 64, 64)),
    Layer("prelu3", "prelu3", (64,)),
    Layer("conv4", "conv4", (2, 2, 64, 128)),
    Layer("prelu4", "prelu4", (128,)),
    Layer("conv5", "dense5", (1152, 256)),
    Layer("prelu5", "prelu5", (256,)),
    Layer("conv6-1", "dense6_1", (256, 2)),
    Layer("conv6-2", "dense6_2", (256, 4)),
    Layer("conv6-3", "dense6_3", (256, 10)),
)


def _rows(layer: Layer) -> Iterator[Converted]:
    scope, module, shape = layer.scope, layer.module, layer.weights
    if len(shape) == 1:
        yield Converted(f"{module}.weight", f"{scope}/alpha", VECTOR, shape, scope)
        return
    layout = CONVOLUTION_WIDTH_FIRST if len(shape) == 4 else FULLY_CONNECTED
    yield Converted(f"{module}.weight", f"{scope}/weights", layout, shape, scope)
    yield Converted(f"{module}.bias", f"{scope}/biases", VECTOR, shape[-1:], scope)


NETWORKS: Mapping[str, tuple[Converted, ...]] = {
    name: tuple(row for layer in layers for row in _rows(layer))
    for name, layers in (("P-Net", P_NET), ("R-Net", R_NET), ("O-Net", O_NET))
}
"""Name of a network to its tensors, in the order of the published state_dict."""


def network_of_variables(variables: Collection[str]) -> str | None:
    """The network that has exactly these TensorFlow variables; None where none has."""
    return next(
        (name for name, rows in NETWORKS.items() if {row.variable for row in rows} == set(variables)), None
    )


def network_of_keys(keys: Collection[str]) -> str | None:
    """The network whose state_dict has exactly these keys; None where none has."""
    return next((name for name, rows in NETWORKS.items() if {row.key for row in rows} == set(keys)), None)


def _check_tables() -> None:
    """Hold the tables to the counts of the files, so that a wrong row fails on import and not in use."""
    found = {
        name: (len(rows), len({row.key for row in rows}), len({row.variable for row in rows}))
        for name, rows in NETWORKS.items()
    }
    expected = {"P-Net": (13,) * 3, "R-Net": (16,) * 3, "O-Net": (21,) * 3}
    if found != expected:
        raise AssertionError(f"the map of MTCNN is broken: {found} rows, not {expected}")


_check_tables()
