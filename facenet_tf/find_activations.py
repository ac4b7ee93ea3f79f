"""Finds the activations of a checkpoint's own graph by walking from its variables.

The names of operations changed between releases of slim, so this module does not use them. The names of
variables and of the published interface (`input`, `phase_train`, `batch_size`, `embeddings`) are stable. A
walk starts at the variable of a layer's weights and stops at the last operation of the layer.
"""

from __future__ import annotations

from collections.abc import Collection

from facenet_tf.graph import STAGES
from facenet_tf.graph_nodes import ADDS, CONCATS, POOLS, READS, GraphError, GraphNodes, node_name
from facenet_tf.variables import BOTTLENECK, SCOPE

AVERAGE_POOL = f"{SCOPE}/Logits/AvgPool_1a_8x8"
CONVOLUTIONS = 132


def find_activations(nodes: GraphNodes, logits: str | None) -> dict[str, str]:
    """Find the last node of each stage and each convolution.

    Args:
        nodes: The graph, reduced to inference.
        logits: The result of `find_logits`.

    Returns:
        Activation name to the node whose first output is the activation, in the order of evaluation.

    Raises:
        GraphError: The graph is another network.
    """
    scopes = _convolution_scopes(nodes)
    ends = _convolution_ends(nodes, scopes)
    ends |= _other_stage_ends(nodes, ends)
    ends[BOTTLENECK] = _bottleneck_end(nodes)
    ends["embeddings"] = "embeddings"
    if logits is not None:
        ends["Logits"] = logits
    missing = [stage for stage in STAGES if stage not in ends and stage != "Logits"]
    if missing:
        raise GraphError(nodes.path, f"no variables for {', '.join(missing)}")
    in_order = [
        name
        for stage in STAGES
        for name in (*(scope for scope in scopes if scope.startswith(f"{stage}/")), stage)
        if name in ends
    ]
    return {name: ends[name] for name in in_order}


def find_logits(nodes: GraphNodes, feeds: Collection[str]) -> str | None:
    """Find the last node of the classification head; None if the graph has no head.

    Args:
        nodes: The whole graph.
        feeds: The nodes to feed.

    Raises:
        GraphError: The bias is missing, or there is not exactly one sum of the product and the bias.
    """
    if "Logits/weights" not in nodes.by_name:
        return None
    # A training graph multiplies by the weights once more, in the gradient. Only the forward product takes
    # the embeddings or one of their ancestors.
    forward = nodes.ancestors(["embeddings"], feeds)
    products = {
        node.name
        for node in nodes.descendants("Logits/weights", frozenset({"MatMul"}), READS)
        if node_name(node.input[0]) in forward
    }
    nodes.node("Logits/biases")
    sums = [
        node.name
        for node in nodes.descendants("Logits/biases", ADDS, READS)
        if any(node_name(reference) in products for reference in node.input)
    ]
    if len(sums) != 1:
        raise GraphError(nodes.path, f"Logits: {len(sums)} sums of the product and Logits/biases, not one")
    return str(sums[0])


def _convolution_scopes(nodes: GraphNodes) -> list[str]:
    """List the scopes of the 132 convolutions, sorted."""
    scopes = sorted(
        name.removesuffix("/weights")
        for name in nodes.by_name
        if name.startswith(f"{SCOPE}/") and name.endswith("/weights") and name != f"{BOTTLENECK}/weights"
    )
    if len(scopes) != CONVOLUTIONS:
        raise GraphError(nodes.path, f"{len(scopes)} convolutions have weights here, not {CONVOLUTIONS}")
    return scopes


def _convolution_ends(nodes: GraphNodes, scopes: list[str]) -> dict[str, str]:
    """Find the ends of the convolutions, at the ReLU or the biases, and of the residual blocks."""
    ends: dict[str, str] = {}
    for scope in scopes:
        convolution = nodes.descendant(scope, f"{scope}/weights", frozenset({"Conv2D"}), READS)
        if f"{scope}/biases" in nodes.by_name:
            ends[scope] = nodes.descendant(scope, convolution.name, ADDS, READS).name
            block = scope.rpartition("/")[0]
            ends[block] = _residual_end(nodes, block, ends[scope])
        else:
            ends[scope] = nodes.descendant(scope, convolution.name, frozenset({"Relu"})).name
    return ends


def _other_stage_ends(nodes: GraphNodes, ends: dict[str, str]) -> dict[str, str]:
    """Find the ends of the pools and reductions, each from the end of a previous layer."""
    result = {}
    for stage, start, ops in (
        (f"{SCOPE}/MaxPool_3a_3x3", f"{SCOPE}/Conv2d_2b_3x3", frozenset({"MaxPool"})),
        (f"{SCOPE}/Mixed_6a", f"{SCOPE}/Mixed_6a/Branch_0/Conv2d_1a_3x3", CONCATS),
        (f"{SCOPE}/Mixed_7a", f"{SCOPE}/Mixed_7a/Branch_0/Conv2d_1a_3x3", CONCATS),
        (AVERAGE_POOL, f"{SCOPE}/Block8", POOLS),
    ):
        if start not in ends:
            raise GraphError(nodes.path, f"no variable {start}/weights")
        result[stage] = nodes.descendant(stage, ends[start], ops, READS).name
    return result


def _residual_end(nodes: GraphNodes, block: str, update: str) -> str:
    """Find the last node of a residual block, from the end of its last convolution."""
    total = nodes.descendant(block, update, frozenset({"Add", "AddV2"}), READS | {"Mul"})
    relu = nodes.descendants(total.name, frozenset({"Relu"}), READS)
    return str(relu[0].name if relu else total.name)


def _bottleneck_end(nodes: GraphNodes) -> str:
    """Find the node that `embeddings` scales to unit length."""
    product = nodes.node("embeddings")
    if product.op in READS:
        product = nodes.producer(product, 0)
    if product.op == "Mul":
        for index in (0, 1):
            if nodes.producer(product, index).op == "Rsqrt":
                return node_name(product.input[1 - index])
    raise GraphError(nodes.path, "'embeddings' is not a product with the inverse of a length")
