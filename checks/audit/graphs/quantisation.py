"""Refuse graphs whose weights are integers, and name the tool that quantised them."""

from __future__ import annotations

from checks.audit.graphs.graph import Graph, Node
from checks.audit.graphs.wiring import label
from converter.errors import SourceError

_DYNAMIC = frozenset(
    {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
)
_STATIC = frozenset({"QuantizeLinear", "DequantizeLinear", "QGemm"})


def refuse_quantised(graph: Graph) -> None:
    """Refuse a graph with integer weights or integer arithmetic.

    Raises:
        SourceError: The graph is quantised.
    """
    quantised = [node for node in graph.nodes if _is_quantised(node, graph)]
    if not quantised:
        return
    kinds = {node.kind for node in quantised}
    if kinds & _DYNAMIC:
        tool = " by onnxruntime's quantize_dynamic"
    elif kinds & _STATIC or any(kind.startswith("QLinear") for kind in kinds):
        tool = " by onnxruntime's quantize_static"
    else:
        tool = ""
    others = f" and {len(quantised) - 1} more" if len(quantised) > 1 else ""
    ending = graph.path.suffix
    raise SourceError(
        graph.path,
        f"it is quantised{tool} ({label(quantised[0])}{others}): its weights are integers, which cannot be "
        "compared bit for bit",
        next_step="Audit the float32 file that it was made from: "
        f"facenet-port audit FLOAT32{ending} --against SOURCE",
    )


def _is_quantised(node: Node, graph: Graph) -> bool:
    """Return True if a node computes in integers, or takes weights of integers."""
    kind = node.kind.upper()
    if node.kind in _DYNAMIC | _STATIC or kind.startswith(("QLINEAR", "MATMULNBITS", "QUANTIZE")):
        return True
    if node.op not in ("conv", "dense") and kind != "DEQUANTIZE":
        return False
    arrays = (graph.constants[name] for name in node.inputs if name in graph.constants)
    return any(array.dtype.kind in "iu" and array.ndim > 1 for array in arrays)
