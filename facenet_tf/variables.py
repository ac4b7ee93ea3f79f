"""The variables of the network: their names and shapes, and the options that a set of them implies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facenet_tf import import_tensorflow

tf = import_tensorflow()
tf1 = tf.compat.v1

SCOPE = "InceptionResnetV1"
BOTTLENECK = f"{SCOPE}/Bottleneck"
OLD_BOTTLENECK = "Bottleneck"
"""The scope of the embedding layer in checkpoints from before 2017-05-09."""

STATISTICS = ("/moving_mean", "/moving_variance")
"""The ends of the names of variables without a gradient."""


class NetworkOptions(NamedTuple):
    """The arguments of `build` that match a checkpoint's variables."""

    embedding_size: int
    num_classes: int | None
    gamma: bool
    bottleneck_scope: str


def infer_options(tensors: Mapping[str, NDArray[Any]]) -> NetworkOptions:
    """Infer the options of `build` from a set of variables.

    Args:
        tensors: Variable name to array.

    Returns:
        The options with which `build` creates these variables; `require_variables` then checks them.

    Raises:
        ValueError: There is no embedding layer.
    """
    for scope in (BOTTLENECK, OLD_BOTTLENECK):
        if f"{scope}/weights" in tensors:
            break
    else:
        raise ValueError(f"missing {BOTTLENECK}/weights: not the variables of Inception-ResNet-v1")
    head = tensors.get("Logits/weights")
    return NetworkOptions(
        embedding_size=np.atleast_1d(tensors[f"{scope}/weights"]).shape[-1],
        num_classes=np.atleast_1d(head).shape[-1] if head is not None else None,
        gamma=f"{SCOPE}/Conv2d_1a_3x3/BatchNorm/gamma" in tensors,
        bottleneck_scope=scope,
    )


def require_variables(tensors: Mapping[str, NDArray[Any]]) -> None:
    """Check that a set of variables is that of the network in the default graph.

    Args:
        tensors: Variable name to array.

    Raises:
        ValueError: Variables are missing, unexpected or of another shape; the message names all of them.
    """
    require_shapes(tensors, graph_shapes())


def require_shapes(tensors: Mapping[str, NDArray[Any]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check a set of variables as `require_variables` does, against given shapes."""
    problems = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"unexpected {name}" for name in sorted(tensors.keys() - expected.keys())]
    problems += [
        f"{name} has shape {np.shape(tensors[name])}, not {shape}"
        for name, shape in expected.items()
        if name in tensors and np.shape(tensors[name]) != shape
    ]
    if problems:
        raise ValueError("not the variables of this network: " + "; ".join(problems))


def graph_shapes() -> dict[str, tuple[int, ...]]:
    """Map the variables of the default graph to their shapes, in the order of creation."""
    return {v.op.name: tuple(v.shape.as_list()) for v in tf1.global_variables()}


def load_variables(session: Any, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Initialise variables of the session's graph by feeding their initial values.

    Args:
        session: An open session on the graph of the variables.
        tensors: Variable name to array; other variables do not change.
    """
    variables = {v.op.name: v for v in session.graph.get_collection(tf1.GraphKeys.GLOBAL_VARIABLES)}
    chosen = [(variables[name], value) for name, value in tensors.items()]
    session.run([v.initializer for v, _ in chosen], {v.initial_value: value for v, value in chosen})
