"""Rewrite the networks of the detector with operations that ONNX Runtime is faster at.

ONNX Runtime keeps maps in blocks of channels while it can, and leaves them for PReLU, for Softmax over maps,
and for a number of channels that fills no blocks. So other operations replace those two, and maps of zeros
fill the blocks. A PReLU before a max pool moves behind it, where a quarter of the numbers is left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

REWRITTEN = "PReLU as Relu, Mul and Add after the pool, Softmax as Sigmoid, blocks of 16 channels"
"""What `rewrite_detector` does, in words: a check of a file that it changes holds for this graph alone."""

_BLOCK = 16  # channels that ONNX Runtime keeps side by side; 8 on a processor without AVX-512

Array = NDArray[np.float32]


def rewrite_detector(path: Path) -> bytes:
    """Read a network of the detector as it was exported, and write the same function in other operations."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    followers = {name: node for node in model.graph.node for name in node.input}
    nodes: list[Any] = []

    def add(operation: str, *inputs: str | Array, output: str = "", **attributes: Any) -> str:
        output = output or f"{operation}.{len(nodes)}"
        names = []
        for place, item in enumerate(inputs):
            names.append(item if isinstance(item, str) else f"{output}.{place}")
            if not isinstance(item, str):
                values[names[-1]] = item
        nodes.append(helper.make_node(operation, names, [output], **attributes))
        return output

    maps: set[str] = set()
    pooled: set[str] = set()
    for node in model.graph.node:
        taken, (output,) = list(node.input), node.output
        follower = followers.get(output)
        if node.op_type == "Conv":
            maps.add(output)
            kernel, bias = values[taken[1]], values[taken[2]]
            if kernel.shape[1] > 3:  # the colours stay three
                kernel = _fill_blocks(kernel, 1)
            if follower is not None and follower.op_type == "PRelu":
                slope = values[follower.input[1]]
                copied = _copied_channels(slope)
                factors = slope[copied].reshape(-1)
                kernel = np.concatenate([kernel, kernel[copied] * factors[:, None, None, None]])
                bias = np.concatenate([bias, bias[copied] * factors])
                kernel, bias = _fill_blocks(kernel, 0), _fill_blocks(bias, 0)
            elif follower is not None and follower.op_type == "Softmax":
                kernel, bias = kernel - kernel[::-1], bias - bias[::-1]
            values.update(zip(taken[1:], (kernel, bias), strict=True))
            nodes.append(node)
        elif node.op_type == "PRelu":
            x, slope = taken[0], values[taken[1]]
            filled = _fill_blocks(slope, 0) if x in maps else slope
            if follower is None or follower.op_type != "MaxPool":
                add("Add", add("Mul", x, filled), add("Mul", add("Relu", x), 1 - filled), output=output)
                continue
            pooled.add(follower.output[0])
            window = {each.name: helper.get_attribute_value(each) for each in follower.attribute}
            largest = add("MaxPool", x, **window)
            if (copied := _copied_channels(slope)).size:
                pick = np.diag(np.maximum(filled.reshape(-1), 0))
                pick[copied, len(slope) + np.arange(len(copied))] = 1
                scaled = add("Conv", largest, pick[:, :, None, None])
            else:
                scaled = add("MaxPool", add("Mul", x, filled), **window)
            # PReLU is the larger one of x and slope * x, or the smaller one if the slope is above 1.
            sign = np.where(filled > 1, np.float32(-1), np.float32(1))
            difference = add("Add", add("Mul", largest, sign), add("Mul", scaled, -sign))
            add("Add", add("Mul", add("Relu", difference), sign), scaled, output=follower.output[0])
        elif node.op_type == "Softmax" and taken[0] in maps:
            add("Sigmoid", *taken, output=output)
        elif node.op_type != "MaxPool":
            nodes.append(node)
        else:
            assert output in pooled, "a max pool without a PReLU before it"
    used = dict.fromkeys(name for node in nodes for name in node.input if name in values)
    for old, new in (
        (model.graph.node, nodes),
        (model.graph.initializer, [numpy_helper.from_array(values[name], name) for name in used]),
        (model.graph.value_info, []),
    ):
        del old[:]
        old.extend(new)
    content: bytes = model.SerializeToString()
    return content


def _copied_channels(slope: Array) -> NDArray[np.intp]:
    """Choose the channels that a convolution computes a second time, multiplied by their slope.

    They are those of a negative slope, if the rest of the last block holds them: there they cost nothing.
    """
    negative = np.flatnonzero(slope < 0)
    return negative if len(negative) <= -len(slope) % _BLOCK else negative[:0]


def _fill_blocks(array: Array, axis: int) -> Array:
    """Add zeros at the end of an axis, to a multiple of `_BLOCK`."""
    missing = [(0, -extent % _BLOCK if place == axis else 0) for place, extent in enumerate(array.shape)]
    return np.pad(array, missing)
