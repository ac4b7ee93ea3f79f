"""Find the layers of a graph of MTCNN, with the constants that are their weights.

The names in an exported graph mean nothing, so its place identifies a layer: the kind of its operation, the
layer that it takes, and the shape of its weights. No exporter folds anything into these layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from checks.audit.graphs.graph import Graph, Node, NotUnderstoodError
from checks.audit.graphs.wiring import Wiring, label, plain_name
from checks.audit.port_layers import PortTensor
from checks.core.mtcnn_network import MTCNN_LAYERS
from checks.core.network import LayerKind, NetworkLayer
from converter.layer_map import ConvertedRow
from converter.layouts import CONVOLUTION, CONVOLUTION_WIDTH_FIRST, VECTOR, Layout
from converter.mtcnn_layer_map import MtcnnNetwork

_KINDS = {
    LayerKind.CONVOLUTION: "conv",
    LayerKind.FULLY_CONNECTED: "dense",
    LayerKind.PRELU: "prelu",
    LayerKind.MAX_POOL: "max_pool",
    LayerKind.SOFTMAX: "softmax",
}
_EXCHANGED: Mapping[str, Layout] = {
    CONVOLUTION.name: CONVOLUTION_WIDTH_FIRST,
    "HWIO->OHWI": Layout("HWIO->OWHI", (3, 1, 0, 2)),
}
"""The layout of a graph's kernels, to that of a graph whose images are not transposed as facenet's are."""


@dataclass(frozen=True, slots=True)
class MtcnnLayers:
    """The layers of a graph of MTCNN.

    Attributes:
        tensors: state_dict key to the graph's tensor.
        outputs: Activation to the graph's output that holds it.
        remarks: The deviations from the network's structure.
    """

    tensors: Mapping[str, PortTensor]
    outputs: Mapping[str, str]
    remarks: tuple[str, ...]


def find_mtcnn_layers(graph: Graph, network: MtcnnNetwork) -> MtcnnLayers:
    """Find every layer of a graph.

    Raises:
        NotUnderstoodError: A layer is not found; the message names the node or the layer.
    """
    wiring, layers = Wiring(graph), MTCNN_LAYERS[network.name]
    found: dict[str, Node] = {}
    for node in graph.nodes:
        kind = "softmax" if node.kind.lower() == "softmax" else node.op
        if kind in _KINDS.values():
            found[_identify(graph, wiring, node, kind, found, layers, network)] = node
    missing = [name for name in layers if name not in found]
    if missing:
        raise NotUnderstoodError(graph, f"no {missing[0]} of {network}", reached=len(found))
    is_transposed = _is_transposed(wiring, found["conv1"])
    tensors = {
        row.key: _tensor(graph, found[row.scope], row, exchanges=not is_transposed) for row in network.rows
    }
    ends = {wiring.origin(output.name): output.name for output in graph.outputs}
    outputs = {name: ends.pop(node.output) for name, node in found.items() if node.output in ends}
    remarks = [remark for name, node in found.items() for remark in _remarks(name, node, layers[name])]
    remarks += [f"its output {plain_name(name)!r} is none of the network's" for name in ends.values()]
    return MtcnnLayers(tensors, outputs, tuple(remarks))


def _identify(
    graph: Graph,
    wiring: Wiring,
    node: Node,
    kind: str,
    found: Mapping[str, Node],
    layers: Mapping[str, NetworkLayer],
    network: MtcnnNetwork,
) -> str:
    """Find the layer that a node is: its kind, its input, and the number of its channels."""
    source = wiring.origin(node.inputs[0])
    rows = {row.scope: row for row in network.rows if row.key.endswith(".weight")}
    for name, layer in layers.items():
        (before,) = layer.inputs
        expected = (
            graph.inputs[0].name if before is None else found[before].output if before in found else None
        )
        if name not in found and _KINDS[layer.kind] == kind and source == expected:
            weights = graph.constants.get(node.inputs[1]) if name in rows else None
            if name not in rows or (weights is not None and weights.size == _size(rows[name])):
                return name
    raise NotUnderstoodError(
        graph, f"{label(node)} is no layer of {network} that takes {label(wiring.producer(node.inputs[0]))}",
        reached=len(found),
    )  # fmt: skip


def _size(row: ConvertedRow) -> int:
    size = 1
    for extent in row.shape:
        size *= extent
    return size


def _is_transposed(wiring: Wiring, first: Node) -> bool:
    """Return whether a graph transposes its images before the first layer, as facenet's detector does."""
    node = wiring.producers.get(first.inputs[0])
    return wiring.graph.channels_last and node is not None and node.kind == "TRANSPOSE"


def _tensor(graph: Graph, node: Node, row: ConvertedRow, *, exchanges: bool) -> PortTensor:
    """Take the tensor of a row from its node."""
    place = 1 if row.key.endswith(".weight") else 2
    name = node.inputs[place] if place < len(node.inputs) else ""
    if name not in graph.constants:
        raise NotUnderstoodError(graph, f"{label(node)} has no constant for {row.key}")
    array = graph.constants[name]
    if node.layout is None or place == 2:
        return PortTensor(plain_name(name), array.reshape(-1), VECTOR)
    layout = _EXCHANGED[node.layout.name] if node.op == "conv" and exchanges else node.layout
    return PortTensor(plain_name(name), array, layout)


def _remarks(name: str, node: Node, layer: NetworkLayer) -> list[str]:
    """Describe how the window of a convolution or pool differs from the network's."""
    window = node.window
    if window is None or layer.kernel is None:
        return []
    window = replace(window, size=window.size or layer.kernel)
    keeps_rest = window.padding == "SAME" or window.ceil_mode
    is_padded = window.padding not in ("SAME", "VALID", ((0, 0), (0, 0)))
    expected = (layer.stride, layer.stride), layer.kernel, (1, 1), 1
    if (window.strides, window.size, window.dilations, window.groups) != expected or is_padded:
        return [
            f"{name} has the window {window}, expected a size of {layer.kernel} and strides {expected[0]}"
        ]
    if layer.padding == "SAME" and not keeps_rest:
        return [f"{name} leaves out the pixels that do not fill a window"]
    if layer.kind is LayerKind.CONVOLUTION and keeps_rest and layer.kernel != (1, 1):
        return [f"{name} is padded, expected no padding"]
    return []
