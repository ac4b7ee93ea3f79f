"""A TensorFlow checkpoint's own graph that is run on images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from checks.audit.graphs.run_graph import GraphSession
from checks.core.activations import activation_names
from checks.core.environment import versions
from checks.core.inputs import IMAGE_SIZE
from checks.core.network import EMBEDDINGS
from checks.core.types import Array

if TYPE_CHECKING:
    from facenet_tf.own_graph import OwnGraph


ARITHMETIC = frozenset((
    "Add", "AddV2", "Assign", "AssignSub", "AssignSubVariableOp", "AssignVariableOp", "AvgPool",
    "BatchNormWithGlobalNormalization", "BiasAdd", "Cast", "Concat", "ConcatV2", "Const", "Conv2D",
    "Div", "ExpandDims", "Fill", "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3",
    "GreaterEqual", "Identity", "LogicalAnd", "MatMul", "MaxPool", "Maximum", "Mean", "Merge",
    "Minimum", "Mul", "Neg", "NoOp", "Pack", "Pad", "Placeholder", "PlaceholderWithDefault",
    "RandomUniform", "ReadVariableOp", "RealDiv", "RefSwitch", "Relu", "Reshape", "ResizeArea",
    "ResizeBicubic", "ResizeBilinear", "ResizeNearestNeighbor", "ReverseV2", "Rsqrt",
    "Select", "SelectV2", "Shape", "Slice", "Sqrt", "Square", "Squeeze", "StopGradient",
    "StridedSlice", "Sub", "Sum", "Switch", "Transpose", "VarHandleOp", "Variable", "VariableV2",
))  # fmt: skip
"""The operations of a network. A foreign graph with any other operation is not run, because TensorFlow's
operations can also read and write files."""


class TensorFlowSession(GraphSession):
    """The session of an open graph from a .pb or a .meta.

    Args:
        graph: The graph.

    Raises:
        ValueError: The graph holds operations that are not arithmetic.
    """

    def __init__(self, graph: OwnGraph) -> None:
        others = sorted(graph.operations - ARITHMETIC)
        if others:
            raise ValueError(f"it holds {', '.join(others)}, not only arithmetic")
        self.runtime = f"TensorFlow {versions()['tensorflow']}"
        self._graph = graph
        if not graph.is_normalised:
            self.output_description = "embeddings before the L2 normalisation, which was added to run it"
        self.activations = tuple(
            activation
            for activation in activation_names(every_layer=True, logits=False)
            if activation in graph.activations
        )

    def fit_images(self, images: Array) -> Array:
        """Return the images unchanged.

        Raises:
            ValueError: The graph does not take images of `IMAGE_SIZE`.
        """
        if not self._graph.supports(IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(f"it does not take images of {IMAGE_SIZE}x{IMAGE_SIZE}")
        return images

    def run(self, images: Array) -> list[Array]:
        """Run the graph; return each of `outputs` as (N, size)."""
        return [self._graph.run(images, [EMBEDDINGS])[EMBEDDINGS]]

    def run_layers(self, images: Array) -> list[Array]:
        """Run the graph; return every activation, NHWC."""
        arrays = self._graph.run(images, self.activations)
        return [arrays[activation] for activation in self.activations]
