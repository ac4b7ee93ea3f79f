"""Writes the rebuilt network as a TFLite file, by TensorFlow's own converter, with metadata in the file."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import flatbuffers
import numpy as np
from numpy.typing import NDArray

from facenet_tf import import_tensorflow, stderr_aside
from facenet_tf.graph import build
from facenet_tf.mtcnn import NETWORKS, Layers
from facenet_tf.session import legacy_graph, open_session
from facenet_tf.variables import BOTTLENECK, infer_options, load_variables

tf = import_tensorflow()
tf1 = tf.compat.v1

METADATA = "facenet-port"
"""The name of the metadata in the file: a JSON object of texts, in UTF-8."""

_MTCNN_OUTPUTS: Mapping[str, Mapping[str, str]] = {
    "P-Net": {"conv4-2": "offsets", "prob1": "probabilities"},
    "R-Net": {"conv5-2": "offsets", "prob1": "probabilities"},
    "O-Net": {"conv6-2": "offsets", "conv6-3": "landmarks", "prob1": "probabilities"},
}
_FLOAT_OPERATIONS = (
    "ADD", "AVERAGE_POOL_2D", "CAST", "DIV", "L2_NORMALIZATION", "MAXIMUM", "MEAN", "MUL", "RESHAPE", "SQRT",
    "SQUARE", "SQUARED_DIFFERENCE", "STRIDED_SLICE", "SUB",
)  # fmt: skip
"""The operations that stay in float32 in a quantised file: the standardisation, the sums of the residuals,
and all behind the last sum but the Bottleneck. In 8 bits they cost accuracy, and in float32 little time."""

_IDENTIFIER = b"TFL3"  # schema.fbs: file_identifier
_ALIGNMENT = 16  # schema.fbs: force_align of Buffer.data


def write_tflite(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    *,
    images: tuple[int | None, int | None, int | None],
    baked: Literal["fixed", "per-image"] | None = None,
    classify: bool = False,
    halved: bool = False,
    calibrate: Sequence[NDArray[Any]] = (),
    metadata: Mapping[str, str],
) -> None:
    """Write the network in inference as a TFLite file; the same arguments give the same bytes.

    Args:
        path: The file.
        tensors: Variable name to float32 array: the 492 variables, or 490 without the head, and the gammas if
            the checkpoint has them.
        images: Number of images, None for any, with their height and width, of which both are known.
        baked: The standardisation in the graph, whose input is then `pixels`, uint8 (N, H, W, 3). Without
            it the input is `images`, float32 (N, H, W, 3), standardised.
        classify: Whether the output is the classifier's logits in place of embeddings.
        halved: Whether the weights are stored in half precision; the interpreter widens them.
        calibrate: Batches of images as the graph takes them. With any, the network is quantised to 8 bits:
            weights with a scale for each channel, activations by the least and the largest value on these.
        metadata: Key to value, for the file.
    """
    features = {name: array for name, array in tensors.items() if not name.startswith("Logits/")}
    used = tensors if classify else features
    with legacy_graph() as graph:
        shape = (*images, 3)
        if baked is None:
            placeholder = standardised = tf1.placeholder(tf.float32, shape, name="images")
        else:
            placeholder = tf1.placeholder(tf.uint8, shape, name="pixels")
            standardised = _standardise(tf.cast(placeholder, tf.float32), baked)
        endpoints = build(standardised, **infer_options(features)._asdict())
        if classify:
            result = _classify(endpoints[BOTTLENECK], tensors["Logits/weights"].shape)
        else:
            result = endpoints["embeddings"]
    content = _convert(graph, used, placeholder, [result], halved, calibrate)
    path.write_bytes(_add_metadata(content, metadata))


def write_mtcnn_tflite(
    path: Path,
    network: str,
    tensors: Mapping[str, NDArray[Any]],
    *,
    batch: int | None,
    halved: bool = False,
    metadata: Mapping[str, str],
) -> None:
    """Write one of MTCNN's networks; images and maps keep their usual order of height and width.

    Args:
        path: The file.
        network: "P-Net", "R-Net" or "O-Net".
        tensors: Variable name to float32 array, all of the network's.
        batch: Number of images; None for any.
        halved: As in `write_tflite`.
        metadata: As in `write_tflite`.
    """
    build_layers, size = NETWORKS[network]
    with legacy_graph() as graph:
        placeholder = tf1.placeholder(tf.float32, (batch, size, size, 3), name="images")
        layers = _Layers(_exchange(placeholder))
        build_layers(layers)
        results = [
            tf.identity(_exchange(layers.endpoints[activation]), name)
            for activation, name in _MTCNN_OUTPUTS[network].items()
        ]
    content = _convert(graph, tensors, placeholder, results, halved)
    path.write_bytes(_add_metadata(content, metadata))


def _classify(embeddings: Any, shape: tuple[int, ...]) -> Any:
    """Add the classifier, whose weights have this shape.

    The slice takes all. Without it the converter folds the BatchNorm of the embeddings into the classifier,
    whose weights are then no longer the source's.
    """
    size, classes = shape
    with tf1.variable_scope("Logits"):
        weights, biases = (
            tf1.get_variable(name, extents, tf.float32, tf1.zeros_initializer(), use_resource=False)
            for name, extents in (("weights", (size, classes)), ("biases", (classes,)))
        )
    return tf.identity(tf.nn.bias_add(tf.matmul(embeddings[:, :size], weights), biases), "logits")


class _Layers(Layers):
    """Layers of MTCNN, with every PReLU in the form that the converter knows as one operation."""

    def prelu(self, name: str) -> None:
        """Multiply what is negative by a factor for each channel."""
        x, channels = self._last, self._last.shape[-1]
        with tf1.variable_scope(name):
            alpha = tf.reshape(self._variable("alpha", (channels,)), [*[1] * (x.shape.rank - 2), channels])
            self._add(name, tf.nn.relu(x) + (-alpha) * tf.nn.relu(-x))


def _exchange(maps: Any) -> Any:
    """Exchange the height and the width of maps, as facenet's detector does around its networks."""
    return tf.transpose(maps, [0, 2, 1, 3]) if maps.shape.rank == 4 else maps


def _convert(
    graph: Any,
    tensors: Mapping[str, NDArray[Any]],
    placeholder: Any,
    results: list[Any],
    halved: bool,
    calibrate: Sequence[NDArray[Any]] = (),
) -> bytes:
    with open_session(graph) as session:
        load_variables(session, tensors)
        converter = tf1.lite.TFLiteConverter.from_session(session, [placeholder], results)
        if halved or calibrate:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if calibrate:
            return _quantise(converter, calibrate)
        if halved:
            converter.target_spec.supported_types = [tf.float16]
        content: bytes = converter.convert()
    return content


def _quantise(converter: Any, batches: Sequence[NDArray[Any]]) -> bytes:
    """Quantise all operations but `_FLOAT_OPERATIONS`, which no other part of the converter can leave out."""

    class Quantiser(tf.lite.experimental.QuantizationDebugger):  # type: ignore[misc, name-defined]
        """Does not quantise the network a second time, for statistics that nobody reads."""

        def _init_from_converter(self, *arguments: Any, **options: Any) -> None:
            pass

        def _initialize_stats(self) -> None:
            pass

    converter.representative_dataset = lambda: ([batch] for batch in batches)
    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=list(_FLOAT_OPERATIONS))
    with stderr_aside(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its interpreter's successor
        debugger = Quantiser(
            converter=converter, debug_dataset=converter.representative_dataset, debug_options=options
        )
        content: bytes = debugger.get_nondebug_quantized_model()
    return content


def _standardise(pixels: Any, standardisation: str) -> Any:
    """Standardise pixels by (x - 127.5) / 128, or as `prewhiten` in facenet's `src/facenet.py`."""
    if standardisation == "fixed":
        return (pixels - 127.5) / 128.0
    size = math.prod(pixels.shape[1:].as_list())
    centred = pixels - _mean(pixels)
    deviation = tf.sqrt(_mean(tf.square(centred)))
    return centred / tf.maximum(deviation, 1.0 / math.sqrt(size))


def _mean(images: Any) -> Any:
    """Average each image axis by axis: the interpreter adds 76,800 numbers one after another otherwise."""
    for axis in (2, 1, 3):
        images = tf.reduce_mean(images, axis=axis, keepdims=True)
    return images


class _Builder(flatbuffers.Builder):  # type: ignore[misc]
    """Aligns vectors, weights among them, as the schema asks; the generated code in Python does not."""

    def StartVector(self, size: int, count: int, alignment: int) -> Any:  # noqa: N802 - flatbuffers' name
        """Begin a vector of `count` elements of `size` bytes."""
        return super().StartVector(size, count, max(alignment, _ALIGNMENT))


def _add_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """Add an entry to the model's table of metadata."""
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    entry, buffer = schema.MetadataT(), schema.BufferT()
    buffer.data = np.frombuffer(json.dumps(dict(metadata), indent=1).encode(), np.uint8)
    entry.name, entry.buffer = METADATA, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata.append(entry)
    builder = _Builder(len(content) + (1 << 20))  # room for the metadata too: to grow, it copies all
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())
