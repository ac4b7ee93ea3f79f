"""Graphs to mutate: ONNX by the library that owns the format, TFLite by the schema's own builder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.fuzz.seeds import Seed


def _weights() -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(0)
    return {
        "kernel": random.standard_normal((8, 3, 3, 3), np.float32),
        "bias": random.standard_normal(8, np.float32),
        "half": random.standard_normal((8, 1, 1), np.float32).astype(np.float16),
        "shape": np.array([-1, 8], np.int64),
    }


def onnx_seeds(folder: Path) -> list[Seed]:
    """Write a graph of seven operations, with its weights inside and with some in a file beside it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = _weights()
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Conv", ["image", "kernel", "bias"], ["maps"], strides=[2, 2], pads=[0, 0, 1, 1]),
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(weights["shape"], "shape")),
        helper.make_node("Cast", ["half"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["positive", "wide"], ["scaled"]),
        helper.make_node("MaxPool", ["scaled"], ["pooled"], kernel_shape=[3, 3], ceil_mode=1),
        helper.make_node("Reshape", ["pooled", "shape"], ["embeddings"]),
    ]
    constants = [numpy_helper.from_array(weights[name], name) for name in ("kernel", "half")]
    listed = helper.make_tensor("bias", TensorProto.FLOAT, (8,), weights["bias"].tolist())
    graph = helper.make_graph(
        nodes, "small", [value("image", TensorProto.FLOAT, ["n", 3, 9, 9])],
        [value("embeddings", TensorProto.FLOAT, ["n", 8])], [*constants, listed],
    )  # fmt: skip
    model = helper.make_model(graph, producer_name="pytorch", producer_version="2.13")
    tensors = weights | {"wide": weights["half"]}
    inside, beside = folder / "inside.onnx", folder / "beside.onnx"
    onnx.save(model, inside)
    onnx.save(model, beside, save_as_external_data=True, location="beside.data", size_threshold=0)
    return [Seed(inside, tensors), Seed(beside, tensors)]


def tflite_seeds(folder: Path) -> list[Seed]:
    """Write a graph of two operations."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    weights = _weights()
    kernel = np.ascontiguousarray(weights["kernel"].transpose(0, 2, 3, 1))
    arrays = [None, kernel, weights["bias"], None, None]
    shapes = [(1, 9, 9, 3), kernel.shape, (8,), (1, 5, 5, 8), (1, 5, 5, 8)]
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.description, model.subgraphs = 3, "small", [graph]
    model.buffers, graph.tensors = [schema.BufferT()], []
    for number, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
        tensor, buffer = schema.TensorT(), schema.BufferT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = f"tensor{number}", list(shape), 0, number + 1
        buffer.data = None if array is None else np.frombuffer(array.tobytes(), np.uint8)
        graph.tensors.append(tensor)
        model.buffers.append(buffer)
    graph.inputs, graph.outputs, graph.name = [0], [4], "main"
    graph.operators, model.operatorCodes = [], []
    convolution, options = schema.OperatorT(), schema.Conv2DOptionsT()
    options.strideH = options.strideW = 2
    convolution.builtinOptions, convolution.builtinOptionsType = options, schema.BuiltinOptions.Conv2DOptions
    convolution.inputs, convolution.outputs, convolution.opcodeIndex = [0, 1, 2], [3], 0
    relu = schema.OperatorT()
    relu.inputs, relu.outputs, relu.opcodeIndex = [3], [4], 1
    for operator, kind in ((convolution, "CONV_2D"), (relu, "RELU")):
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, kind)
        graph.operators.append(operator)
        model.operatorCodes.append(code)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path = folder / "small.tflite"
    path.write_bytes(bytes(builder.Output()))
    return [Seed(path, {"tensor1#1": kernel, "tensor2#2": weights["bias"]})]
