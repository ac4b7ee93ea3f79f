"""Writes a TensorFlow 1 checkpoint in the layout that davidsandberg/facenet published.

The graph is a training graph as `train_softmax.py` there builds it, or `train_tripletloss.py` for a network
without a classification head: input queue, conditionals on `phase_train`, loss, gradients, Adam, moving
averages. TensorFlow's own Saver writes the values.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from facenet_tf import import_tensorflow
from facenet_tf.graph import build
from facenet_tf.graph_nodes import REF_VARIABLES, GraphNodes
from facenet_tf.session import legacy_graph, open_session
from facenet_tf.variables import infer_options, load_variables, require_variables

tf = import_tensorflow()
tf1 = tf.compat.v1

IMAGE_SIZE = 160
"""Side of the images that the published models were trained on; the graph's last average pool keeps it."""

QUEUE_CAPACITY = 2_000_000
"""Capacity of the input queue; `train_softmax.py`."""

WEIGHT_DECAY = 5e-4
"""`--weight_decay` of the 2018 models; it applies to weights only."""

ADAM_EPSILON = 0.1
"""`facenet.train` passes this with `beta1=0.9, beta2=0.999`, Adam's defaults."""

AVERAGE_DECAY = 0.9999
"""`--moving_average_decay`, its default."""

TRIPLET_MARGIN = 0.2
"""`--alpha` of `train_tripletloss.py`, its default."""


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The paths of a checkpoint's files.

    Attributes:
        prefix: TensorFlow's name for the checkpoint: the `.index` file without its suffix.
        index: The file of names, shapes and offsets of the tensors.
        data: The file of values.
        meta: The training graph.
        frozen: The inference graph with constants for variables, or None.
    """

    prefix: Path
    index: Path
    data: Path
    meta: Path
    frozen: Path | None


def write_checkpoint(
    folder: str | Path,
    tensors: Mapping[str, NDArray[Any]],
    *,
    model_name: str,
    step: int,
    frozen: bool = True,
) -> CheckpointFiles:
    """Write the files of a published model: checkpoint, training graph and frozen graph.

    The same tensors give the same bytes.

    Args:
        folder: The folder to write to; created if necessary.
        tensors: Variable name to float32 array: all variables of the network, with or without
            `Logits/weights` and `Logits/biases`. Without them the graph has a triplet loss and no
            classification head.
        model_name: Such as `20180402-114759`.
        step: Global step, which is part of the file names.
        frozen: Whether to write `<model_name>.pb`.

    Returns:
        The paths written.

    Raises:
        ValueError: A variable is missing, unexpected or of another shape.
        FileExistsError: A file of that name exists; nothing is written.
        OSError: The folder cannot be written to, or the disk is full.
    """
    folder = Path(folder)
    files = _checkpoint_files(folder, model_name, step, frozen)
    targets = [path for path in (files.data, files.index, files.meta, files.frozen) if path is not None]
    for path in targets:
        if path.exists():
            raise FileExistsError(f"{path} exists and is not overwritten")
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    try:
        with legacy_graph() as graph:
            saver = tf1.train.Saver(_training_graph(tensors), max_to_keep=3)
            with open_session(graph) as session:
                load_variables(session, tensors)
                _save(saver, session, scratch / files.prefix.name)
            meta = _export(graph, saver.saver_def)
        (scratch / files.meta.name).write_bytes(meta.SerializeToString(deterministic=True))
        if files.frozen is not None:
            constant = freeze(meta.graph_def, tensors)
            (scratch / files.frozen.name).write_bytes(constant.SerializeToString(deterministic=True))
        for path in targets:
            (scratch / path.name).rename(path)
    finally:
        shutil.rmtree(scratch)
    return files


def _save(saver: Any, session: Any, prefix: Path) -> None:
    try:
        saver.save(session, str(prefix), write_meta_graph=False, write_state=False)
    except tf.errors.ResourceExhaustedError as error:  # TensorFlow's error for a disk without room
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def _checkpoint_files(folder: Path, model_name: str, step: int, frozen: bool) -> CheckpointFiles:
    """Name the files of a published model."""
    prefix = folder / f"model-{model_name}.ckpt-{step}"
    return CheckpointFiles(
        prefix=prefix,
        index=Path(f"{prefix}.index"),
        data=Path(f"{prefix}.data-00000-of-00001"),
        meta=folder / f"model-{model_name}.meta",
        frozen=folder / f"{model_name}.pb" if frozen else None,
    )


def _export(graph: Any, saver_def: Any) -> Any:
    """Export the default graph as a MetaGraphDef that is the same in every process."""
    from tensorflow.core.protobuf.control_flow_pb2 import CondContextDef

    meta = tf1.train.export_meta_graph(graph=graph, saver_def=saver_def)
    # TensorFlow lists the values of a conditional in the order of a Python set of strings.
    contexts = meta.collection_def["cond_context"].bytes_list.value
    for index, serialised in enumerate(contexts):
        context = CondContextDef.FromString(serialised)
        context.values_def.values.sort()
        contexts[index] = context.SerializeToString(deterministic=True)
    return meta


def _training_graph(tensors: Mapping[str, NDArray[Any]]) -> list[Any]:
    """Add everything that training needs to the default graph; returns the variables of the network."""
    learning_rate = tf1.placeholder(tf.float32, (), name="learning_rate")
    batch_size = tf1.placeholder(tf.int32, (), name="batch_size")
    phase_train = tf1.placeholder(tf.bool, (), name="phase_train")
    images, labels = _input_queue(batch_size)
    options = infer_options(tensors)
    endpoints = build(images, training=phase_train, **options._asdict())
    require_variables(tensors)
    variables: list[Any] = tf1.global_variables()
    if options.num_classes is None:
        loss = triplet_loss(endpoints["embeddings"], options.embedding_size)
    else:
        cross_entropy = tf1.nn.sparse_softmax_cross_entropy_with_logits(
            labels=labels, logits=endpoints["Logits"], name="cross_entropy_per_example"
        )
        loss = tf.reduce_mean(cross_entropy, name="cross_entropy")
    decay = [WEIGHT_DECAY * tf.nn.l2_loss(v) for v in variables if v.op.name.endswith("/weights")]
    optimiser = tf1.train.AdamOptimizer(learning_rate, epsilon=ADAM_EPSILON)
    global_step = tf1.train.create_global_step()
    update = optimiser.minimize(tf.add_n([loss, *decay], name="total_loss"), global_step)
    with tf1.control_dependencies([update, *_moving_averages(variables)]):
        tf.no_op(name="train")
    return variables


def _input_queue(batch_size: Any) -> tuple[Any, Any]:
    """Add the queue of images and labels, with the published names of its outputs."""
    shape = (IMAGE_SIZE, IMAGE_SIZE, 3)
    images = tf1.placeholder(tf.float32, (None, *shape), name="images")
    labels = tf1.placeholder(tf.int32, (None,), name="labels")
    queue = tf1.FIFOQueue(QUEUE_CAPACITY, [tf.float32, tf.int32], [shape, ()], name="input_queue")
    queue.enqueue_many([images, labels], name="enqueue_op")
    image_batch, label_batch = queue.dequeue_up_to(batch_size)
    image_batch = tf.identity(image_batch, "image_batch")
    return tf.identity(image_batch, "input"), tf.identity(label_batch, "label_batch")


def triplet_loss(embeddings: Any, embedding_size: int) -> Any:
    """Mean hinge on the squared distances in triplets of anchor, positive and negative."""
    anchor, positive, negative = tf.unstack(tf.reshape(embeddings, [-1, 3, embedding_size]), 3, 1)
    near = tf.reduce_sum(tf.square(anchor - positive), 1)
    far = tf.reduce_sum(tf.square(anchor - negative), 1)
    return tf.reduce_mean(tf.maximum(near - far + TRIPLET_MARGIN, 0.0), name="triplet_loss")


def _moving_averages(variables: Sequence[Any]) -> list[Any]:
    """Add the average of each variable; returns the updates.

    facenet averages the moving statistics too, because slim lists them among the trainable variables.
    `tf.train.ExponentialMovingAverage` does the same, but takes a third of the time to build the graph. It
    adds a conditional per variable, which only matters if training starts from this graph.
    """
    updates = []
    for variable in variables:
        average = tf1.get_variable(
            f"{variable.op.name}/ExponentialMovingAverage",
            variable.shape,
            initializer=tf1.zeros_initializer(),
            trainable=False,
        )
        updates.append(tf1.assign_sub(average, (average - variable) * (1 - AVERAGE_DECAY)))
    return updates


def freeze(graph_def: Any, tensors: Mapping[str, NDArray[Any]]) -> Any:
    """Reduce a training graph to inference and insert its values, as facenet's `freeze_graph.py` does.

    The result has `embeddings`, `label_batch` and their ancestors, with both branches of every conditional.
    Variables become constants before their `/read` identities. Operations on references become operations on
    values.

    Args:
        graph_def: The training graph, a GraphDef.
        tensors: Variable name to array, for every variable of the result.

    Returns:
        The frozen GraphDef.
    """
    nodes = GraphNodes(Path(), graph_def)
    kept = nodes.ancestors(["embeddings", "label_batch"], stops=())
    result = tf1.GraphDef()
    result.versions.CopyFrom(graph_def.versions)
    for node in graph_def.node:
        if node.name not in kept:
            continue
        copy = result.node.add()
        if node.op in REF_VARIABLES:
            copy.name, copy.op = node.name, "Const"
            copy.attr["dtype"].CopyFrom(node.attr["dtype"])
            copy.attr["value"].tensor.CopyFrom(tf1.make_tensor_proto(tensors[node.name]))
            continue
        copy.CopyFrom(node)
        copy.attr.pop("_output_shapes", None)
        if node.op == "RefSwitch":
            copy.op = "Switch"
            copy.input[0] = f"{node.input[0]}/read"
        elif node.op == "AssignSub":
            copy.op = "Sub"
            del copy.attr["use_locking"]
    return result
