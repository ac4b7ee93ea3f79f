"""TensorFlow's side of a comparison: the graphs of a source, and their activations on an input."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from checks.core.activations import Model, activation_names
from checks.core.inputs import InputBatch
from checks.core.models import build_exact
from checks.core.rounding import LayerRounding, measure_rounding
from checks.core.source_tensors import BrokenSource, find_overflow
from checks.core.tensorflow_process import OwnGraphFile, note_version, start_tensorflow
from checks.core.types import Array
from converter.child_process import AnswerError, ChildError, Request
from converter.convert import to_numpy_state_dict
from converter.errors import RequirementError, SourceError
from converter.formats.neighbours import HEAD_BYTES, refuse_placeholder
from converter.formats.source import TensorSource
from converter.formats.tensorflow.bundle import TensorBundle
from converter.formats.tensorflow.frozen_graph import FrozenGraph
from converter.formats.tensorflow.saved_model import SavedModel
from converter.mtcnn_layer_map import MtcnnNetwork
from converter.network_names import NetworkTensors
from converter.plan import Weights, describe, infer_variant

if TYPE_CHECKING:
    from facenet_tf.own_graph import GraphKind, OwnGraph


def require_tensorflow(purpose: str, otherwise: str = "") -> None:
    """Check that TensorFlow is installed, without importing it.

    Args:
        purpose: The rest of the sentence "TensorFlow is needed ...", such as "to train with".
        otherwise: A sentence on what works without it.

    Raises:
        RequirementError: It is not installed.
    """
    if importlib.util.find_spec("tensorflow") is None:
        message = (
            f"TensorFlow is needed {purpose} and is not installed: pip install 'facenet-port[tensorflow]'."
        )
        raise RequirementError(f"{message} {otherwise}".rstrip())


@dataclass(frozen=True, slots=True)
class Activations:
    """TensorFlow's activations on one input.

    Attributes:
        batch: The input.
        float64: Activation to array: the rebuilt graph in float64, from which every error is measured.
        float32: Activation to array: the checkpoint's own graph if there is one and it takes images of this
            size, else the rebuilt graph.
        own_graph: Whether `float32` is from the checkpoint's own graph.
        rebuilt: Activation to the relative L2 of the rebuilt float32 graph from the checkpoint's own; empty
            without an own graph.
        own_rounding: The rounding of every layer of the checkpoint's own graph, on the first image, from the
            network with the same weights; empty without an own graph.
    """

    batch: InputBatch
    float64: Mapping[str, Array]
    float32: Mapping[str, Array]
    own_graph: bool
    rebuilt: Mapping[str, float]
    own_rounding: tuple[LayerRounding, ...]

    @property
    def broken(self) -> BrokenSource | None:
        """The first activation in which TensorFlow itself computes a NaN or an infinity; None without one."""
        sides = (self.float32, self.float64)
        found = (find_overflow(side, "TensorFlow's", self.batch.name) for side in sides)
        return next(filter(None, found), None)


_numbers = count()  # of the graphs in TensorFlow's process


class TensorFlowSide:
    """The TensorFlow graphs of one source, in TensorFlow's process, open until closed. A context manager.

    Args:
        source: The open source.
        tensors: Its converted variables as float32, by TensorFlow's names.
        weights: As in `plan.plan_conversion`.
        own_graph: Whether to run the source's own graph. A graph whose weights are not float32 computes in
            another precision and cannot judge float32 rounding.
        network: The network of MTCNN that the tensors belong to, whose files hold no graph; None is
            Inception-ResNet-v1.

    Attributes:
        own_graph: The file that the checkpoint's own graph is read from, or None.

    Raises:
        SourceError: The source's own graph cannot be run. This, and every other error of TensorFlow, may also
            be raised by what first waits for the process.
        RequirementError: TensorFlow does not run here, or ended.
    """

    def __init__(
        self,
        source: TensorSource,
        tensors: Mapping[str, Array],
        weights: Weights,
        *,
        own_graph: bool = True,
        network: MtcnnNetwork | None = None,
    ) -> None:
        self._variables, self._path = tensors, source.path
        self._file = find_own_graph_file(source, weights) if own_graph and network is None else None
        self.own_graph: Path | None = None if self._file is None else self._file.path
        self._child, self._number = start_tensorflow(), next(_numbers)
        self._opening = self._send(
            "open",
            list(tensors.values()),
            network=None if network is None else network.name,
            variables=list(tensors),
            own=None if self._file is None else self._file.as_json(),
        )

    @cached_property
    def own_tensors(self) -> Mapping[str, Array]:
        """The weights as TensorFlow's reader gave them to the own graph; empty without one."""
        message, arrays = self._wait(self._opening)
        note_version(message["version"])
        return dict(zip(message["own_tensors"], arrays, strict=True))

    @cached_property
    def _network(self) -> Model:
        """The network with the converted weights in float64."""
        return build_exact(to_numpy_state_dict(self._variables), infer_variant(describe(self._variables)))

    def begin(self, batch: InputBatch, activations: tuple[str, ...]) -> Callable[[], Activations]:
        """Begin to run every graph on an input; the result waits for the end.

        An activation that the checkpoint's own graph lacks, such as the Logits of a frozen one, comes from
        the rebuilt graph.
        """
        wanted = [] if self._file is None else activation_names(every_layer=True, logits=True)
        running = self._send("run", [batch.images], activations=activations, layers=wanted)

        def wait() -> Activations:
            if self._file is not None:
                _ = self._network  # is built while TensorFlow computes
            _ = self.own_tensors  # an error of its own graph is raised first
            message, arrays = self._wait(running)
            exact, single, first = (
                arrays[: len(activations)],
                arrays[len(activations) : 2 * len(activations)],
                arrays[2 * len(activations) :],
            )
            rounding: tuple[LayerRounding, ...] = ()
            if first:  # the layers of its own graph, on the first image
                layers = dict(zip(message["layers"], first, strict=True))
                rounding = measure_rounding(self._network, batch.images[:1], layers)
            return Activations(
                batch,
                dict(zip(activations, exact, strict=True)),
                dict(zip(activations, single, strict=True)),
                message["own_graph"],
                message["rebuilt"],
                rounding,
            )

        return wait

    def run(self, batch: InputBatch, activations: tuple[str, ...]) -> Activations:
        """Run every graph on an input, as `begin`."""
        return self.begin(batch, activations)()

    def run_exact(self, images: Array, activations: tuple[str, ...]) -> Mapping[str, Array]:
        """Run the rebuilt graph in float64 alone; as `Activations.float64`."""
        _ = self.own_tensors
        _, arrays = self._wait(self._send("run exact", [images], activations=activations))
        return dict(zip(activations, arrays, strict=True))

    def _send(self, what: str, arrays: list[Array], **options: Any) -> Request:
        """Send a request to TensorFlow's process."""
        try:
            return self._child.send({"do": what, "graphs": self._number, **options}, arrays)
        except ChildError as error:
            raise self._crash(error) from error

    def _wait(self, request: Request) -> tuple[Any, list[Array]]:
        """Wait for the answer to a request."""
        try:
            return request.wait()
        except ChildError as error:
            raise self._crash(error) from error
        except AnswerError as error:
            if self._file is not None and "graph" in error.details:
                raise _refuse_own_graph(
                    self._file.kind, self._file.as_given(error.details["graph"]), str(error)
                ) from error
            if "of_tensorflow" in error.details:
                problem = f"TensorFlow cannot compute with its weights: {error}"
                raise RequirementError(f"{self._path}: {problem}. {_MEMORY}") from error
            raise

    def _crash(self, error: ChildError) -> SourceError | RequirementError:
        """Describe the end of TensorFlow's process."""
        problem = f"TensorFlow {error} with its weights"
        if "SIGKILL" in str(error):
            return RequirementError(f"{self._path}: {problem}: something ended its process. {_MEMORY}")
        if self._file is None:
            advice = "Try `python -c 'import tensorflow'`, and install the version that constraints.txt names"
            return RequirementError(f"{self._path}: {problem}. {advice}.")
        return _refuse_own_graph(self._file.kind, self._file.path, f"TensorFlow {error}")

    def close(self) -> None:
        """Release the graphs; the process stays."""
        if self._child.is_open:
            with suppress(ChildError, RequirementError):
                self._child.send({"do": "close", "graphs": self._number})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


_MEMORY = "It may have run out of memory: a comparison takes some 2 GB"


def find_meta(prefix: str | Path) -> Path | None:
    """Find the .meta of a checkpoint: with the step in its name, or without it as the published ones."""
    prefix = Path(prefix)
    stem = re.sub(r"\.ckpt(-\d+)?$", "", prefix.name)
    for name in (f"{prefix.name}.meta", f"{stem}.meta"):
        if prefix.with_name(name).is_file():
            return prefix.with_name(name)
    return None


WITHOUT_OWN_GRAPH: Mapping[GraphKind, str] = {
    "meta": "Move the .meta away",
    "frozen": "Give the checkpoint that it was frozen from, its .index and .data alone,",
    "frozen_meta": "Give the checkpoint that it was frozen from, its .index and .data alone,",
    "saved_model": "Move saved_model.pb away and give variables/",
}
"""Kind of an own graph to the advice that leaves it out."""


def find_own_graph(source: TensorSource) -> tuple[Path, GraphKind] | None:
    """Find the file of an open source's own graph, and its kind; None if it has none.

    Raises:
        SourceError: The .meta stands for another file, such as a pointer of Git LFS.
    """
    if isinstance(source, FrozenGraph):
        return source.path, "frozen_meta" if source.in_meta_graph else "frozen"
    if isinstance(source, SavedModel) and source.naming == "tensorflow":
        return source.graph, "saved_model"
    meta = find_meta(source.path) if isinstance(source, TensorBundle) else None
    if meta is None:
        return None
    with meta.open("rb") as file:
        refuse_placeholder(meta, file.read(HEAD_BYTES))
    return meta, "meta"


def find_own_graph_file(source: TensorSource, weights: Weights) -> OwnGraphFile | None:
    """Find the own graph of a source, a .pb, a checkpoint's .meta or a SavedModel's; None if it has none.

    Raises:
        SourceError: As `find_own_graph`.
    """
    named = source if isinstance(source, NetworkTensors) else NetworkTensors(source)
    opened = named.source
    file = find_own_graph(opened)
    if file is None:
        return None
    path, kind = file
    checkpoint: Path | None = None
    if isinstance(opened, SavedModel):
        checkpoint = opened.variables
    elif isinstance(opened, TensorBundle):
        checkpoint = opened.path
    return OwnGraphFile(path, kind, checkpoint, weights, named.prefix)


def open_own_graph(source: TensorSource, weights: Weights) -> OwnGraph | None:
    """Open a source's own graph in this process; None if it has none.

    Raises:
        SourceError: The graph cannot be run.
    """
    from facenet_tf.graph_nodes import GraphError

    file = find_own_graph_file(source, weights)
    try:
        return None if file is None else file.open()
    except GraphError as error:
        assert file is not None
        raise _refuse_own_graph(file.kind, error.path, error.problem) from error


def _refuse_own_graph(kind: GraphKind, path: Path, problem: str) -> SourceError:
    next_step = f"{WITHOUT_OWN_GRAPH[kind]} to compare with the rebuilt graph alone"
    return SourceError(path, f"the checkpoint's own graph cannot be run: {problem}", next_step=next_step)
