"""A computation graph in neutral terms, whatever file it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from checks.audit.port_layers import printable
from converter.errors import SourceError
from converter.layouts import Layout

Op = Literal[
    "conv", "dense", "batch_norm", "add", "subtract", "multiply", "divide", "relu", "concat", "max_pool",
    "mean", "same", "other",
]  # fmt: skip
"""What a node does. same: nothing to the values of its first input but to order or store them differently."""

_MOST_LETTERS = 400  # of a description

Padding = tuple[tuple[int, int], tuple[int, int]] | Literal["SAME", "VALID"]
"""Rows before and after, columns before and after; or TensorFlow's words."""


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution or a pool slides: strides and dilations as (height, width)."""

    strides: tuple[int, int]
    padding: Padding
    size: tuple[int, int] | None = None
    dilations: tuple[int, int] = (1, 1)
    ceil_mode: bool = False
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    Attributes:
        op: What it does.
        kind: What the file calls the operation.
        inputs: Names of tensors; an empty name is an input that was left out.
        output: Name of its first output.
        relu: Whether a ReLU is fused into it.
        window: Of a convolution or pool.
        epsilon: Of a batch normalisation.
        layout: Of a convolution's or dense layer's weights, from TensorFlow's order of axes.
        axis: Of a concatenation.
    """

    op: Op
    kind: str
    inputs: tuple[str, ...]
    output: str
    relu: bool = False
    window: Window | None = None
    epsilon: float | None = None
    layout: Layout | None = None
    axis: int | None = None


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output of a graph: extents that are not fixed are None."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph that was read from a file.

    Attributes:
        path: The file.
        files: It, and whatever else tensors were read from.
        format: What it is, in words.
        title: What it says of itself: its name and who made it.
        nodes: In the file's order.
        constants: Name to array.
        inputs: What it takes.
        outputs: What it gives.
        channels_last: Whether its maps are NHWC; NCHW otherwise.
    """

    path: Path
    files: tuple[Path, ...]
    format: str
    title: str
    nodes: tuple[Node, ...]
    constants: Mapping[str, NDArray[Any]]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    channels_last: bool

    def described(self) -> str:
        """What it is, for a message that refuses it."""
        convolutions = sum(node.op == "conv" for node in self.nodes)
        takes = ", ".join(f"{value.name} {_extents(value.shape)}" for value in self.inputs)
        quantised = any(
            "INTEGER" in node.kind.upper() or "QLINEAR" in node.kind.upper() for node in self.nodes
        )
        what = f"{'quantised, ' if quantised else ''}{self.title}, with {convolutions} convolutions"
        return printable(f"{what}, taking {takes}"[:_MOST_LETTERS])


class ForeignGraphError(SourceError):
    """A graph is not that of this network (exit code 3).

    Args:
        graph: The graph.
        problem: Where it differs, a clause.
        reached: How many layers were found before.
    """

    def __init__(self, graph: Graph, problem: str, *, reached: int = 0) -> None:
        self.reached = reached
        super().__init__(
            graph.path,
            f"not an Inception-ResNet-v1: {problem} ({graph.described()})",
            next_step="Give the file of a FaceNet port, with its weights as constants",
        )


def _extents(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("?" if extent is None else str(extent) for extent in shape) + ")"
