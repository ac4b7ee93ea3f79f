"""TensorFlow's graphs in a process of their own, which works while PyTorch does and may crash without harm.

`start_tensorflow` is the parent's side. Its process is kept: later comparisons find TensorFlow imported and
the graphs built. The child runs this module, and answers these requests:

- open: build the graphs of a source's weights, and open its own graph
- run: run every graph on images
- run exact: run the rebuilt graph in float64 alone
- close: release the graphs
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from checks.core.metrics import relative_l2
from checks.core.types import Array
from converter.child_process import AnswerError, ChildProcess, serve
from converter.frames import Arrays

if TYPE_CHECKING:
    from converter.plan import Weights
    from facenet_tf.mtcnn import RebuiltMtcnn
    from facenet_tf.own_graph import GraphKind, OwnGraph
    from facenet_tf.rebuilt_network import RebuiltNetwork

SECONDS = 600
"""Time limit for an answer; five images at every layer take a few seconds."""


@dataclass(frozen=True, slots=True)
class OwnGraphFile:
    """The file of a source's own graph, and what to open it with.

    Attributes:
        path: The file.
        kind: Its kind.
        checkpoint: The checkpoint's prefix, if the graph's weights are there and not in the graph.
        weights: As in `plan.plan_conversion`.
        scope: The prefix of the network's names.
    """

    path: Path
    kind: GraphKind
    checkpoint: Path | None
    weights: Weights
    scope: str

    def open(self) -> OwnGraph:
        """Open the graph in this process.

        Raises:
            GraphError: It cannot be run.
        """
        from facenet_tf.own_graph import OwnGraph

        if self.kind == "saved_model":
            return OwnGraph.from_saved_model(self.path, self.checkpoint, self.weights, self.scope)
        if self.checkpoint is None:
            return OwnGraph.from_frozen(self.path, self.weights, self.scope, self.kind)
        return OwnGraph.from_checkpoint(self.path, self.checkpoint, self.weights, self.scope)

    def as_json(self) -> dict[str, Any]:
        """The attributes as JSON values, for a process whose working folder may be another one."""
        checkpoint = None if self.checkpoint is None else os.path.abspath(self.checkpoint)  # noqa: PTH100
        return {**asdict(self), "path": os.path.abspath(self.path), "checkpoint": checkpoint}  # noqa: PTH100

    def as_given(self, path: str) -> Path:
        """The name by which the user gave one of its files."""
        files = (self.path, self.checkpoint)
        return next((file for file in files if file and os.path.abspath(file) == path), Path(path))  # noqa: PTH100

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> OwnGraphFile:
        """The inverse of `as_json`."""
        checkpoint = None if values["checkpoint"] is None else Path(values["checkpoint"])
        return cls(**{**values, "path": Path(values["path"]), "checkpoint": checkpoint})


_child: ChildProcess | None = None
_parent = 0  # process id
_version: str | None = None


def start_tensorflow() -> ChildProcess:
    """Start the process, or return the one that runs; it ends with this process."""
    global _child, _parent
    # A process that was forked from this one has to start its own.
    if _child is None or not _child.is_open or _parent != os.getpid():
        if _child is None:
            atexit.register(stop_tensorflow)
        _child, _parent = ChildProcess(__name__, seconds=SECONDS, shared=True), os.getpid()
    return _child


def stop_tensorflow() -> None:
    """End the process, if one runs."""
    if _child is not None and _parent == os.getpid():
        _child.close()


def tensorflow_version() -> str | None:
    """The version of TensorFlow that a process runs or ran; None if none has answered yet."""
    return _version


def note_version(version: str) -> None:
    """Note the version that a process stated."""
    global _version
    _version = version


class _Graphs:
    """The graphs of one source, in the child.

    Args:
        network: The name of a network of MTCNN; None is Inception-ResNet-v1.
        variables: Variable to float32 array.
        own: The own graph's file; None without one.
    """

    def __init__(self, network: str | None, variables: Mapping[str, Array], own: OwnGraphFile | None) -> None:
        self._network, self._variables = network, variables
        self._rebuilt: dict[str, RebuiltNetwork | RebuiltMtcnn] = {}
        self.own = None if own is None else own.open()

    def rebuilt(self, dtype: Literal["float32", "float64"]) -> RebuiltNetwork | RebuiltMtcnn:
        """The rebuilt graph, which is built when it is first needed."""
        if dtype not in self._rebuilt:
            if self._network is None:
                from facenet_tf.rebuilt_network import RebuiltNetwork

                self._rebuilt[dtype] = RebuiltNetwork(self._variables, dtype)
            else:
                from facenet_tf.mtcnn import RebuiltMtcnn

                self._rebuilt[dtype] = RebuiltMtcnn(self._network, self._variables, dtype)
        return self._rebuilt[dtype]

    def run(
        self, images: Array, activations: Sequence[str], layers: Sequence[str]
    ) -> tuple[dict[str, Any], Arrays]:
        """Run every graph on images.

        Returns:
            `own_graph` and `rebuilt` as in `checks.core.tensorflow_side.Activations`, and the `layers` that
            the own graph has. The arrays are the activations in float64, those in float32, and these layers
            of the own graph on the first image.
        """
        exact = self.rebuilt("float64").run(images, activations)
        single = self.rebuilt("float32").run(images, activations)
        own, (height, width) = self.own, images.shape[1:3]
        if own is None or not own.supports(height, width):
            return {"own_graph": False, "rebuilt": {}, "layers": []}, [*exact.values(), *single.values()]
        own_activations = [name for name in activations if name in own.activations]
        own_layers = [name for name in layers if name in own.activations]
        if len(images) == 1:  # one run gives both
            every = own.run(images, [*dict.fromkeys([*own_activations, *own_layers])])
            outputs, first = (
                {name: every[name] for name in names} for names in (own_activations, own_layers)
            )
        else:
            outputs, first = own.run(images, own_activations), own.run(images[:1], own_layers)
        message = {
            "own_graph": True,
            "rebuilt": {name: relative_l2(single[name], array) for name, array in outputs.items()},
            "layers": list(first),
        }
        return message, [*exact.values(), *(single | outputs).values(), *first.values()]

    def close(self) -> None:
        """Release the sessions."""
        for graph in (*self._rebuilt.values(), *([] if self.own is None else [self.own])):
            graph.close()


def _run_child() -> None:
    """Answer requests until the parent ends."""
    # TensorFlow makes millions of objects: looking for garbage among them as often as Python does by default
    # takes a tenth of the time of its import and of building the graphs.
    gc.set_threshold(50_000, 20, 10)
    from facenet_tf import import_tensorflow
    from facenet_tf.graph_nodes import GraphError

    tensorflow = import_tensorflow()
    graphs: dict[int, _Graphs] = {}

    def work(request: Mapping[str, Any], arrays: list[Array]) -> tuple[Any, Arrays]:
        number = request["graphs"]
        match request["do"]:
            case "open":
                own = request["own"] and OwnGraphFile.from_json(request["own"])
                variables = dict(zip(request["variables"], arrays, strict=True))
                opened = graphs[number] = _Graphs(request["network"], variables, own)
                tensors = {} if opened.own is None else opened.own.tensors
                answer = {"version": tensorflow.__version__, "own_tensors": list(tensors)}
                return answer, list(tensors.values())
            case "run":
                return graphs[number].run(arrays[0], request["activations"], request["layers"])
            case "run exact":
                exact = graphs[number].rebuilt("float64").run(arrays[0], request["activations"])
                return None, list(exact.values())
            case _:
                if number in graphs:
                    graphs.pop(number).close()
                return None, ()

    def answer(request: Any, arrays: list[Array]) -> tuple[Any, Arrays]:
        try:
            return work(request, arrays)
        except GraphError as error:
            raise AnswerError(error.problem, graph=str(error.path)) from error
        except (tensorflow.errors.OpError, MemoryError) as error:
            first = (str(error).strip() or "it needs more memory than there is").splitlines()[0]
            raise AnswerError(first, of_tensorflow=True) from error

    serve(answer, shared=True)


if __name__ == "__main__":
    _run_child()
