"""Training graphs and checkpoints of FaceNet by tf-slim's own layers: a judge from outside this project.

The network follows `src/models/inception_resnet_v1.py` of davidsandberg/facenet, the graph around it
`src/train_softmax.py`, and the frozen graph `src/freeze_graph.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.convert import tensorflow_tensors
from converter.formats.detect import open_source
from facenet_tf import import_tensorflow
from facenet_tf.session import legacy_graph, open_session

tf = import_tensorflow()
tf1 = tf.compat.v1

CLASSES = 7
KEEP_PROBABILITY = 0.4
WEIGHT_DECAY = 5e-4
BOTTLENECK = "InceptionResnetV1/Bottleneck/weights"
STATISTICS = {"moving_mean", "moving_variance"}


def import_slim() -> Any:
    """Import tf-slim 1.1.0, which looks for two names where TensorFlow 2.21 no longer has them."""
    from tensorflow.python.framework import ops
    from tensorflow.python.ops import control_flow_ops

    ops.Tensor = tf.Tensor
    control_flow_ops.cond = tf1.cond
    import tf_slim

    return tf_slim


def _residual(
    slim: Any, name: str, branches: list[list[tuple[int, Any, str]]], scale: float, relu: bool = True
):
    """A residual block as a function that `slim.repeat` can call."""

    def block(net, scope=None):
        with tf1.variable_scope(scope, name, [net]):
            towers = []
            for index, layers in enumerate(branches):
                with tf1.variable_scope(f"Branch_{index}"):
                    tower = net
                    for outputs, kernel, layer in layers:
                        tower = slim.conv2d(tower, outputs, kernel, scope=layer)
                towers.append(tower)
            mixed = tf.concat(towers, 3)
            update = slim.conv2d(
                mixed, net.shape[3], 1, normalizer_fn=None, activation_fn=None, scope="Conv2d_1x1"
            )
            net = net + scale * update
            return tf.nn.relu(net) if relu else net

    block.__name__ = name  # slim.repeat names its scopes after the function
    return block


def _block35(slim: Any):
    return _residual(
        slim,
        "block35",
        [
            [(32, 1, "Conv2d_1x1")],
            [(32, 1, "Conv2d_0a_1x1"), (32, 3, "Conv2d_0b_3x3")],
            [(32, 1, "Conv2d_0a_1x1"), (32, 3, "Conv2d_0b_3x3"), (32, 3, "Conv2d_0c_3x3")],
        ],
        scale=0.17,
    )


def _block17(slim: Any):
    return _residual(
        slim,
        "block17",
        [
            [(128, 1, "Conv2d_1x1")],
            [(128, 1, "Conv2d_0a_1x1"), (128, [1, 7], "Conv2d_0b_1x7"), (128, [7, 1], "Conv2d_0c_7x1")],
        ],
        scale=0.10,
    )


def _block8(slim: Any, *, scale: float = 0.20, relu: bool = True):
    return _residual(
        slim,
        "block8",
        [
            [(192, 1, "Conv2d_1x1")],
            [(192, 1, "Conv2d_0a_1x1"), (192, [1, 3], "Conv2d_0b_1x3"), (192, [3, 1], "Conv2d_0c_3x1")],
        ],
        scale,
        relu=relu,
    )


def _reduction(slim: Any, net, scope: str, branches: list[list[tuple[int, int, str]]]):
    """Branches that end in a convolution of stride 2, and a max pool beside them."""
    with tf1.variable_scope(scope):
        towers = []
        for index, layers in enumerate(branches):
            with tf1.variable_scope(f"Branch_{index}"):
                tower = net
                for outputs, kernel, layer in layers:
                    halving = {"stride": 2, "padding": "VALID"} if layer == "Conv2d_1a_3x3" else {}
                    tower = slim.conv2d(tower, outputs, kernel, scope=layer, **halving)
            towers.append(tower)
        with tf1.variable_scope(f"Branch_{len(branches)}"):
            towers.append(slim.max_pool2d(net, 3, stride=2, padding="VALID", scope="MaxPool_1a_3x3"))
        return tf.concat(towers, 3)


def _network(slim: Any, images, phase_train, embedding_size: int):
    batch_norm = {
        "decay": 0.995,
        "epsilon": 0.001,
        "updates_collections": None,
        "variables_collections": [tf1.GraphKeys.TRAINABLE_VARIABLES],
    }
    with (
        slim.arg_scope(
            [slim.conv2d, slim.fully_connected],
            weights_initializer=tf1.zeros_initializer(),
            weights_regularizer=slim.l2_regularizer(WEIGHT_DECAY),
            normalizer_fn=slim.batch_norm,
            normalizer_params=batch_norm,
        ),
        tf1.variable_scope("InceptionResnetV1"),
        slim.arg_scope([slim.batch_norm, slim.dropout], is_training=phase_train),
        slim.arg_scope([slim.conv2d, slim.max_pool2d, slim.avg_pool2d], stride=1, padding="SAME"),
    ):
        net = _stem(slim, images)
        net = slim.repeat(net, 5, _block35(slim))
        net = _reduction(slim, net, "Mixed_6a", _MIXED_6A)
        net = slim.repeat(net, 10, _block17(slim))
        net = _reduction(slim, net, "Mixed_7a", _MIXED_7A)
        net = slim.repeat(net, 5, _block8(slim))
        net = _block8(slim, scale=1.0, relu=False)(net, scope="Block8")
        with tf1.variable_scope("Logits"):
            net = slim.avg_pool2d(net, net.shape[1:3], padding="VALID", scope="AvgPool_1a_8x8")
            net = slim.flatten(net)
            net = slim.dropout(net, KEEP_PROBABILITY, scope="Dropout")
        return slim.fully_connected(net, embedding_size, activation_fn=None, scope="Bottleneck")


def _stem(slim: Any, images):
    net = slim.conv2d(images, 32, 3, stride=2, padding="VALID", scope="Conv2d_1a_3x3")
    net = slim.conv2d(net, 32, 3, padding="VALID", scope="Conv2d_2a_3x3")
    net = slim.conv2d(net, 64, 3, scope="Conv2d_2b_3x3")
    net = slim.max_pool2d(net, 3, stride=2, padding="VALID", scope="MaxPool_3a_3x3")
    net = slim.conv2d(net, 80, 1, padding="VALID", scope="Conv2d_3b_1x1")
    net = slim.conv2d(net, 192, 3, padding="VALID", scope="Conv2d_4a_3x3")
    return slim.conv2d(net, 256, 3, stride=2, padding="VALID", scope="Conv2d_4b_3x3")


_MIXED_6A = [
    [(384, 3, "Conv2d_1a_3x3")],
    [(192, 1, "Conv2d_0a_1x1"), (192, 3, "Conv2d_0b_3x3"), (256, 3, "Conv2d_1a_3x3")],
]
_MIXED_7A = [
    [(256, 1, "Conv2d_0a_1x1"), (384, 3, "Conv2d_1a_3x3")],
    [(256, 1, "Conv2d_0a_1x1"), (256, 3, "Conv2d_1a_3x3")],
    [(256, 1, "Conv2d_0a_1x1"), (256, 3, "Conv2d_0b_3x3"), (256, 3, "Conv2d_1a_3x3")],
]


def write_slim_checkpoint(
    folder: Path, tensors: Mapping[str, NDArray[Any]], model_name: str, step: int
) -> None:
    """Write .meta, .index, .data and frozen .pb as facenet's own scripts do.

    Args:
        folder: An existing folder.
        tensors: Variable name to float32 array, for every variable of the network and its classifier.
        model_name: Such as `20180402-114759`.
        step: Global step.
    """
    slim = import_slim()
    with legacy_graph() as graph, open_session(graph) as session:
        variables = _training_graph(slim, tensors)
        assert {variable.op.name for variable in variables} == set(tensors)
        # In one call: one by one they take six times as long.
        session.run(
            [variable.initializer for variable in variables],
            {variable.initializer.inputs[1]: tensors[variable.op.name] for variable in variables},
        )
        saver = tf1.train.Saver(variables, max_to_keep=3)
        prefix = folder / f"model-{model_name}.ckpt-{step}"
        saver.save(session, str(prefix), write_meta_graph=False, write_state=False)
        saver.export_meta_graph(str(folder / f"model-{model_name}.meta"))
        frozen = _freeze(session, graph.as_graph_def())
        (folder / f"{model_name}.pb").write_bytes(frozen.SerializeToString())


def _training_graph(slim: Any, tensors: Mapping[str, NDArray[Any]]) -> list[Any]:
    """Add the graph of `train_softmax.py` to the default graph; returns the variables of the network."""
    global_step = tf1.train.get_or_create_global_step()
    learning_rate = tf1.placeholder(tf.float32, name="learning_rate")
    batch_size = tf1.placeholder(tf.int32, name="batch_size")
    phase_train = tf1.placeholder(tf.bool, name="phase_train")
    images, labels = _input_queue(batch_size)
    prelogits = _network(slim, images, phase_train, tensors[BOTTLENECK].shape[1])
    tf1.nn.l2_normalize(prelogits, 1, 1e-10, name="embeddings")
    logits = slim.fully_connected(
        prelogits,
        tensors["Logits/weights"].shape[1],
        activation_fn=None,
        weights_initializer=tf1.zeros_initializer(),
        weights_regularizer=slim.l2_regularizer(WEIGHT_DECAY),
        scope="Logits",
    )
    losses = tf1.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    loss = tf.reduce_mean(losses, name="cross_entropy")
    total = tf.add_n([loss, *tf1.get_collection(tf1.GraphKeys.REGULARIZATION_LOSSES)], name="total_loss")
    variables = tf1.trainable_variables()
    optimiser = tf1.train.AdamOptimizer(learning_rate, beta1=0.9, beta2=0.999, epsilon=0.1)
    step_op = optimiser.apply_gradients(optimiser.compute_gradients(total, variables), global_step)
    average = tf1.train.ExponentialMovingAverage(0.9999, global_step)
    some = variables[::7]  # of every kind; all of them take another five seconds
    assert {variable.op.name.rpartition("/")[2] for variable in some} >= STATISTICS
    with tf1.control_dependencies([step_op, average.apply(some)]):
        tf.no_op(name="train")
    return list(variables)


def _input_queue(batch_size: Any) -> tuple[Any, Any]:
    shape = (160, 160, 3)
    queue = tf1.FIFOQueue(2_000_000, [tf.float32, tf.int32], [shape, ()], name="input_queue")
    pixels = tf1.placeholder(tf.float32, (None, *shape), name="pixels")
    numbers = tf1.placeholder(tf.int32, (None,), name="labels")
    queue.enqueue_many([pixels, numbers], name="enqueue_op")
    images, labels = queue.dequeue_up_to(batch_size)
    images = tf.identity(tf.identity(images, "image_batch"), "input")
    return images, tf.identity(labels, "label_batch")


def _freeze(session: Any, graph_def: Any) -> Any:
    """Freeze as `src/freeze_graph.py` does: TensorFlow's own conversion, after operations on references."""
    for node in graph_def.node:
        if node.op == "RefSwitch":
            node.op = "Switch"
            for index, name in enumerate(node.input):
                if "moving_" in name:
                    node.input[index] = f"{name}/read"
        elif node.op == "AssignSub":
            node.op = "Sub"
            node.attr.pop("use_locking", None)
        elif node.op == "AssignAdd":
            node.op = "Add"
            node.attr.pop("use_locking", None)
    names = [
        node.name
        for node in graph_def.node
        if node.name.startswith(
            ("InceptionResnetV1", "embeddings", "image_batch", "label_batch", "phase_train", "Logits")
        )
    ]
    return tf1.graph_util.convert_variables_to_constants(
        session, graph_def, ["embeddings", "label_batch"], variable_names_whitelist=names
    )


def main(source: Path, folder: Path, model_name: str, step: int) -> None:
    """Write a slim checkpoint of a source's weights, with seeded logits if it has none."""
    with open_source(source) as opened:
        tensors = {name: np.array(array) for name, array in tensorflow_tensors(opened).items()}
    random = np.random.default_rng(0)
    size = tensors[BOTTLENECK].shape[1]
    tensors.setdefault("Logits/weights", random.normal(0, 0.1, (size, CLASSES)).astype(np.float32))
    tensors.setdefault("Logits/biases", random.normal(0, 0.1, CLASSES).astype(np.float32))
    write_slim_checkpoint(folder, tensors, model_name, step)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
