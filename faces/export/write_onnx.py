"""Write a network of PyTorch as an ONNX file, by torch.onnx."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from faces.export.interface import Interface

BATCH = "N"
"""The name of a variable batch."""


def write_onnx(path: Path, module: nn.Module, interface: Interface, metadata: Mapping[str, str]) -> None:
    """Write a network as an ONNX file, with its weights inside; the same network gives the same bytes.

    torch.onnx's older exporter writes it, which traces the network: its newer one takes ten times as long,
    and leaves the paths of the exporting machine's files in the graph. Both fold BatchNorm into the
    convolutions.

    Args:
        path: The file.
        module: The network with this interface, in evaluation mode.
        interface: What it takes and gives.
        metadata: Key to value, as the file states them.
    """
    import onnx

    name, output_name = interface.input_name, interface.output_name
    variable = {axis: BATCH for axis, extent in enumerate(interface.shape) if extent is None}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the older exporter, and of shapes that a trace takes as fixed
        torch.onnx.export(
            module,
            (interface.example(),),
            path,
            dynamo=False,
            input_names=[name],
            output_names=[output_name],
            dynamic_axes={name: variable},
        )
    model = onnx.load(path)
    _set_shape(model.graph.output[0], interface.output_shape)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _set_shape(value: Any, shape: Sequence[int | None]) -> None:
    """State the shape of an output, whose extents the exporter leaves open."""
    value.type.tensor_type.shape.ClearField("dim")
    for extent in shape:
        dim = value.type.tensor_type.shape.dim.add()
        if extent is None:
            dim.dim_param = BATCH
        else:
            dim.dim_value = extent
