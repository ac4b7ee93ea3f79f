"""Compare a port of an MTCNN network with det1.npy, det2.npy or det3.npy."""

from __future__ import annotations

import numpy as np

from checks.audit.compare_one_tensor import compare_exactly
from checks.audit.port_layers import PortTensor
from checks.audit.result import TensorResult
from checks.audit.source_weights import TensorPlace
from converter.errors import SourceError
from converter.layer_map import ConvertedRow
from converter.layouts import Layout
from converter.mtcnn_layer_map import NETWORKS, network_of_keys, network_of_variables
from converter.network_names import NetworkTensors


def network_name(source: NetworkTensors) -> str | None:
    """Name the MTCNN network of a file; None for another network."""
    return network_of_keys(list(source)) if source.naming == "pytorch" else network_of_variables(list(source))


def compare_mtcnn(port: NetworkTensors, source: NetworkTensors) -> tuple[TensorResult, ...]:
    """Compare every tensor of an MTCNN network with the source's.

    Args:
        port: The port.
        source: The source, a network of MTCNN.

    Raises:
        SourceError: The port is not the same network.
    """
    expected, actual = network_name(source), network_name(port)
    assert expected is not None
    if actual != expected:
        problem = f"the {actual} of MTCNN" if actual else "not a network of MTCNN"
        raise SourceError(
            port.path,
            f"{problem}, but {source.path.name} is the {expected} of MTCNN",
            next_step="P-Net goes with det1.npy, R-Net with det2.npy, O-Net with det3.npy",
        )
    return tuple(_compare_row(row, port, source) for row in NETWORKS[expected])


def _compare_row(row: ConvertedRow, port: NetworkTensors, source: NetworkTensors) -> TensorResult:
    to_port, name = _layout_and_name(row, port)
    to_source, original = _layout_and_name(row, source)
    expected = to_source.inverse.apply(np.array(source[original]))
    tensor = PortTensor(port.original(name), np.array(port[name]), to_port)
    return compare_exactly(tensor, expected, TensorPlace(row.scope, row.variable, row.key))


def _layout_and_name(row: ConvertedRow, file: NetworkTensors) -> tuple[Layout, str]:
    """Find the layout and the name of a tensor in a file."""
    if file.naming == "pytorch":
        return row.layout, row.key
    axes = row.layout.name.partition("->")[0]
    return Layout(f"{axes}->{axes}", tuple(range(len(row.shape)))), row.variable
