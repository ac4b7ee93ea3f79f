"""The graph of a SavedModel as a GraphDef with the names of the published graphs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from facenet_tf import import_tensorflow
from facenet_tf.graph_nodes import VARIABLES, GraphError, node_name, rename_nodes
from facenet_tf.variables import SCOPE

tf = import_tensorflow()

_SIGNATURE = "serving_default"
_FIRST_KERNEL = f"{SCOPE}/Conv2d_1a_3x3/weights"
# Operations that touch files or run Python. Loading a SavedModel of TensorFlow 2 may run its functions, but
# not those that save it.
_UNSAFE = re.compile(r".*(File|PyFunc|Dataset|Summary|Checkpoint).*|Save.*|Load.*")
_SAVING = "__inference__traced_save"


class _Argument(NamedTuple):
    """An input or output of a signature: its key, its tensor, dtype number and rank (None if unknown)."""

    key: str
    tensor: str
    dtype: int
    rank: int | None


def read_saved_model(path: Path) -> Any:
    """Read the graph for serving, and name its inputs and embeddings as the published graphs do.

    A graph of TensorFlow 1 keeps its variables. A signature of TensorFlow 2 is loaded and its variables
    become constants under their own names.

    Args:
        path: The saved_model.pb.

    Raises:
        GraphError: The file is not a SavedModel, its graph touches files, or TensorFlow does not load it.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        graphs = saved_model_pb2.SavedModel.FromString(path.read_bytes()).meta_graphs
    except DecodeError as error:
        raise GraphError(path, "the file is damaged, cut off or not a SavedModel") from error
    if not graphs:
        raise GraphError(path, "a SavedModel without a graph")
    chosen = next((graph for graph in graphs if "serve" in graph.meta_info_def.tags), graphs[0])
    if chosen.object_graph_def.nodes:
        return _freeze_signature(path, chosen)
    graph_def = chosen.graph_def
    signature = chosen.signature_def.get(_SIGNATURE) or next(iter(chosen.signature_def.values()), None)
    if signature is not None:
        inputs, outputs = (
            [_Argument(key, info.name, info.dtype, _rank(info.tensor_shape)) for key, info in side.items()]
            for side in (signature.inputs, signature.outputs)
        )
        _name_signature(graph_def, inputs, outputs)
    return graph_def


def _rank(shape: Any) -> int | None:
    return None if shape.unknown_rank else len(shape.dim)


def _freeze_signature(path: Path, meta_graph: Any) -> Any:
    """Load a SavedModel of TensorFlow 2 and freeze its signature."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    functions = meta_graph.graph_def.library.function
    ops = {node.op for f in functions if not f.signature.name.startswith(_SAVING) for node in f.node_def}
    unsafe = sorted(op for op in ops if _UNSAFE.fullmatch(op))
    if unsafe:
        raise GraphError(path, f"its functions hold the operation {unsafe[0]!r}, and are not loaded")
    try:
        loaded = tf.saved_model.load(str(path.parent))  # holds the variables
        function = loaded.signatures.get(_SIGNATURE) or next(iter(loaded.signatures.values()), None)
        if function is None:
            raise GraphError(path, "it has no signature")
        held = {placeholder.name: value for value, placeholder in function.graph.captures}
        names = {id(variable.handle): variable.name for variable in function.graph.variables}
        variables = {node_name(name): node_name(names[id(v)]) for name, v in held.items() if id(v) in names}
        frozen = convert_variables_to_constants_v2(function)
    except (tf.errors.OpError, ValueError, KeyError, OSError) as error:
        if isinstance(error, GraphError):
            raise
        raise GraphError(path, f"TensorFlow does not load it: {error}") from error
    graph_def = frozen.graph.as_graph_def()
    keys = sorted(function.structured_outputs)
    inputs = [
        _tensor_argument(tensor.op.name, tensor) for tensor in frozen.inputs if tensor.dtype != tf.resource
    ]
    outputs = [_tensor_argument(key, tensor) for key, tensor in zip(keys, frozen.outputs, strict=False)]
    _name_variables(graph_def, variables)
    _name_signature(graph_def, inputs, outputs)
    return graph_def


def _tensor_argument(key: str, tensor: Any) -> _Argument:
    return _Argument(key, tensor.name, tensor.dtype.as_datatype_enum, tensor.shape.rank)


def _name_variables(graph_def: Any, variables: Mapping[str, str]) -> None:
    """Give the frozen variables their own names, without the names of the functions that held them."""
    names = {node.name: variables.get(node.name, node.name) for node in graph_def.node if node.op == "Const"}
    prefixes = {name.removesuffix(_FIRST_KERNEL) for name in names.values() if name.endswith(_FIRST_KERNEL)}
    if len(prefixes) == 1:
        prefix = prefixes.pop()
        names = {name: variable.removeprefix(prefix) for name, variable in names.items()}
    taken = {node.name for node in graph_def.node}
    changed = {name: variable for name, variable in names.items() if name != variable}
    if len(set(changed.values())) == len(changed) and not taken & set(changed.values()):
        rename_nodes(graph_def, changed)


def _name_signature(graph_def: Any, inputs: Iterable[_Argument], outputs: Iterable[_Argument]) -> None:
    """Name the nodes of a signature `input`, `phase_train`, `batch_size` and `embeddings` where none is."""
    taken = {node.name for node in graph_def.node}
    names: dict[str, str] = {}
    floats = tf.float32.as_datatype_enum
    roles = [
        ("input", [a for a in inputs if a.dtype == floats and a.rank in (4, None)]),
        ("phase_train", [a for a in inputs if a.dtype == tf.bool.as_datatype_enum]),
        ("batch_size", [a for a in inputs if a.dtype == tf.int32.as_datatype_enum and a.rank == 0]),
    ]
    vectors = [a for a in outputs if a.dtype == floats and a.rank in (2, None)]
    named = [a for a in vectors if "embedding" in a.key.lower()]
    for role, arguments in (*roles, ("embeddings", named or vectors)):
        if role not in taken and len(arguments) == 1:
            names[node_name(arguments[0].tensor)] = role
    variables = {node.name for node in graph_def.node if node.op in VARIABLES}
    rename_nodes(graph_def, {name: role for name, role in names.items() if name not in variables})
