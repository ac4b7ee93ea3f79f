"""MTCNN's networks as the checks know them: every layer's input, window and tensors, as `network` has them.

The settings are those of davidsandberg/facenet's `src/align/detect_face.py`. A layer is named by its
activation, which has the name of the original's layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from checks.core.network import EMBEDDINGS, NETWORK, LayerKind, NetworkLayer
from converter.mtcnn_layer_map import MtcnnNetwork, Network

_CONVOLUTION, _PRELU, _POOL = LayerKind.CONVOLUTION, LayerKind.PRELU, LayerKind.MAX_POOL
_DENSE, _SOFTMAX = LayerKind.FULLY_CONNECTED, LayerKind.SOFTMAX

# (activation, PyTorch module, kind, size of the kernel; of the first fully connected layer, of its maps).
_Row = tuple[str, str, LayerKind, int]

_P_NET: tuple[_Row, ...] = (
    ("conv1", "conv1", _CONVOLUTION, 3),
    ("PReLU1", "prelu1", _PRELU, 0),
    ("pool1", "pool1", _POOL, 2),
    ("conv2", "conv2", _CONVOLUTION, 3),
    ("PReLU2", "prelu2", _PRELU, 0),
    ("conv3", "conv3", _CONVOLUTION, 3),
    ("PReLU3", "prelu3", _PRELU, 0),
    ("conv4-1", "conv4_1", _CONVOLUTION, 1),
    ("prob1", "softmax4_1", _SOFTMAX, 0),
    ("conv4-2", "conv4_2", _CONVOLUTION, 1),
)
_R_NET: tuple[_Row, ...] = (
    ("conv1", "conv1", _CONVOLUTION, 3),
    ("prelu1", "prelu1", _PRELU, 0),
    ("pool1", "pool1", _POOL, 3),
    ("conv2", "conv2", _CONVOLUTION, 3),
    ("prelu2", "prelu2", _PRELU, 0),
    ("pool2", "pool2", _POOL, 3),
    ("conv3", "conv3", _CONVOLUTION, 2),
    ("prelu3", "prelu3", _PRELU, 0),
    ("conv4", "dense4", _DENSE, 3),
    ("prelu4", "prelu4", _PRELU, 0),
    ("conv5-1", "dense5_1", _DENSE, 1),
    ("prob1", "softmax5_1", _SOFTMAX, 0),
    ("conv5-2", "dense5_2", _DENSE, 1),
)
_O_NET: tuple[_Row, ...] = (
    ("conv1", "conv1", _CONVOLUTION, 3),
    ("prelu1", "prelu1", _PRELU, 0),
    ("pool1", "pool1", _POOL, 3),
    ("conv2", "conv2", _CONVOLUTION, 3),
    ("prelu2", "prelu2", _PRELU, 0),
    ("pool2", "pool2", _POOL, 3),
    ("conv3", "conv3", _CONVOLUTION, 3),
    ("prelu3", "prelu3", _PRELU, 0),
    ("pool3", "pool3", _POOL, 2),
    ("conv4", "conv4", _CONVOLUTION, 2),
    ("prelu4", "prelu4", _PRELU, 0),
    ("conv5", "dense5", _DENSE, 3),
    ("prelu5", "prelu5", _PRELU, 0),
    ("conv6-1", "dense6_1", _DENSE, 1),
    ("prob1", "softmax6_1", _SOFTMAX, 0),
    ("conv6-2", "dense6_2", _DENSE, 1),
    ("conv6-3", "dense6_3", _DENSE, 1),
)
_ROWS: Mapping[str, tuple[_Row, ...]] = {"P-Net": _P_NET, "R-Net": _R_NET, "O-Net": _O_NET}


def _layers(rows: tuple[_Row, ...]) -> Iterator[NetworkLayer]:
    """Every layer in the order of evaluation; those of the outputs, with a hyphen, take the same layer."""
    trunk: str | None = None
    previous: str | None = None
    for activation, module, kind, size in rows:
        keys = {_CONVOLUTION: ("weight", "bias"), _DENSE: ("weight", "bias"), _PRELU: ("weight",)}
        yield NetworkLayer(
            activation,
            kind,
            (trunk if "-" in activation else previous,),
            {role: f"{module}.{role}" for role in keys.get(kind, ())},
            kernel=(size, size) if size else None,
            stride=2 if kind is _POOL else 1,
            padding="SAME" if activation in ("pool1", "pool3") else "VALID",
        )
        previous = activation
        if "-" not in activation and kind is not _SOFTMAX:
            trunk = activation


MTCNN_LAYERS: Mapping[str, Mapping[str, NetworkLayer]] = {
    name: {layer.activation: layer for layer in _layers(rows)} for name, rows in _ROWS.items()
}
"""Name of a network to its layers, by activation, in the order of evaluation."""

MTCNN_MODULES: Mapping[str, Mapping[str, str]] = {
    name: {activation: module for activation, module, _, _ in rows} for name, rows in _ROWS.items()
}
"""Name of a network to the modules whose outputs the activations are."""

_OUTPUTS = {
    "P-Net": ("conv4-2", "prob1"),
    "R-Net": ("conv5-2", "prob1"),
    "O-Net": ("conv6-2", "conv6-3", "prob1"),
}


def layers_of(network: Network) -> Mapping[str, NetworkLayer]:
    """Map the activations of a network to their layers, in the order of evaluation."""
    return MTCNN_LAYERS[network.name] if isinstance(network, MtcnnNetwork) else NETWORK


def outputs_among(activations: Collection[str]) -> tuple[str, ...]:
    """Find a network's outputs, other than logits, among the names of its activations."""
    if EMBEDDINGS in activations:
        return (EMBEDDINGS,)
    return next(outputs for outputs in _OUTPUTS.values() if set(outputs) <= set(activations))
