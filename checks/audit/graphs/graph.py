"""A computation graph, independent of the format of its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from checks.audit.port_layers import printable
from checks.audit.quantisation import Quantisation, QuantisedTensor
from checks.core.types import Array
from converter.errors import SourceError
from converter.layouts import Layout

Op = Literal[
    "conv", "dense", "batch_norm", "add", "subtract", "multiply", "divide", "relu", "concat", "max_pool",
    "mean", "same", "prelu", "other",
]  # fmt: skip
"""The operation of a node. same: the values of its first input, with another order or dtype."""

_LONGEST_DESCRIPTION = 400  # characters

Padding = tuple[tuple[int, int], tuple[int, int]] | Literal["SAME", "VALID"]
"""((rows above, rows below), (columns left, columns right)), or TensorFlow's word for the padding."""


@dataclass(frozen=True, slots=True)
class Window:
    """The window of a convolution or a pool; strides, size and dilations are (height, width)."""

    strides: tuple[int, int]
    padding: Padding
    size: tuple[int, int] | None = None
    dilations: tuple[int, int] = (1, 1)
    ceil_mode: bool = False
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Node:
    """An operation.

    Attributes:
        op: The operation.
        kind: The file's own name for the operation.
        inputs: The names of its input tensors; an empty name stands for an optional input that is absent.
        output: The name of its first output.
        relu: Whether a ReLU is fused into it.
        window: The window of a convolution or pool.
        epsilon: The epsilon of a batch normalisation.
        layout: TensorFlow's order of axes to that of a convolution's or dense layer's weights.
        quantisation: The scale and the zero point of a node that quantises or dequantises.
    """

    op: Op
    kind: str
    inputs: tuple[str, ...]
    output: str
    relu: bool = False
    window: Window | None = None
    epsilon: float | None = None
    layout: Layout | None = None
    quantisation: Quantisation | None = None

    @property
    def quantises(self) -> bool:
        """True if it turns numbers into integers, with a quantisation that is understood or not."""
        return self.kind in ("QuantizeLinear", "QUANTIZE")

    @property
    def dequantises(self) -> bool:
        """True if it turns integers into numbers."""
        return self.kind in ("DequantizeLinear", "DEQUANTIZE")


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output of a graph; a variable extent is None."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph that was read from a file.

    Attributes:
        path: The file.
        files: The file, and any other files with its tensors.
        format: The format as users read it, such as "ONNX graph".
        title: The names of the graph and of the tool that wrote it.
        nodes: The nodes, in the file's order.
        constants: Name to array.
        inputs: The inputs, without the constants.
        outputs: The outputs.
        channels_last: Whether its maps are NHWC; NCHW otherwise.
        metadata: Key to value, as the file states them.
        quantised: Name to the integers of the constants that are quantised; `constants` has their numbers.
        ends: The name of an input or an output of numbers, to the name of the file's own, which has integers,
            and their quantisation.
    """

    path: Path
    files: tuple[Path, ...]
    format: str
    title: str
    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    channels_last: bool
    metadata: Mapping[str, str] = field(default_factory=dict)
    quantised: Mapping[str, QuantisedTensor] = field(default_factory=dict)
    ends: Mapping[str, tuple[str, Quantisation]] = field(default_factory=dict)

    def name_in_file(self, name: str) -> str:
        """The name in the file of an input, an output or any other tensor."""
        return self.ends[name][0] if name in self.ends else name

    def dtype_in_file(self, value: Value) -> str:
        """The dtype of an input or an output in the file."""
        return str(self.ends[value.name][1].zero_point.dtype) if value.name in self.ends else value.dtype

    def description(self) -> str:
        """Describe the graph for a message."""
        convolutions = sum(node.op == "conv" for node in self.nodes)
        takes = ", ".join(f"{value.name} {_extents(value.shape)}" for value in self.inputs)
        noun = "convolution" if convolutions == 1 else "convolutions"
        description = f"{self.title}, with {convolutions} {noun}, taking {takes}"
        return printable(description[:_LONGEST_DESCRIPTION])


class NotUnderstoodError(SourceError):
    """The layers of a graph are not found: it is another network, or the same one written in another way.

    Args:
        graph: The graph.
        problem: A clause on the problem, which names the node.
        reached: The number of layers that the search found.

    Attributes:
        place: The problem, with a description of the graph.
    """

    def __init__(self, graph: Graph, problem: str, *, reached: int = 0) -> None:
        self.reached = reached
        self.place = f"{problem} ({graph.description()})"
        super().__init__(graph.path, f"its graph is not understood: {self.place}")


def _extents(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("?" if extent is None else str(extent) for extent in shape) + ")"
