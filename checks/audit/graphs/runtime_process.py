"""Run onnxruntime, LiteRT or TensorFlow in a process of its own, because a damaged file may crash it.

`RuntimeProcess` is the parent's side. The child runs this module with the arguments KIND and FILE.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from checks.audit.graphs.graph import Graph
from checks.audit.graphs.onnx_file import load_onnx
from checks.core.types import Array
from converter.child_process import AnswerError, ChildError, ChildProcess, limit_memory, serve
from converter.errors import SourceError
from converter.formats.limits import is_utf_8

Session = Callable[[str, Array], list[Array]]
"""An open graph: a function from the name of its input and images in its layout and dtype to its outputs."""

SECONDS = 600
"""Time limit for a batch; a batch of five takes a few seconds."""

_OUTPUTS_FIELD = 8  # schema.fbs: SubGraph.outputs, the third field: 4 + 2 * 2

MEMORY = 16 << 30
"""Memory limit of the child, in bytes; a batch of five takes a twentieth of it."""


class RuntimeProcess:
    """A process that runs one graph. A context manager.

    Args:
        graph: The graph.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        kind = graph.format.split()[0].lower()
        self._child = ChildProcess("checks.audit.graphs.runtime_process", kind, graph.path, seconds=SECONDS)

    def run(self, images: Array, outputs: Sequence[str], *, as_written: bool) -> list[Array]:
        """Run the graph.

        Args:
            images: Images in the graph's own layout and the dtype of its input.
            outputs: The names of the tensors to fetch.
            as_written: Whether to run every node as written, so that every tensor inside the graph can be
                fetched. Otherwise the runtime optimises the graph, as by default; the outputs of a node that
                quantises can be fetched all the same, because the runtime computes them in any case.

        Raises:
            SourceError: The runtime refuses the graph, crashes or does not finish.
        """
        ends = self._graph.ends
        given = self._graph.inputs[0].name
        if given in ends:
            given, quantisation = ends[given]
            images = quantisation.quantise(images).astype(quantisation.zero_point.dtype)
        fetched = [self._graph.name_in_file(name) for name in outputs if name != given]
        declared = {self._graph.name_in_file(output.name) for output in self._graph.outputs}
        request = {
            "input": given,
            "outputs": fetched,
            "undeclared": [name for name in fetched if name not in declared],
            "in_one_file": len(self._graph.files) == 1,
            "as_written": as_written,
        }
        try:
            _, arrays = self._child.ask(request, [images])
        except AnswerError as error:
            raise self._refusal(f"it does not run ({error})") from error
        except ChildError as error:
            raise self._refusal(f"its runtime {error}") from error
        if len(arrays) != len(fetched):
            raise self._refusal(f"its runtime gives {len(arrays)} outputs, not {len(fetched)}")
        answers = iter(arrays)
        tensors = [images if name == given else next(answers) for name in outputs]
        return [
            ends[name][1].dequantise(tensor) if name in ends else tensor
            for name, tensor in zip(outputs, tensors, strict=True)
        ]

    def run_in_batches(
        self, images: Array, outputs: Sequence[str], size: int | None, *, as_written: bool
    ) -> list[Array]:
        """Run the graph on any number of images; the last one is repeated where a batch lacks some.

        Args:
            images: As for `run`.
            outputs: As for `run`.
            size: The number of images that the graph takes at a time; None if it takes any.
            as_written: As for `run`.

        Raises:
            SourceError: As for `run`, or an output does not have a row for each image.
        """
        size = size or len(images)
        parts = []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            filled = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
            arrays = self.run(filled, outputs, as_written=as_written)
            if any(array.ndim < 2 or len(array) != size for array in arrays):
                raise SourceError(self._graph.path, "it does not output one row for each image")
            parts.append([array[: len(batch)] for array in arrays])
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._child.close()

    def _refusal(self, problem: str) -> SourceError:
        next_step = "Export it again, or ask its author how to run it"
        return SourceError(self._graph.path, problem, next_step=next_step)


def run_child(kind: str, path: Path) -> None:
    """Answer requests with the outputs of a graph, opened once for each set of outputs."""
    open_session = {"onnx": _open_onnx, "tflite": _open_tflite, "tensorflow": _open_tensorflow}[kind]
    sessions: dict[tuple[tuple[str, ...], bool], Session] = {}

    def answer(request: Any, arrays: list[Array]) -> tuple[None, list[Array]]:
        outputs, as_written = tuple(request["outputs"]), bool(request["as_written"])
        if (outputs, as_written) not in sessions:
            sessions[outputs, as_written] = open_session(path, request)
        return None, sessions[outputs, as_written](request["input"], arrays[0])

    limit_memory(MEMORY)
    serve(answer)


def _open_onnx(path: Path, request: Any) -> Session:
    """Open a file in onnxruntime, on one thread."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    content = path.read_bytes() if request["in_one_file"] else _read_with_files(path)
    if request["as_written"]:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # onnxruntime fetches only the outputs that the model declares. Protobuf appends repeated fields.
    more = [onnx.ValueInfoProto(name=name) for name in request["undeclared"]]
    content += onnx.ModelProto(graph=onnx.GraphProto(output=more)).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(input_name: str, images: Array) -> list[Array]:
        return [np.asarray(array) for array in session.run(request["outputs"], {input_name: images})]

    return run


@cache
def _read_with_files(path: Path) -> bytes:
    """Read a model with the weights from the files beside it."""
    content: bytes = load_onnx(path)[0].SerializeToString()
    return content


def _open_tflite(path: Path, request: Any) -> Session:
    """Open a file in LiteRT's interpreter, on one thread; by default LiteRT runs it with XNNPACK.

    XNNPACK keeps only the outputs that the model declares.
    """
    from ai_edge_litert import interpreter as litert

    kinds = litert.OpResolverType
    numbers = [_tensor_number(name) for name in request["outputs"]]
    as_written = request["as_written"]
    is_declared = as_written or not request["undeclared"]
    by_path = is_declared and is_utf_8(path)
    interpreter = litert.Interpreter(
        str(path) if by_path else None,
        None if by_path else path.read_bytes() if is_declared else _declare_outputs(path, numbers),
        num_threads=1,
        experimental_preserve_all_tensors=as_written,
        experimental_op_resolver_type=kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES if as_written else kinds.AUTO,
    )

    def run(input_name: str, images: Array) -> list[Array]:
        number = _tensor_number(input_name)
        interpreter.resize_tensor_input(number, images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(number, images)
        interpreter.invoke()
        return [interpreter.get_tensor(output) for output in numbers]

    return run


def _declare_outputs(path: Path, numbers: Sequence[int]) -> bytes:
    """Return a TFLite model with other outputs: the new list is appended, and the graph refers to it."""
    from ai_edge_litert import schema_py_generated as schema

    content = bytearray(path.read_bytes())
    content += bytes(-len(content) % 4)
    table = schema.Model.GetRootAs(content, 0).Subgraphs(0)._tab
    field = table.Pos + table.Offset(_OUTPUTS_FIELD)
    struct.pack_into("<I", content, field, len(content) - field)
    return bytes(content + struct.pack(f"<I{len(numbers)}i", len(numbers), *numbers))


def _open_tensorflow(path: Path, request: Any) -> Session:
    """Open a frozen graph in TensorFlow."""
    from facenet_tf.frozen import open_frozen

    return open_frozen(path, request["outputs"], as_written=request["as_written"])


def _tensor_number(name: str) -> int:
    """Return the number that `tflite_file` appends to a tensor's name."""
    return int(name.rpartition("#")[2])


if __name__ == "__main__":
    run_child(sys.argv[1], Path(sys.argv[2]))
