"""Inception-ResNet-v1 rebuilt from scratch as a TensorFlow 1 graph.

The architecture is that of `inception_resnet_v1.py` in davidsandberg/facenet; the names of variables are
those of slim. Arithmetic is float32, with the fused batch normalisation of the published graphs, or float64.
In float64 every constant is the decimal number in the source (0.001, 0.17), not the nearest float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from facenet_tf import import_tensorflow
from facenet_tf.variables import BOTTLENECK, SCOPE

tf = import_tensorflow()
tf1 = tf.compat.v1

STAGES: tuple[str, ...] = (
    *(f"{SCOPE}/{name}" for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_3a_3x3")),
    *(f"{SCOPE}/{name}" for name in ("Conv2d_3b_1x1", "Conv2d_4a_3x3", "Conv2d_4b_3x3")),
    *(f"{SCOPE}/Repeat/block35_{i}" for i in range(1, 6)),
    f"{SCOPE}/Mixed_6a",
    *(f"{SCOPE}/Repeat_1/block17_{i}" for i in range(1, 11)),
    f"{SCOPE}/Mixed_7a",
    *(f"{SCOPE}/Repeat_2/block8_{i}" for i in range(1, 6)),
    f"{SCOPE}/Block8",
    f"{SCOPE}/Logits/AvgPool_1a_8x8",
    BOTTLENECK,
    "embeddings",
    "Logits",
)
"""The activations after each stage, in order. `Logits` exists only with the classification head."""

EPSILON = 0.001
"""Added to the variance; `batch_norm_params` of facenet's `inference`."""

DECAY = 0.995
"""Decay of the moving mean and variance; also in `batch_norm_params`."""

KEEP_PROBABILITY = 0.4
"""`--keep_probability` of the 2018 models."""

L2_FLOOR = 1e-10
"""The smallest squared norm that `embeddings` divides by; `l2_normalize` in facenet's `train_softmax.py`."""

Endpoints = dict[str, Any]
"""Activation name to symbolic tensor, in the order of evaluation."""


class Conv(NamedTuple):
    """A convolution unit: convolution, batch normalisation, ReLU."""

    name: str
    filters: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: Literal["SAME", "VALID"] = "SAME"


Branch = tuple[Conv, ...]

STEM_BEFORE_POOL: Branch = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
)
STEM_AFTER_POOL: Branch = (
    Conv("Conv2d_3b_1x1", 80, (1, 1), 1, "VALID"),
    Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    Conv("Conv2d_4b_3x3", 256, (3, 3), 2, "VALID"),
)
BLOCK35: tuple[Branch, ...] = (
    (Conv("Conv2d_1x1", 32, (1, 1)),),
    (Conv("Conv2d_0a_1x1", 32, (1, 1)), Conv("Conv2d_0b_3x3", 32, (3, 3))),
    (
        Conv("Conv2d_0a_1x1", 32, (1, 1)),
        Conv("Conv2d_0b_3x3", 32, (3, 3)),
        Conv("Conv2d_0c_3x3", 32, (3, 3)),
    ),
)
MIXED_6A: tuple[Branch, ...] = (
    (Conv("Conv2d_1a_3x3", 384, (3, 3), 2, "VALID"),),
    (
        Conv("Conv2d_0a_1x1", 192, (1, 1)),
        Conv("Conv2d_0b_3x3", 192, (3, 3)),
        Conv("Conv2d_1a_3x3", 256, (3, 3), 2, "VALID"),
    ),
)
BLOCK17: tuple[Branch, ...] = (
    (Conv("Conv2d_1x1", 128, (1, 1)),),
    (
        Conv("Conv2d_0a_1x1", 128, (1, 1)),
        Conv("Conv2d_0b_1x7", 128, (1, 7)),
        Conv("Conv2d_0c_7x1", 128, (7, 1)),
    ),
)
MIXED_7A: tuple[Branch, ...] = (
    (Conv("Conv2d_0a_1x1", 256, (1, 1)), Conv("Conv2d_1a_3x3", 384, (3, 3), 2, "VALID")),
    (Conv("Conv2d_0a_1x1", 256, (1, 1)), Conv("Conv2d_1a_3x3", 256, (3, 3), 2, "VALID")),
    (
        Conv("Conv2d_0a_1x1", 256, (1, 1)),
        Conv("Conv2d_0b_3x3", 256, (3, 3)),
        Conv("Conv2d_1a_3x3", 256, (3, 3), 2, "VALID"),
    ),
)
BLOCK8: tuple[Branch, ...] = (
    (Conv("Conv2d_1x1", 192, (1, 1)),),
    (
        Conv("Conv2d_0a_1x1", 192, (1, 1)),
        Conv("Conv2d_0b_1x3", 192, (1, 3)),
        Conv("Conv2d_0c_3x1", 192, (3, 1)),
    ),
)


class _Layers:
    """Builds layers and blocks with common settings.

    Attributes:
        endpoints: The activations of all layers so far.
    """

    def __init__(self, dtype: Any, training: Any, gamma: bool) -> None:
        self.dtype = dtype
        self.training = training
        self.gamma = gamma
        self.endpoints: Endpoints = {}

    def variable(self, name: str, shape: Sequence[int], *, trainable: bool = True) -> Any:
        return tf1.get_variable(
            name, shape, self.dtype, tf1.zeros_initializer(), trainable=trainable, use_resource=False
        )

    def activation(self, net: Any) -> Any:
        """Record a tensor as the activation of the current variable scope."""
        self.endpoints[tf1.get_variable_scope().name] = net
        return net

    def switch(self, when_training: Any, otherwise: Any) -> Any:
        """Choose a branch by `training`, a bool or a bool tensor."""
        if isinstance(self.training, bool):
            return when_training() if self.training else otherwise()
        return tf1.cond(self.training, when_training, otherwise)

    def convolution(self, net: Any, conv: Conv) -> Any:
        weights = self.variable("weights", (*conv.kernel, net.shape[-1], conv.filters))
        return tf1.nn.conv2d(net, weights, strides=[1, conv.stride, conv.stride, 1], padding=conv.padding)

    def unit(self, net: Any, conv: Conv) -> Any:
        with tf1.variable_scope(conv.name):
            return self.activation(tf.nn.relu(self.batch_norm(self.convolution(net, conv))))

    def branch(self, net: Any, convs: Branch) -> Any:
        for conv in convs:
            net = self.unit(net, conv)
        return net

    def branches(self, net: Any, branches: Sequence[Branch]) -> list[Any]:
        outputs = []
        for number, convs in enumerate(branches):
            with tf1.variable_scope(f"Branch_{number}"):
                outputs.append(self.branch(net, convs))
        return outputs

    def max_pool(self, net: Any, name: str) -> Any:
        with tf1.variable_scope(name):
            return self.activation(tf.nn.max_pool2d(net, 3, strides=2, padding="VALID"))

    def reduction(self, net: Any, name: str, branches: Sequence[Branch]) -> Any:
        """Halve the map with convolution branches and a max pool, which is the last branch."""
        with tf1.variable_scope(name):
            outputs = self.branches(net, branches)
            with tf1.variable_scope(f"Branch_{len(branches)}"):
                pooled = tf.nn.max_pool2d(net, 3, strides=2, padding="VALID", name="MaxPool_1a_3x3")
            return self.activation(tf.concat([*outputs, pooled], axis=3))

    def residual(
        self, net: Any, name: str, branches: Sequence[Branch], scale: float, *, relu: bool = True
    ) -> Any:
        """Add the scaled output of branches, which a convolution brings to the width of `net`."""
        with tf1.variable_scope(name):
            mixed = tf.concat(self.branches(net, branches), axis=3)
            with tf1.variable_scope("Conv2d_1x1"):
                width = net.shape[-1]
                update = self.convolution(mixed, Conv("Conv2d_1x1", width, (1, 1)))
                update = self.activation(tf.nn.bias_add(update, self.variable("biases", (width,))))
            net = net + tf.constant(scale, self.dtype) * update
            return self.activation(tf.nn.relu(net) if relu else net)

    def repeat(
        self, net: Any, scope: str, block: str, times: int, branches: Sequence[Branch], scale: float
    ) -> Any:
        with tf1.variable_scope(scope):
            for number in range(1, times + 1):
                net = self.residual(net, f"{block}_{number}", branches, scale)
        return net

    def batch_norm(self, net: Any) -> Any:
        """Normalise a map, or a matrix as a map of one pixel, as slim does.

        Training uses the batch's mean and biased variance, and moves the moving variance towards the unbiased
        variance. The output depends on the updates, so they always run.
        """
        if net.shape.rank == 2:
            return tf.reshape(self.batch_norm(net[:, tf.newaxis, tf.newaxis, :]), tf.shape(net))
        shape = (net.shape[-1],)
        with tf1.variable_scope("BatchNorm"):
            gamma = self.variable("gamma", shape) if self.gamma else tf.constant(1.0, self.dtype, shape)
            beta = self.variable("beta", shape)
            moving_mean = self.variable("moving_mean", shape, trainable=False)
            moving_variance = self.variable("moving_variance", shape, trainable=False)
            normalise = self._fused if self.dtype == tf.float32 else self._decomposed
            output, mean, variance = self.switch(
                lambda: normalise(net, gamma, beta, None),
                lambda: normalise(net, gamma, beta, (moving_mean, moving_variance)),
            )

            def update() -> Any:
                updates = [
                    tf1.assign_sub(moving, (moving - batch) * tf.constant(1 - DECAY, self.dtype))
                    for moving, batch in ((moving_mean, mean), (moving_variance, variance))
                ]
                with tf1.control_dependencies(updates):
                    return tf.identity(output)

            return self.switch(update, lambda: output)

    def _fused(self, net: Any, gamma: Any, beta: Any, moving: Any) -> Any:
        mean, variance = (None, None) if moving is None else moving
        return tf1.nn.fused_batch_norm(
            net, gamma, beta, mean, variance, epsilon=EPSILON, is_training=moving is None
        )

    def _decomposed(self, net: Any, gamma: Any, beta: Any, moving: Any) -> Any:
        """Compute the fused operation in steps, because TensorFlow does not have it in float64."""
        if moving is None:
            mean, variance = tf.nn.moments(net, axes=[0, 1, 2])
            count = tf.cast(tf.reduce_prod(tf.shape(net)[:3]), self.dtype)
            updated = variance * (count / tf.maximum(count - 1, 1))
        else:
            mean, variance = moving
            updated = variance
        factor = gamma * tf.math.rsqrt(variance + tf.constant(EPSILON, self.dtype))
        return (net - mean) * factor + beta, mean, updated


def build(
    images: Any,
    *,
    embedding_size: int,
    num_classes: int | None = None,
    training: Any = False,
    dtype: Any = tf.float32,
    gamma: bool = False,
    bottleneck_scope: str = BOTTLENECK,
    keep_probability: float = KEEP_PROBABILITY,
    dropout_mask: Any = None,
) -> Endpoints:
    """Add the network to the default graph, which must come from `legacy_graph`.

    Args:
        images: Tensor (N, H, W, 3) of `dtype`, standardised pixels, H and W at least 75.
        embedding_size: Width E of the embedding.
        num_classes: Width C of the classification head; None leaves the head out.
        training: Whether to use batch statistics and dropout: a bool, or a bool tensor that decides at run
            time, as `phase_train` does in the published graphs.
        dtype: `tf.float32` or `tf.float64`.
        gamma: Whether batch normalisation has a scale variable; the published models have none.
        bottleneck_scope: Variable scope of the embedding layer. Its activation is always
            `InceptionResnetV1/Bottleneck`.
        keep_probability: Share of the pooled features that dropout keeps in training.
        dropout_mask: Tensor (N, 1792) of `dtype`, 1 for a feature that dropout keeps, otherwise 0. None draws
            a mask for every batch.

    Returns:
        Every activation in the order of evaluation, the stages of `STAGES` and the 132 convolutions: maps
        (N, H', W', channels), `InceptionResnetV1/Bottleneck` and `embeddings` (N, E), `Logits` (N, C).
    """
    layers = _Layers(dtype, training, gamma)
    with tf1.variable_scope(SCOPE):
        net = layers.branch(images, STEM_BEFORE_POOL)
        net = layers.max_pool(net, "MaxPool_3a_3x3")
        net = layers.branch(net, STEM_AFTER_POOL)
        net = layers.repeat(net, "Repeat", "block35", 5, BLOCK35, 0.17)
        net = layers.reduction(net, "Mixed_6a", MIXED_6A)
        net = layers.repeat(net, "Repeat_1", "block17", 10, BLOCK17, 0.10)
        net = layers.reduction(net, "Mixed_7a", MIXED_7A)
        net = layers.repeat(net, "Repeat_2", "block8", 5, BLOCK8, 0.20)
        net = layers.residual(net, "Block8", BLOCK8, 1.0, relu=False)
        with tf1.variable_scope("Logits"):
            net = _average_pool(layers, net)
            net = layers.switch(lambda: _dropout(net, keep_probability, dropout_mask), lambda: net)
    with tf1.variable_scope(bottleneck_scope):
        net = tf.matmul(net, layers.variable("weights", (net.shape[-1], embedding_size)))
        net = layers.batch_norm(net)
    layers.endpoints[BOTTLENECK] = net
    layers.endpoints["embeddings"] = tf.math.l2_normalize(net, 1, L2_FLOOR, name="embeddings")
    if num_classes is not None:
        with tf1.variable_scope("Logits"):
            logits = tf.matmul(net, layers.variable("weights", (embedding_size, num_classes)))
            layers.activation(tf.nn.bias_add(logits, layers.variable("biases", (num_classes,))))
    return layers.endpoints


def _dropout(net: Any, keep_probability: float, mask: Any) -> Any:
    """Zero the features outside a mask and scale up the others; without a mask, draw one."""
    if mask is None:
        return tf.nn.dropout(net, rate=1 - keep_probability)
    return net * mask / tf.constant(keep_probability, net.dtype)


def _average_pool(layers: _Layers, net: Any) -> Any:
    """Average over the whole map; returns (N, channels)."""
    height, width, channels = net.shape[1:]
    with tf1.variable_scope("AvgPool_1a_8x8"):
        if height is None or width is None:
            net = tf.reduce_mean(net, axis=[1, 2], keepdims=True)
        else:
            net = tf.nn.avg_pool2d(net, [height, width], strides=1, padding="VALID")
        return tf.reshape(layers.activation(net), [-1, channels])
