"""The input and the end of a graph whose author gave them other names than the published graphs have.

A graph that has the published names keeps them. In another one the embeddings are the result of the L2
normalisation; if the graph ends before it, behind the Bottleneck, the normalisation is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facenet_tf import import_tensorflow
from facenet_tf.graph import L2_FLOOR
from facenet_tf.graph_nodes import LAYER_ENDS, READS, GraphError, GraphNodes, node_name, rename_nodes
from facenet_tf.variables import BOTTLENECK, OLD_BOTTLENECK, SCOPE

tf = import_tensorflow()

NORMALISATION = "added_normalisation"
"""The scope of the nodes that scale the output of a graph that ends before its L2 normalisation."""

_PLACEHOLDERS = frozenset({"Placeholder", "PlaceholderWithDefault"})
_MOST_NAMED = 3  # nodes in a message


def name_interface(path: Path, graph_def: Any) -> None:
    """Name the nodes `embeddings`, `input` and `phase_train` where no node has the name.

    Args:
        path: The graph's file, for messages.
        graph_def: The GraphDef, which is changed in place.

    Raises:
        GraphError: The embeddings or the images are not found.
    """
    if all(name in {node.name for node in graph_def.node} for name in ("embeddings", "input")):
        return
    nodes = GraphNodes(path, graph_def)
    if "embeddings" not in nodes.by_name:
        _name_embeddings(nodes, graph_def)
        nodes = GraphNodes(path, graph_def)
    forward = [nodes.by_name[name] for name in sorted(nodes.ancestors(["embeddings"], stops=()))]
    names = {_find_images(nodes, forward): "input"} if "input" not in nodes.by_name else {}
    flags = [node.name for node in forward if _is_placeholder(node, tf.bool)]
    if "phase_train" not in nodes.by_name and len(flags) == 1:
        names[flags[0]] = "phase_train"
    rename_nodes(graph_def, names)


def _name_embeddings(nodes: GraphNodes, graph_def: Any) -> None:
    scaled = [node.name for node in nodes.by_name.values() if _is_normalisation(nodes, node)]
    if len(scaled) == 1:
        rename_nodes(graph_def, {scaled[0]: "embeddings"})
        return
    used = {node_name(reference) for node in graph_def.node for reference in node.input}
    last = [name for name in nodes.by_name if name not in used]
    behind = _behind_bottleneck(nodes)
    layers = [node.op for node in behind.values() if node.op in LAYER_ENDS]
    ends = [name for name in last if name in behind]
    if scaled or layers != ["MatMul"] or len(ends) != 1:
        names = ", ".join(map(repr, last[-_MOST_NAMED:]))
        raise GraphError(
            nodes.path,
            "it has no node 'embeddings', and no other end behind the Bottleneck is known"
            + (f"; its last nodes are {names}" if names else ""),
        )
    _add_normalisation(graph_def, ends[0])


def _is_normalisation(nodes: GraphNodes, node: Any) -> bool:
    """Return whether a node is x * rsqrt(max(sum(x * x), floor)), as tf.nn.l2_normalize builds it."""
    if node.op != "Mul":
        return False
    for index in (0, 1):
        length = nodes.producer(node, index)
        if length.op != "Rsqrt":
            continue
        floored = nodes.producer(length, 0)
        inputs = range(2) if floored.op == "Maximum" else ()
        sums = [each for each in (nodes.producer(floored, i) for i in inputs) if each.op == "Sum"]
        squares = [each for each in (nodes.producer(each, 0) for each in sums) if each.op == "Square"]
        vector = nodes.producer(node, 1 - index).name
        if any(nodes.producer(each, 0).name == vector for each in squares):
            return True
    return False


def _behind_bottleneck(nodes: GraphNodes) -> Mapping[str, Any]:
    """The nodes that depend on the weights of the Bottleneck, by name."""
    waiting = [
        name for name in (f"{BOTTLENECK}/weights", f"{OLD_BOTTLENECK}/weights") if name in nodes.by_name
    ]
    result: dict[str, Any] = {}
    while waiting:
        for node in nodes.consumers[waiting.pop()]:
            if node.name not in result:
                result[node.name] = node
                waiting.append(node.name)
    return result


def _add_normalisation(graph_def: Any, vectors: str) -> None:
    with tf.Graph().as_default() as graph:
        tf.constant(-1, name=f"{NORMALISATION}/axis")
        tf.constant(L2_FLOOR, tf.float32, name=f"{NORMALISATION}/floor")
        graph_def.node.extend(graph.as_graph_def().node)
    names = {
        name: f"{NORMALISATION}/{name}" for name in ("axis", "floor", "square", "sum", "maximum", "rsqrt")
    }
    for name, op, inputs in (
        (names["square"], "Square", [vectors]),
        (names["sum"], "Sum", [names["square"], names["axis"]]),
        (names["maximum"], "Maximum", [names["sum"], names["floor"]]),
        (names["rsqrt"], "Rsqrt", [names["maximum"]]),
        ("embeddings", "Mul", [vectors, names["rsqrt"]]),
    ):
        node = graph_def.node.add(name=name, op=op, input=inputs)
        node.attr["T"].type = tf.float32.as_datatype_enum
        if op == "Sum":
            node.attr["Tidx"].type = tf.int32.as_datatype_enum
            node.attr["keep_dims"].b = True


def _find_images(nodes: GraphNodes, forward: list[Any]) -> str:
    """Find the placeholder of the images; without any, what the first convolution takes from a queue."""
    images = [node.name for node in forward if _is_placeholder(node, tf.float32)]
    if not images and any("Dequeue" in node.op for node in forward):
        kernel = f"{SCOPE}/Conv2d_1a_3x3/weights"
        convolution = nodes.descendant(kernel, kernel, frozenset({"Conv2D"}), READS)
        images = [node_name(convolution.input[0])]
    if len(images) != 1:
        held = (
            ", ".join(f"{node.name!r} ({node.op})" for node in forward if node.op in _PLACEHOLDERS) or "none"
        )
        raise GraphError(nodes.path, f"it has no single input of float32 images; its placeholders: {held}")
    return str(images[0])


def _is_placeholder(node: Any, dtype: Any) -> bool:
    return node.op in _PLACEHOLDERS and bool(node.attr["dtype"].type == dtype.as_datatype_enum)
