"""Run a frozen graph by the names of its tensors, whatever network it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from facenet_tf import import_tensorflow
from facenet_tf.session import open_session

tf = import_tensorflow()
tf1 = tf.compat.v1


def open_frozen(
    pb: Path, outputs: Sequence[str], *, as_written: bool
) -> Callable[[str, NDArray[Any]], list[NDArray[Any]]]:
    """Open the nodes of a frozen graph; functions of its own are left out.

    Args:
        pb: The GraphDef file.
        outputs: The names of the nodes to fetch.
        as_written: Whether to run every node as written; otherwise TensorFlow rewrites the graph, as by
            default.

    Returns:
        A function from the name of the input and a batch of images to the outputs. `phase_train` is fed with
        False and `batch_size` with the number of images, where the graph has them.
    """
    stored = tf1.GraphDef.FromString(pb.read_bytes())
    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(tf1.GraphDef(node=stored.node, versions=stored.versions), name="")
    session = open_session(graph) if as_written else tf1.Session(graph=graph, config=_one_thread())
    placeholders = {operation.name for operation in graph.get_operations() if operation.type == "Placeholder"}

    def run(input_name: str, images: NDArray[Any]) -> list[NDArray[Any]]:
        feeds: dict[str, Any] = {f"{input_name}:0": images}
        for name, value in (("phase_train", False), ("batch_size", len(images))):
            if name in placeholders:
                feeds[f"{name}:0"] = value
        arrays: list[NDArray[Any]] = session.run([f"{name}:0" for name in outputs], feeds)
        return arrays

    return run


def _one_thread() -> Any:
    return tf1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
