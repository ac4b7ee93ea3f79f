"""The rebuilt network in inference, in float32 or float64, with a checkpoint's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Self

from numpy.typing import NDArray

from facenet_tf import import_tensorflow
from facenet_tf.graph import build
from facenet_tf.session import check_activations, check_images, legacy_graph, open_session
from facenet_tf.variables import NetworkOptions, infer_options, require_shapes

tf = import_tensorflow()
tf1 = tf.compat.v1


class _Graph(NamedTuple):
    """A graph without values: every session on it has variables of its own.

    Attributes:
        graph: The finished `tf.Graph`.
        images: Its placeholder.
        endpoints: Its activations.
        values: Variable name to the placeholder of its value.
        load: The operations that assign them.
    """

    graph: Any
    images: Any
    endpoints: dict[str, Any]
    values: dict[str, Any]
    load: list[Any]


@lru_cache(maxsize=4)
def _inference_graph(dtype: str, options: NetworkOptions) -> _Graph:
    """Build the graph. Its variables are bare nodes: those of tf.compat.v1 take most of the time."""
    values, load = {}, []

    def create(name: str, shape: Sequence[int], **_: object) -> Any:
        with tf1.name_scope(None):
            variable = tf.raw_ops.VariableV2(shape=shape, dtype=dtype, name=name)
            values[name] = tf1.placeholder(dtype, shape)
            load.append(tf.raw_ops.Assign(ref=variable, value=values[name]).op)
        return variable

    with legacy_graph() as graph:
        images = tf1.placeholder(dtype, (None, None, None, 3), name="input")
        with tf1.variable_scope(tf1.get_variable_scope(), custom_getter=create):
            endpoints = build(images, dtype=tf.as_dtype(dtype), **options._asdict())
    graph.finalize()
    return _Graph(graph, images, endpoints, values, load)


class RebuiltNetwork:
    """A context manager: the rebuilt network with a checkpoint's weights, in inference.

    Args:
        tensors: Variable name to float32 array: the 492 variables, or 490 without the head, and the gammas if
            the checkpoint has them.
        dtype: Dtype of the arithmetic; float64 holds the float32 weights exactly.

    Attributes:
        activations: The names that `run` takes, in the order of evaluation.

    Raises:
        ValueError: Variables are missing, unexpected or of another shape; the message names all of them.
    """

    def __init__(
        self, tensors: Mapping[str, NDArray[Any]], dtype: Literal["float32", "float64"] = "float32"
    ) -> None:
        graph = _inference_graph(dtype, infer_options(tensors))
        require_shapes(tensors, {name: tuple(value.shape.as_list()) for name, value in graph.values.items()})
        self._images, self._endpoints = graph.images, graph.endpoints
        self.activations = tuple(self._endpoints)
        self._session = open_session(graph.graph)
        self._session.run(graph.load, {graph.values[name]: array for name, array in tensors.items()})

    def run(self, images: NDArray[Any], activations: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Run the network on a batch.

        Args:
            images: Standardised pixels (N, H, W, 3), converted to the dtype of the network; H and W at least
                75.
            activations: Activations to return; None for all.

        Returns:
            Activation name to array in the dtype of the network, NHWC.

        Raises:
            ValueError: The images have a wrong shape, or an activation does not exist.
        """
        check_images(images)
        names = self.activations if activations is None else tuple(activations)
        check_activations(names, self.activations)
        values: dict[str, NDArray[Any]] = self._session.run(
            {name: self._endpoints[name] for name in names}, {self._images: images}
        )
        return values

    def close(self) -> None:
        """Release the session."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
