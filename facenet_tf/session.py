"""Makes TensorFlow 1 graphs and sessions, and checks their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from facenet_tf import import_tensorflow

tf = import_tensorflow()
tf1 = tf.compat.v1

MIN_IMAGE_SIZE = 75
"""The smallest side of an image: the last stage then has a map of one pixel."""


@contextmanager
def legacy_graph() -> Iterator[Any]:
    """Enter a new graph whose conditionals are Switch and Merge and whose variables are VariableV2.

    In current TensorFlow both are settings of the process, which the end of the block restores.

    Yields:
        The `tf.Graph`, which is the default graph in the block.
    """
    control_flow_v2 = tf1.control_flow_v2_enabled()
    resource_variables = tf1.resource_variables_enabled()
    tf1.disable_control_flow_v2()
    tf1.disable_resource_variables()
    try:
        with tf.Graph().as_default() as graph:
            yield graph
    finally:
        if control_flow_v2:
            tf1.enable_control_flow_v2()
        if resource_variables:
            tf1.enable_resource_variables()


def open_session(graph: Any) -> Any:
    """Open a session that runs the graph without rewriting it.

    Grappler, the graph rewriter, is off. It would fold constants and fuse batch normalisation into
    convolutions. Activations would then vanish, and the arithmetic would differ from the checkpoint's.

    Args:
        graph: The `tf.Graph` to run.

    Returns:
        The `tf.compat.v1.Session`.
    """
    config = tf1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    return tf1.Session(graph=graph, config=config)


def check_images(images: NDArray[Any]) -> None:
    """Raise ValueError unless `images` is (N, H, W, 3) with H and W at least 75."""
    if images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < MIN_IMAGE_SIZE:
        raise ValueError(f"images must be (N, H, W, 3) with H, W >= {MIN_IMAGE_SIZE}, not {images.shape}")


def check_activations(names: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError with the names that are not in `known`."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no such activation: {', '.join(unknown)}")
