"""MTCNN's three networks rebuilt from scratch as TensorFlow 1 graphs.

The architecture is that of `PNet`, `RNet` and `ONet` in davidsandberg/facenet's `src/align/detect_face.py`;
the names of variables and activations are those of its layers. As there, images and maps have their height
and width exchanged on the way into and out of a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from facenet_tf import import_tensorflow
from facenet_tf.session import check_activations, legacy_graph, open_session
from facenet_tf.variables import load_variables, require_variables

tf = import_tensorflow()
tf1 = tf.compat.v1


class Layers:
    """Builds layers. Each is an activation, and each but the outputs takes the layer before it.

    Attributes:
        endpoints: Activation name to symbolic tensor, in the order of evaluation.
    """

    def __init__(self, images: Any) -> None:
        self._last = images
        self.endpoints: dict[str, Any] = {}

    def conv(self, name: str, filters: int, size: int) -> None:
        """Convolution of stride 1 without padding, with biases."""
        with tf1.variable_scope(name):
            kernel = self._variable("weights", (size, size, self._last.shape[-1], filters))
            net = tf1.nn.conv2d(self._last, kernel, [1, 1, 1, 1], padding="VALID")
            self._add(name, tf.nn.bias_add(net, self._variable("biases", (filters,))))

    def prelu(self, name: str) -> None:
        """Multiply what is negative by a factor for each channel."""
        with tf1.variable_scope(name):
            alpha = self._variable("alpha", (self._last.shape[-1],))
            self._add(name, tf.nn.relu(self._last) + alpha * (-tf.nn.relu(-self._last)))

    def max_pool(self, name: str, size: int, padding: Literal["SAME", "VALID"] = "SAME") -> None:
        """Max pool of stride 2."""
        self._add(name, tf.nn.max_pool2d(self._last, size, strides=2, padding=padding))

    def fc(self, name: str, outputs: int) -> None:
        """Fully connected layer, which flattens a map in its order of axes."""
        inputs = int(np.prod(self._last.shape[1:].as_list()))
        with tf1.variable_scope(name):
            weights = self._variable("weights", (inputs, outputs))
            biases = self._variable("biases", (outputs,))
            self._add(name, tf1.nn.xw_plus_b(tf.reshape(self._last, [-1, inputs]), weights, biases))

    def softmax(self, name: str) -> None:
        """Softmax over the channels, in the steps of the original."""
        exponentials = tf.exp(self._last - tf.reduce_max(self._last, -1, keepdims=True))
        self._add(name, exponentials / tf.reduce_sum(exponentials, -1, keepdims=True))

    def back_to(self, name: str) -> None:
        """Let the next layer take the layer of this name."""
        self._last = self.endpoints[name]

    def _variable(self, name: str, shape: Sequence[int]) -> Any:
        return tf1.get_variable(name, shape, self._last.dtype, tf1.zeros_initializer(), use_resource=False)

    def _add(self, name: str, net: Any) -> None:
        self.endpoints[name] = self._last = net


def _p_net(layers: Layers) -> None:
    layers.conv("conv1", 10, 3)
    layers.prelu("PReLU1")
    layers.max_pool("pool1", 2)
    layers.conv("conv2", 16, 3)
    layers.prelu("PReLU2")
    layers.conv("conv3", 32, 3)
    layers.prelu("PReLU3")
    layers.conv("conv4-1", 2, 1)
    layers.softmax("prob1")
    layers.back_to("PReLU3")
    layers.conv("conv4-2", 4, 1)


def _r_net(layers: Layers) -> None:
    layers.conv("conv1", 28, 3)
    layers.prelu("prelu1")
    layers.max_pool("pool1", 3)
    layers.conv("conv2", 48, 3)
    layers.prelu("prelu2")
    layers.max_pool("pool2", 3, "VALID")
    layers.conv("conv3", 64, 2)
    layers.prelu("prelu3")
    layers.fc("conv4", 128)
    layers.prelu("prelu4")
    layers.fc("conv5-1", 2)
    layers.softmax("prob1")
    layers.back_to("prelu4")
    layers.fc("conv5-2", 4)


def _o_net(layers: Layers) -> None:
    layers.conv("conv1", 32, 3)
    layers.prelu("prelu1")
    layers.max_pool("pool1", 3)
    layers.conv("conv2", 64, 3)
    layers.prelu("prelu2")
    layers.max_pool("pool2", 3, "VALID")
    layers.conv("conv3", 64, 3)
    layers.prelu("prelu3")
    layers.max_pool("pool3", 2)
    layers.conv("conv4", 128, 2)
    layers.prelu("prelu4")
    layers.fc("conv5", 256)
    layers.prelu("prelu5")
    layers.fc("conv6-1", 2)
    layers.softmax("prob1")
    layers.back_to("prelu5")
    layers.fc("conv6-2", 4)
    layers.back_to("prelu5")
    layers.fc("conv6-3", 10)


NETWORKS: Mapping[str, tuple[Callable[[Layers], None], int | None]] = {
    "P-Net": (_p_net, None),
    "R-Net": (_r_net, 24),
    "O-Net": (_o_net, 48),
}
"""Name to the function that builds it, and the height and width of its images if they are fixed."""


class RebuiltMtcnn:
    """A context manager: one of MTCNN's networks with a file's weights.

    Args:
        network: "P-Net", "R-Net" or "O-Net".
        tensors: Variable name to float32 array, all of the network's.
        dtype: Dtype of the arithmetic; float64 holds the float32 weights exactly.

    Attributes:
        activations: The names that `run` takes, in the order of evaluation.

    Raises:
        ValueError: Variables are missing, unexpected or of another shape; the message names all of them.
    """

    def __init__(
        self,
        network: str,
        tensors: Mapping[str, NDArray[Any]],
        dtype: Literal["float32", "float64"] = "float32",
    ) -> None:
        build, size = NETWORKS[network]
        with legacy_graph() as graph:
            self._images = tf1.placeholder(dtype, (None, size, size, 3), name="input")
            layers = Layers(self._images)
            build(layers)
            require_variables(tensors)
        self._endpoints = layers.endpoints
        self.activations = tuple(self._endpoints)
        self._session = open_session(graph)
        load_variables(self._session, tensors)

    def run(self, images: NDArray[Any], activations: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Run the network on a batch.

        Args:
            images: Standardised pixels (N, H, W, 3), converted to the dtype of the network: H and W at least
                12 for P-Net, 24 for R-Net, 48 for O-Net.
            activations: Activations to return; None for all.

        Returns:
            Activation name to array in the dtype of the network: maps (N, H', W', channels), vectors
            (N, size).

        Raises:
            ValueError: The images have a wrong shape, or an activation does not exist.
        """
        names = self.activations if activations is None else tuple(activations)
        check_activations(names, self.activations)
        values = self._session.run(
            {name: self._endpoints[name] for name in names}, {self._images: images.transpose(0, 2, 1, 3)}
        )
        return {
            name: np.ascontiguousarray(value.transpose(0, 2, 1, 3)) if value.ndim == 4 else value
            for name, value in values.items()
        }

    def close(self) -> None:
        """Release the session."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
