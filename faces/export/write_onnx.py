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

_AXES = {0: "N", 2: "height", 3: "width"}  # the names of variable extents of the input


def write_onnx(
    path: Path,
    module: nn.Module,
    interface: Interface,
    metadata: Mapping[str, str],
    *,
    halved: bool = False,
) -> None:
    """Write a network as an ONNX file, with its weights inside; the same network gives the same bytes.

    torch.onnx's older exporter writes it, which traces the network: its newer one takes ten times as long,
    and leaves the paths of the exporting machine's files in the graph.

    BatchNorm stays beside the convolutions, so that every tensor is the source's, bit for bit. onnxruntime
    folds it as it opens the file; its graph is then the same as that of a folded file.

    In half precision the weights of two and more axes are stored as the nearest float16, and a Cast widens
    them: onnxruntime does so once, as it opens the file, and computes in float32. A graph that computes in
    float16 is slower on a CPU, and its embeddings are farther from the source's.

    Args:
        path: The file.
        module: The network with this interface, in evaluation mode.
        interface: What it takes and gives.
        metadata: Key to value, as the file states them.
        halved: Whether the weights are stored in half precision.
    """
    import onnx

    name = interface.input_name
    variable = {axis: _AXES[axis] for axis, extent in enumerate(interface.shape) if extent is None}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the older exporter, and of shapes that a trace takes as fixed
        torch.onnx.export(
            module,
            (interface.example(),),
            path,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            input_names=[name],
            output_names=list(interface.outputs),
            dynamic_axes={name: variable},
        )
    model = onnx.load(path)
    for output in model.graph.output:
        _set_shape(output, interface.outputs[output.name])
    if halved:
        _halve(model.graph)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _halve(graph: Any) -> None:
    """Store the weights as the nearest float16, with a Cast behind each that has the name of the weights."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            name, half = tensor.name, f"{tensor.name}.float16"
            with np.errstate(over="ignore"):  # the audit refuses an infinity
                array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, half))
            casts.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _set_shape(value: Any, shape: Sequence[int | None]) -> None:
    """State the shape of an output, whose extents the exporter leaves open."""
    value.type.tensor_type.shape.ClearField("dim")
    for extent in shape:
        dim = value.type.tensor_type.shape.dim.add()
        if extent is not None:
            dim.dim_value = extent
        elif len(value.type.tensor_type.shape.dim) == 1:
            dim.dim_param = _AXES[0]
