"""Export graph files as users do: by PyTorch's two ONNX exporters and TensorFlow's TFLite converter."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reference import InceptionResnetV1

Arrays = Mapping[str, NDArray[Any]]
SIZE = 107
"""Height and width of the images, in pixels: an audit takes half the time that it takes at 160."""


def network(state_dict: Arrays) -> InceptionResnetV1:
    """Build the network in evaluation mode, with logits where the state_dict has them."""
    classes = len(state_dict["logits.bias"]) if "logits.bias" in state_dict else None
    size = len(state_dict["last_linear.weight"])
    with torch.device("meta"):  # no initial values, which the weights replace
        model = InceptionResnetV1(num_classes=classes, embedding_size=size)
    model.load_state_dict({key: torch.tensor(array) for key, array in state_dict.items()}, assign=True)
    return model.eval()


def export_onnx(
    model: torch.nn.Module,
    path: Path,
    *,
    half: bool = False,
    dynamo: bool = False,
    fold: bool = True,
    size: int = SIZE,
) -> Path:
    """Export a model for images (N, 3, size, size).

    Args:
        model: The model, in evaluation mode.
        path: The file to write.
        half: Whether to export in half precision.
        dynamo: Whether to use PyTorch's default exporter; the older one is faster.
        fold: Whether the older exporter folds BatchNorm into the convolutions, as it does by default.
        size: Height and width of the images.
    """
    images = torch.zeros(1, 3, size, size)
    if half:
        model, images = model.half(), images.half()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        common: dict[str, Any] = {"input_names": ["images"], "output_names": ["embeddings"]}
        if dynamo:
            shapes = ({0: torch.export.Dim("N")},)
            torch.onnx.export(
                model, (images,), path, dynamo=True, external_data=False, dynamic_shapes=shapes, **common
            )
        else:
            training = torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE
            axes = {"images": {0: "N"}, "embeddings": {0: "N"}}
            torch.onnx.export(
                model, (images,), path, dynamo=False, training=training, dynamic_axes=axes, **common
            )
    return path


def export_int8(float32: Path, path: Path, images: NDArray[Any], **options: Any) -> Path:
    """Quantise an ONNX graph by onnxruntime: static, in the format QDQ, with a scale for each channel.

    Args:
        float32: The graph, with the input `images`.
        path: The file to write.
        images: (N, H, W, 3), standardised; the graph is calibrated on them.
        options: Other options of quantize_static.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter([{"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2))}])

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self._batches, None)

    defaults = {"per_channel": True, "activation_type": QuantType.QUInt8}
    quantize_static(float32, path, Images(), **{**defaults, **options})
    return path


def export_tflite(
    tensors: Arrays,
    path: Path,
    *,
    halved: Path | None = None,
    dynamic: Path | None = None,
    int8: tuple[Path, NDArray[Any]] | None = None,
    from_bytes: Path | None = None,
    size: int = SIZE,
) -> Path:
    """Convert the rebuilt TensorFlow graph, with these variables, by TensorFlow's own converter.

    Args:
        tensors: The variables.
        path: The file to write.
        halved: A second file to write, with the weights in half precision.
        dynamic: A third file to write, with weights of integers and activations that the runtime quantises.
        int8: A fourth file to write, with every operation in 8 bits, and images to calibrate it on.
        from_bytes: A fifth file to write, which takes bytes and standardises them as (x - 127.5) / 128.
        size: Height and width of the images.
    """
    from facenet_tf import import_tensorflow
    from facenet_tf.graph import build
    from facenet_tf.session import legacy_graph, open_session
    from facenet_tf.variables import infer_options, load_variables

    tf = import_tensorflow()
    features = {name: array for name, array in tensors.items() if not name.startswith("Logits/")}
    with legacy_graph() as graph:
        pixels = tf.compat.v1.placeholder(tf.uint8, (None, size, size, 3), name="pixels")
        images = tf.identity((tf.cast(pixels, tf.float32) - 127.5) / 128.0, name="input")
        embeddings = build(images, **infer_options(features)._asdict())["embeddings"]
    with open_session(graph) as session:
        load_variables(session, features)
        converter = tf.compat.v1.lite.TFLiteConverter.from_session(session, [images], [embeddings])
        path.write_bytes(converter.convert())
        if from_bytes is not None:
            whole = tf.compat.v1.lite.TFLiteConverter.from_session(session, [pixels], [embeddings])
            from_bytes.write_bytes(whole.convert())
        if halved is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
            halved.write_bytes(converter.convert())
            converter.target_spec.supported_types = []
        if dynamic is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            dynamic.write_bytes(converter.convert())
        if int8 is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([image[None].astype(np.float32)] for image in int8[1])
            int8[0].write_bytes(converter.convert())
    return path


def inference_graph(tensors: Arrays) -> Any:
    """Freeze the rebuilt TensorFlow graph for inference, without Identity nodes; returns a GraphDef."""
    from facenet_tf import import_tensorflow
    from facenet_tf.graph import build
    from facenet_tf.session import legacy_graph, open_session
    from facenet_tf.variables import infer_options, load_variables

    tf1 = import_tensorflow().compat.v1
    features = {name: array for name, array in tensors.items() if not name.startswith("Logits/")}
    with legacy_graph() as graph:
        images = tf1.placeholder("float32", (None, SIZE, SIZE, 3), name="input")
        build(images, **infer_options(features)._asdict())
    with open_session(graph) as session:
        load_variables(session, features)
        frozen = tf1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["embeddings"])
    return tf1.graph_util.remove_training_nodes(frozen, ["embeddings"])


def fold_batch_norms(definition: Any, *, in_float32: bool = False) -> Any:
    """Do what fold_batch_norms of TensorFlow's optimize_for_inference_lib does, in seconds, not minutes.

    Its loop takes every weight alone. The names and the arithmetic are its own; a test compares both.

    Args:
        definition: A GraphDef.
        in_float32: Whether to compute in float32 and add the bias by AddV2, as the graph transform tool does.
    """
    import tensorflow as tf

    def value(name: str) -> NDArray[Any]:
        return tf.make_ndarray(nodes[name].attr["value"].tensor)

    def add(node: Any) -> None:
        folded.node.add().CopyFrom(node)

    def constant(name: str, array: NDArray[Any]) -> None:
        node = folded.node.add(name=name, op="Const")
        node.attr["dtype"].type = tf.float32.as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(array, tf.float32, array.shape))

    nodes = {node.name: node for node in definition.node}
    folded = tf.compat.v1.GraphDef(versions=definition.versions)
    norms = {
        node.input[0]: node
        for node in definition.node
        if node.op == "FusedBatchNormV3" and nodes[node.input[0]].op == "Conv2D"
    }
    replaced = {node.name for node in norms.values()}
    for node in definition.node:
        if node.name in replaced:
            continue
        if node.name not in norms:
            add(node)
            continue
        norm = norms[node.name]
        gamma, beta, mean, variance = (value(name) for name in norm.input[1:5])
        precision = np.float32 if in_float32 else np.float64
        scale = (1 / np.sqrt((variance + norm.attr["epsilon"].f).astype(precision))) * gamma
        constant(f"{node.name}_weights", (value(node.input[1]) * scale).astype(np.float32))
        constant(f"{node.name}_bn_offset", (-mean * scale) + beta)
        convolution = folded.node.add()
        convolution.CopyFrom(node)
        convolution.input[1] = f"{node.name}_weights"
        bias = folded.node.add(name=norm.name, op="BiasAdd", input=[node.name, f"{node.name}_bn_offset"])
        bias.attr["T"].CopyFrom(node.attr["T"])
        if in_float32:
            bias.op, bias.input[:] = "AddV2", [f"{node.name}_bn_offset", node.name]
        else:
            bias.attr["data_format"].CopyFrom(node.attr["data_format"])
    return tf.compat.v1.graph_util.extract_sub_graph(folded, [definition.node[-1].name])
