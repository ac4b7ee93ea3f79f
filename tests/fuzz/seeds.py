"""Small sound files of every format, each written by the library that owns the format."""

from __future__ import annotations

import importlib.util
import json
import os
import zipfile
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from converter.convert import to_numpy_state_dict
from converter.convert_file import convert_file
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from converter.formats.tensorflow.data_types import data_type
from converter.formats.tensorflow.protos import GraphDef
from converter.layer_map import ConvertedRow, Variant, table
from tests.conftest import write_keras
from tests.support.numpy_files import by_numpy, by_python2, flat, small_network

Tensors = Mapping[str, NDArray[Any]]

UNIT = "InceptionResnetV1/Conv2d_1a_3x3"
_CLASSES = 7
_MODEL = "20990101-000000"
_PREFIX = f"model-{_MODEL}.ckpt-90"
_OBJECT_BASED = "object-based"


@dataclass(frozen=True)
class Seed:
    """A sound file and the tensors in it.

    Attributes:
        path: The file to mutate; its companions are in the same folder.
        tensors: Name to array, as the format's own library wrote them.
    """

    path: Path
    tensors: Tensors


def small_tensors() -> dict[str, NDArray[Any]]:
    """A handful of tensors of every kind: several dtypes, an empty one, a scalar."""
    random = np.random.default_rng(0)
    return {
        f"{UNIT}/weights": random.standard_normal((3, 3, 3, 8), np.float32),
        f"{UNIT}/BatchNorm/beta": random.standard_normal(8, np.float32),
        f"{UNIT}/BatchNorm/moving_mean": random.standard_normal(8),
        f"{UNIT}/BatchNorm/moving_variance": random.uniform(0.5, 1.5, 8).astype(np.float16),
        "InceptionResnetV1/Bottleneck/weights": random.standard_normal((16, 8), np.float32),
        "Logits/biases": np.arange(7, dtype=np.int32),
        "empty": np.zeros((0, 4), np.float32),
        "flags": np.array([True, False, True]),
        "global_step": np.array(275, np.int64),
    }


def _bfloat16() -> dict[str, NDArray[Any]]:
    return {"Logits/weights": np.arange(12).reshape(4, 3).astype(ml_dtypes.bfloat16)}


# TensorFlow


def has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


def apart(work: Any, *arguments: Any) -> None:
    """Run a function in a forked process, so that its imports and threads do not affect this process."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # TensorFlow's greetings
            work(*arguments)
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1] != 0:
        raise RuntimeError(f"{work.__name__} failed")


def checkpoint_seeds(folder: Path, ending: str) -> list[Seed]:
    """Write a checkpoint; with TensorFlow it also has strings and a partitioned variable."""
    prefix = folder / _PREFIX
    index = prefix.with_name(prefix.name + ending)
    if not has_tensorflow():
        write_tensor_bundle(prefix, small_tensors() | _bfloat16())
        return [Seed(index, small_tensors() | _bfloat16())]
    _write_with_tensorflow(folder)
    return [
        Seed(index, _checkpoint_tensors()),
        Seed(folder / f"{_OBJECT_BASED}{ending}", _object_based_tensors()),
    ]


def _checkpoint_tensors() -> dict[str, NDArray[Any]]:
    partitioned = np.arange(40, dtype=np.float32).reshape(10, 4)
    labels = np.array([b"one", b"", b"a name with \xff in it"], object)
    return small_tensors() | _bfloat16() | {"partitioned": partitioned, "labels": labels}


def _object_based_tensors() -> dict[str, NDArray[Any]]:
    return {name: array for name, array in small_tensors().items() if array.dtype == np.float32}


def _write_with_tensorflow(folder: Path) -> None:
    """Write the seeds of all formats of TensorFlow, once, since importing it takes seconds."""
    if not (folder / "saved_model.pb").exists():
        apart(_write_tensorflow_seeds, folder)


def _write_tensorflow_seeds(folder: Path) -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    _save_with_tensorflow(folder / _PREFIX, _checkpoint_tensors())
    _save_objects(folder / _OBJECT_BASED, _object_based_tensors())
    _freeze_with_tensorflow(folder / "frozen.pb", small_tensors(), _graph_tensors())


def _save_objects(prefix: Path, tensors: Tensors) -> None:
    """Write a checkpoint of TensorFlow 2, whose keys are not the names of its variables."""
    import tensorflow as tf

    model = tf.Module()
    model.held = [tf.Variable(array, name=name) for name, array in tensors.items()]
    tf.train.Checkpoint(model=model).write(str(prefix))


def _save_with_tensorflow(prefix: Path, tensors: Tensors) -> None:
    import tensorflow as tf

    names, slices, values = [], [], []
    for name, array in tensors.items():
        cuts = ["10 4 0,6:-", "10 4 6,4:-"] if name == "partitioned" else [""]
        pieces = [array[:6], array[6:]] if len(cuts) == 2 else [array]
        names += [name] * len(cuts)
        slices += cuts
        values += [tf.constant(piece) for piece in pieces]
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=slices,
        tensors=[tf.identity(v) for v in values],
    )


def graph_seeds(folder: Path) -> list[Seed]:
    """Write a frozen graph whose constants are stored as bytes, as a list, and as one repeated value.

    With TensorFlow it is also written as a SavedModel, in its graph and in a function of its library.
    """
    path = folder / "frozen.pb"
    if not has_tensorflow():
        path.write_bytes(_frozen(small_tensors()))
        return [Seed(path, small_tensors())]
    _write_with_tensorflow(folder)
    return [
        Seed(path, small_tensors() | _graph_tensors()),
        Seed(folder / "saved_model.pb", small_tensors()),
    ]


def _graph_tensors() -> dict[str, NDArray[Any]]:
    """The tensors that a graph stores as a list, or as one repeated value."""
    listed = {f"{name}/listed": array for name, array in small_tensors().items() if array.size and array.ndim}
    return listed | {"splat": np.full((4, 5), 1.5, np.float32)}


def _freeze_with_tensorflow(path: Path, tensors: Tensors, listed: Tensors) -> None:
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef()
    graph.node.add(name="input", op="Placeholder")
    protos = {name: tf.make_tensor_proto(array) for name, array in tensors.items()}
    for name, array in listed.items():
        values = array.flat[0] if name == "splat" else array.tolist()
        protos[name] = tf.make_tensor_proto(values, tf.as_dtype(array.dtype), array.shape)
    for name, proto in protos.items():
        node = graph.node.add(name=name, op="Const")
        node.attr["dtype"].type = proto.dtype
        node.attr["value"].tensor.CopyFrom(proto)
        graph.node.add(name=f"{name}/read", op="Identity", input=[name])
    path.write_bytes(graph.SerializeToString())
    _save_frozen(path.with_name("saved_model.pb"), graph, tensors)


def _save_frozen(path: Path, graph: Any, tensors: Tensors) -> None:
    """Write a SavedModel whose constants are in the graph and, in part, in a function as well."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    meta_graph = saved.meta_graphs.add()
    meta_graph.meta_info_def.tags.append("serve")
    function = meta_graph.graph_def.library.function.add()
    function.signature.name = "inference"
    for node in graph.node:
        if node.name.removesuffix("/read") in tensors:
            meta_graph.graph_def.node.add().CopyFrom(node)
            if node.name.endswith(("/weights", "/weights/read")):
                function.node_def.add().CopyFrom(node)
    path.write_bytes(saved.SerializeToString())


# PyTorch, safetensors, NumPy


def _keyed() -> dict[str, NDArray[Any]]:
    """The same tensors under keys like those of a state_dict."""
    return {name.replace("/", "."): array for name, array in (small_tensors() | _bfloat16()).items()}


def pytorch_seeds(folder: Path, *, legacy: bool) -> list[Seed]:
    """A state_dict by torch.save, in its zip format or in the one before it."""
    path = folder / ("legacy.pt" if legacy else "weights.pt")
    state_dict = {}
    for name, array in _keyed().items():
        bits = array.view(np.int16) if array.dtype == ml_dtypes.bfloat16 else array
        state_dict[name] = torch.from_numpy(bits)
        if bits is not array:
            state_dict[name] = state_dict[name].view(torch.bfloat16)
    torch.save(state_dict, path, _use_new_zipfile_serialization=not legacy)
    return [Seed(path, _keyed())]


def safetensors_seeds(folder: Path) -> list[Seed]:
    path = folder / "weights.safetensors"
    save_file(_keyed(), path, metadata={"format": "pt"})
    return [Seed(path, _keyed())]


def numpy_seeds(folder: Path) -> list[Seed]:
    """A network in a .npy file, as NumPy writes it today, as Python 3 once did, and as Python 2 did."""
    network = small_network()
    contents = {"four": by_numpy(network, 4), "two": by_numpy(network, 2), "python2": by_python2(network)}
    seeds = []
    for name, content in contents.items():
        (folder / f"{name}.npy").write_bytes(content)
        seeds.append(Seed(folder / f"{name}.npy", flat(network)))
    return seeds


def manifest_seeds(folder: Path) -> list[Seed]:
    """The manifest of a conversion of the whole network, with the first few of its tensors."""
    save_file(_network_state_dict(), folder / "network.safetensors")
    convert_file(folder / "network.safetensors", folder / "converted.pt")
    path = folder / "converted.pt.json"
    content = json.loads(path.read_text())
    content["tensors"] = content["tensors"][:4]
    path.write_text(json.dumps(content, indent=1))
    for large in ("network.safetensors", "converted.pt"):
        (folder / large).unlink()
    return [Seed(path, {})]


def archive_seeds(folder: Path) -> list[Seed]:
    """A model folder as a zip, compressed and not."""
    random = np.random.default_rng(0)
    contents = {f"{_MODEL}.pb": random.bytes(900), f"model-{_MODEL}.meta": bytes(50) + random.bytes(20)}
    seeds = []
    for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(folder / f"{name}.zip", "w", method) as archive:
            archive.writestr(zipfile.ZipInfo(f"{_MODEL}/"), b"")
            for member, content in contents.items():
                archive.writestr(zipfile.ZipInfo(f"{_MODEL}/{member}"), content, method)
        seeds.append(Seed(folder / f"{name}.zip", {}))
    return seeds


def state_seeds(folder: Path) -> list[Seed]:
    """The list of checkpoints that tf.train.Saver writes."""
    names = [f"model-{_MODEL}.ckpt-{step}" for step in (80, 90)]
    path = folder / "checkpoint"
    lines = [f'all_model_checkpoint_paths: "{name}"' for name in names]
    path.write_text("\n".join([f'model_checkpoint_path: "{names[-1]}"', *lines]) + "\n")
    return [Seed(path, {})]


def catalog_seeds(folder: Path) -> list[Seed]:
    """A user's catalog with every key in it."""
    path = folder / "catalog.toml"
    path.write_text(f"""\
["my-model"]
dataset = "my-faces"
aliases = ["mine", "ours"]
embedding_size = 512
num_classes = 7
lfw_accuracy = 0.99
standardisation = "fixed"
url = "https://example.org/my-model.zip"
size = 195479980
sha256 = "{"ab" * 32}"
files = {{ ".pb" = "{"cd" * 32}", "model.meta" = "{"01" * 32}" }}
""")
    return [Seed(path, {})]


# The whole network


@cache
def network_tensors() -> dict[str, NDArray[Any]]:
    """Seeded tensors of the network's real shapes, 94 MB, by TensorFlow name."""
    random = np.random.default_rng(1)
    rows = [row for row in table(Variant(num_classes=_CLASSES)) if isinstance(row, ConvertedRow)]
    return {row.variable: random.standard_normal(row.shape, np.float32) for row in rows}


@cache
def _network_state_dict() -> dict[str, NDArray[Any]]:
    return to_numpy_state_dict(network_tensors())


def network_files(folder: Path, targets: Container[str]) -> dict[str, Path]:
    """The whole network in some formats: target to the file that is mutated."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = network_tensors()
    state_dict = _network_state_dict()
    torch_state_dict = {key: torch.from_numpy(array) for key, array in state_dict.items()}
    files: dict[str, Path] = {}
    if "index" in targets or "data" in targets:
        prefix = folder / _PREFIX
        files["index"], files["data"] = write_tensor_bundle(prefix, tensors)
    if "pb" in targets:
        files["pb"] = folder / "frozen.pb"
        files["pb"].write_bytes(_frozen(tensors))
    if "h5" in targets:
        files["h5"] = write_keras(folder / "weights.h5", tensors)
    for target, name in (("pt", "weights.pt"), ("pt-legacy", "legacy.pt")):
        if target in targets:
            files[target] = folder / name
            torch.save(torch_state_dict, files[target], _use_new_zipfile_serialization=target == "pt")
    if "safetensors" in targets:
        files["safetensors"] = folder / "weights.safetensors"
        save_file(state_dict, files["safetensors"])
    return {target: path for target, path in files.items() if target in targets}


def _frozen(tensors: Tensors) -> bytes:
    """A frozen graph in the layout that freeze_graph gives."""
    graph = GraphDef()
    for name, array in tensors.items():
        tensor = graph.node.add(name=name, op="Const").attr["value"].tensor
        tensor.dtype = data_type(array.dtype)
        for size in array.shape:
            tensor.tensor_shape.dim.add(size=size)
        tensor.tensor_content = array.tobytes()
        graph.node.add(name=f"{name}/read", op="Identity", input=[name])
    return bytes(graph.SerializeToString())
