"""Compare a port of an MTCNN network with det1.npy, det2.npy or det3.npy."""

from __future__ import annotations

import numpy as np

from checks.audit.compare_one_tensor import add_cause, compare_exactly
from checks.audit.port_layers import PortTensor
from checks.audit.result import TensorResult
from checks.audit.source_weights import TensorPlace
from checks.core.mtcnn_network import layers_of
from checks.core.source_tensors import expected_state_dict
from checks.core.types import Arrays
from checks.diagnosis.explain_tensor import SourceTensors
from converter.convert import plan_tensors
from converter.errors import SourceError
from converter.layer_map import ConvertedRow
from converter.layouts import Layout
from converter.mtcnn_layer_map import find_network
from converter.network_names import NetworkTensors


def compare_mtcnn(port: NetworkTensors, source: NetworkTensors) -> tuple[TensorResult, ...]:
    """Compare every tensor of an MTCNN network with the source's.

    Args:
        port: The port.
        source: The source, a network of MTCNN.

    Raises:
        SourceError: The port is not the same network.
        MappingError: The source is not whole.
    """
    expected, actual = find_network(source, source.naming), find_network(port, port.naming)
    assert expected is not None
    if actual != expected:
        problem = str(actual) if actual else "not a network of MTCNN"
        raise SourceError(
            port.path,
            f"{problem}, but {source.path.name} is {expected}",
            next_step="P-Net goes with det1.npy, R-Net with det2.npy, O-Net with det3.npy",
        )
    tensors, plan = plan_tensors(source)
    state_dict = SourceTensors(expected_state_dict(tensors, plan), {}, layers_of(expected))
    results = [_compare_row(row, port, tensors, state_dict) for row in plan.converted]
    known = {_name(row, port) for row in plan.converted}
    return (*results, *(_extra(name, port) for name in port if name not in known))


def _name(row: ConvertedRow, port: NetworkTensors) -> str:
    return row.key if port.naming == "pytorch" else row.variable


def _compare_row(
    row: ConvertedRow, port: NetworkTensors, tensors: Arrays, state_dict: SourceTensors
) -> TensorResult:
    name = _name(row, port)
    if name not in port:
        return TensorResult(
            name=port.original(name), variable=row.variable, stage=row.scope, layout="", dtype="", shape=(),
            status="missing", key=row.key,
        )  # fmt: skip
    layout = row.layout if port.naming == "pytorch" else _as_stored(row)
    tensor = PortTensor(port.original(name), np.array(port[name]), layout)
    return compare_tensor(row, tensor, tensors, state_dict)


def compare_tensor(
    row: ConvertedRow, tensor: PortTensor, tensors: Arrays, state_dict: SourceTensors
) -> TensorResult:
    """Compare a tensor of a port with the source's; where it differs, add the reason if that is known.

    Args:
        row: Its row of the layer map.
        tensor: The port's tensor.
        tensors: Variable to array of the source.
        state_dict: The same under PyTorch's keys.
    """
    place = TensorPlace(row.scope, row.variable, row.key)
    result = compare_exactly(tensor, tensors[row.variable], place)
    if result.is_faithful:
        return result
    array, fits = tensor.array, tensor.array.ndim == len(tensor.layout.permutation) == len(row.shape)
    return add_cause(
        result, row.layout.apply(tensor.layout.inverse.apply(array)) if fits else array, row.key, state_dict
    )


def _as_stored(row: ConvertedRow) -> Layout:
    """The layout of a port with TensorFlow's names, which has TensorFlow's order of axes."""
    axes = row.layout.name.partition("->")[0]
    return Layout(f"{axes}->{axes}", tuple(range(len(row.shape))))


def _extra(name: str, port: NetworkTensors) -> TensorResult:
    info = port.info[name]
    return TensorResult(
        name=port.original(name), variable="", stage="", layout="", dtype=str(info.dtype), shape=info.shape,
        status="extra", detail="not a tensor of this network",
    )  # fmt: skip
