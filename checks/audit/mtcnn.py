"""The networks of MTCNN: a port's tensors against those of det1.npy, det2.npy and det3.npy."""

from __future__ import annotations

import numpy as np

from checks.audit.compare_tensors import compare_tensor
from checks.audit.port_layers import PortTensor
from checks.audit.result import TensorResult
from converter.errors import SourceError
from converter.formats.source import TensorSource
from converter.layer_map import Converted
from converter.layouts import Layout
from converter.mtcnn_layer_map import NETWORKS, network_of_keys, network_of_variables


def network(source: TensorSource) -> str | None:
    """The network whose tensors a file holds; None where they are none of MTCNN's."""
    if source.naming == "pytorch":
        return network_of_keys([name.removeprefix(_prefix(source)) for name in source])
    return network_of_variables(list(source))


def audit_tensors(port: TensorSource, source: TensorSource) -> tuple[str, tuple[TensorResult, ...]]:
    """Hold a port against its source.

    Returns:
        The network's name, and a result for each tensor.

    Raises:
        SourceError: They are not the same network.
    """
    name, found = network(source), network(port)
    assert name is not None
    if found != name:
        what = f"the {found} of MTCNN" if found else f"not the {name} of MTCNN"
        raise SourceError(
            port.path,
            f"{what}, and {source.path.name} is the {name}"
            if found
            else f"{what} that {source.path.name} is",
            next_step="P-Net goes with det1.npy, R-Net with det2.npy, O-Net with det3.npy",
        )
    return name, tuple(_result(row, port, source) for row in NETWORKS[name])


def _result(row: Converted, port: TensorSource, source: TensorSource) -> TensorResult:
    to_port, name = _place(row, port)
    to_source, original = _place(row, source)
    expected = to_source.inverse.apply(np.array(source[original]))
    return compare_tensor(PortTensor(name, np.array(port[name]), to_port), expected, row.variable, row.scope)


def _place(row: Converted, file: TensorSource) -> tuple[Layout, str]:
    """The layout in which a file holds a tensor, and what it calls it."""
    if file.naming == "pytorch":
        return row.layout, _prefix(file) + row.key
    axes = row.layout.name.partition("->")[0]
    return Layout(f"{axes}->{axes}", tuple(range(len(row.shape)))), row.variable


def _prefix(source: TensorSource) -> str:
    """What every key begins with, such as `pnet.`; empty where they have nothing in common."""
    prefixes = {name.partition(".")[0] + "." for name in source if name.count(".") > 1}
    return prefixes.pop() if len(prefixes) == 1 and all(name.count(".") > 1 for name in source) else ""
