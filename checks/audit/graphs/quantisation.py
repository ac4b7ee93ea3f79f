"""Recognise graphs of integers: those that are audited, and those that are refused with another step."""

from __future__ import annotations

from dataclasses import replace

from checks.audit.graphs.graph import Graph, Node, Value
from checks.audit.graphs.wiring import Wiring, label, plain_name
from checks.audit.quantisation import Quantisation
from converter.errors import SourceError

_DYNAMIC = frozenset(
    {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
)
_OPERATORS = frozenset({"QGemm"})

KEEP_ORDER = frozenset((
    "Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze",  # ONNX
    "CAST", "EXPAND_DIMS", "RESHAPE", "SQUEEZE", "STRIDED_SLICE",  # TFLite
))  # fmt: skip
"""Operations that give the numbers of their input in the same order."""


def is_quantised(graph: Graph) -> bool:
    """Return True if a graph quantises or dequantises: the format QDQ of ONNX, or TFLite's integers."""
    return bool(graph.quantised) or any(node.quantisation is not None for node in graph.nodes)


def is_dynamic(graph: Graph) -> bool:
    """Return True if a layer has weights of integers and takes numbers, which the runtime quantises.

    So do graphs by onnxruntime's `quantize_dynamic`, and by TensorFlow's converter without calibration.
    """
    dequantised = {node.output for node in graph.nodes if node.dequantises}
    for node in graph.nodes:
        if node.op in ("conv", "dense") and node.inputs[1] in graph.quantised:
            is_stored = graph.quantised[node.inputs[1]].name == node.inputs[1]
            if is_stored and node.inputs[0] not in dequantised:
                return True
    return False


def dequantise_ends(graph: Graph) -> Graph:
    """Give a graph numbers for an input and for outputs that are integers with a scale in the file.

    Images are quantised for such an input, and such outputs dequantised, as an app that runs the file has to.
    """
    takes = {node.inputs[0]: node for node in graph.nodes if node.dequantises}
    gives = {node.output: node for node in graph.nodes if node.quantises}
    ends: dict[str, tuple[str, Quantisation]] = {}
    inputs, outputs, nodes = [], [], list(graph.nodes)
    for value in graph.inputs:
        quantisation = takes[value.name].quantisation if value.name in takes else None
        if quantisation is not None:
            exact = f"{value.name} exact"
            ends[exact] = value.name, quantisation
            nodes.insert(0, Node("same", "QUANTIZE", (exact,), value.name, quantisation=quantisation))
            value = Value(exact, value.shape, "float32")
        inputs.append(value)
    for value in graph.outputs:
        quantisation = gives[value.name].quantisation if value.name in gives else None
        if quantisation is not None:
            numbers = takes[value.name].output if value.name in takes else f"{value.name} dequantised"
            ends[numbers] = value.name, quantisation
            if value.name not in takes:
                nodes.append(Node("same", "DEQUANTIZE", (value.name,), numbers, quantisation=quantisation))
            value = Value(numbers, value.shape, "float32")
        outputs.append(value)
    return replace(graph, nodes=tuple(nodes), inputs=tuple(inputs), outputs=tuple(outputs), ends=ends)


def refuse_quantised(graph: Graph) -> None:
    """Refuse a graph with integer weights or integer arithmetic that is not audited.

    Raises:
        SourceError: The graph is quantised in such a way.
    """
    quantised = [node for node in graph.nodes if _is_refused(node, graph)]
    if not quantised:
        return
    kinds = {node.kind for node in quantised}
    tool, again, reason = "", "", "its integers are of a kind that is not audited"
    if kinds & _DYNAMIC:
        tool = " as it runs"
        again = "quantize_dynamic, or by "
        reason = "the layer is not written as onnxruntime's quantize_dynamic writes it, so it cannot be read"
    elif kinds & _OPERATORS or any(kind.startswith("QLinear") for kind in kinds):
        tool = " by onnxruntime's quantize_static, with QuantFormat.QOperator"
        reason = "its layers are no longer those of the network"
    others = f" and {len(quantised) - 1} more" if len(quantised) > 1 else ""
    ending = graph.path.suffix
    if tool:
        again = (
            f"Quantise the float32 file by {again}quantize_static with QuantFormat.QDQ and audit that, or "
        )
    raise SourceError(
        graph.path,
        f"it is quantised{tool} ({label(quantised[0])}{others}): {reason}",
        next_step=f"{again}{'audit' if again else 'Audit'} the float32 file that it was made from: "
        f"facenet-port audit FLOAT32{ending} --against SOURCE",
    )


def refuse_reordering(wiring: Wiring, first: str, last: str) -> None:
    """Refuse a graph that reorders numbers between two tensors, where no arithmetic is judged that shows it.

    Args:
        wiring: The wiring of a graph that its runtime quantises.
        first: The input of the first layer.
        last: The output of the last layer.

    Raises:
        SourceError: An operation may reorder numbers.
    """
    graph, seen, waiting = wiring.graph, {first}, [last]
    while waiting:
        name = waiting.pop()
        node = wiring.producers.get(name)
        if node is None or name in seen or name in graph.constants:
            continue
        seen.add(name)
        is_moving = node.op == "same" and node.quantisation is None
        if is_moving and node.kind not in KEEP_ORDER:
            raise SourceError(
                graph.path,
                f"{label(node)} between its layers may reorder numbers, which only the arithmetic shows; but "
                "the arithmetic of a graph that is quantised as it runs is not judged",
                next_step="Audit the float32 file that it was made from: "
                f"facenet-port audit FLOAT32{graph.path.suffix} --against SOURCE",
            )
        waiting += node.inputs[:1] if node.op == "same" else node.inputs


def _is_refused(node: Node, graph: Graph) -> bool:
    """Return True if a node computes in integers that are not audited, or takes weights of such integers."""
    kind = node.kind.upper()
    if node.quantises or node.dequantises:
        return node.quantisation is None and node.op == "other"
    if node.kind in _DYNAMIC | _OPERATORS or kind.startswith(("QLINEAR", "MATMULNBITS")):
        return True
    if node.op not in ("conv", "dense"):
        return False
    arrays = (graph.constants[name] for name in node.inputs if name in graph.constants)
    return any(array.dtype.kind in "iu" and array.ndim > 1 for array in arrays)


def remarks_on_pairs(graph: Graph) -> list[str]:
    """Describe the tensors that are dequantised by another scale or zero point than quantised."""
    quantised = {node.output: node for node in graph.nodes if node.quantises}
    remarks = []
    for node in graph.nodes:
        before = quantised.get(node.inputs[0]) if node.dequantises else None
        if before is None or before.quantisation is None or node.quantisation is None:
            continue
        first, second = before.quantisation, node.quantisation
        if first.scale != second.scale or first.zero_point != second.zero_point:
            remarks.append(
                f"{plain_name(before.inputs[0])!r} is quantised with a scale of {first.scale:g} and a zero "
                f"point of {first.zero_point}, but dequantised with {second.scale:g} and {second.zero_point}"
            )
    return remarks
