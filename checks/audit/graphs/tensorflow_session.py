"""A TensorFlow checkpoint's own graph, ready to be run on images, as `run_graph.GraphSession` says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from checks.core.activations import EMBEDDINGS, activation_names
from checks.core.inputs import IMAGE_SIZE

if TYPE_CHECKING:
    from facenet_tf.own_graph import OwnGraph

Array = NDArray[Any]

ARITHMETIC = frozenset((
    "Add", "AddV2", "Assign", "AssignSub", "AssignSubVariableOp", "AssignVariableOp", "AvgPool",
    "BatchNormWithGlobalNormalization", "BiasAdd", "Cast", "Concat", "ConcatV2", "Const", "Conv2D",
    "Div", "ExpandDims", "Fill", "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3",
    "GreaterEqual", "Identity", "LogicalAnd", "MatMul", "MaxPool", "Maximum", "Mean", "Merge",
    "Minimum", "Mul", "Neg", "NoOp", "Pack", "Pad", "Placeholder", "PlaceholderWithDefault",
    "RandomUniform", "ReadVariableOp", "RealDiv", "RefSwitch", "Relu", "Reshape", "ReverseV2", "Rsqrt",
    "Select", "SelectV2", "Shape", "Slice", "Sqrt", "Square", "Squeeze", "StopGradient",
    "StridedSlice", "Sub", "Sum", "Switch", "Transpose", "VarHandleOp", "Variable", "VariableV2",
))  # fmt: skip
"""What a network is made of. TensorFlow's graphs can do more, such as read and write files; somebody else's
is run only if it holds nothing else."""


class TensorFlowSession:
    """An open graph of a .pb or a .meta.

    Args:
        graph: The graph.

    Raises:
        ValueError: It holds operations that are no arithmetic; nothing of it was run.
    """

    feed = "NHWC float32"
    gives = "embeddings of length one"
    dtype = weights = "float32"
    halved = False
    outputs: tuple[str, ...] = (EMBEDDINGS,)

    def __init__(self, graph: OwnGraph) -> None:
        import tensorflow

        others = sorted(graph.operations - ARITHMETIC)
        if others:
            raise ValueError(f"it was not run, for it holds {', '.join(others)}, and not arithmetic alone")
        self.runtime = f"TensorFlow {tensorflow.__version__}"
        self._graph = graph
        self.activations = tuple(
            activation
            for activation in activation_names(every_layer=True, logits=False)
            if activation in graph.activations
        )

    def fitted(self, images: Array) -> Array:
        """The images as they are: they have the size that these graphs were made for."""
        if not self._graph.supports(IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(f"it does not take images of {IMAGE_SIZE}x{IMAGE_SIZE}")
        return images

    def given(self, images: Array) -> list[Array]:
        """What each of `outputs` is, (N, size)."""
        return [self._graph.run(images, [EMBEDDINGS])[EMBEDDINGS]]

    def inner(self, images: Array) -> tuple[Array, list[Array]]:
        """What the first convolution takes, and what every activation gives, NHWC."""
        found = self._graph.run(images, self.activations)
        return images, [found[activation] for activation in self.activations]
