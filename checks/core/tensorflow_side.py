"""TensorFlow's side of a comparison: the graphs of a source, and their activations on an input."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from checks.core.activations import activation_names
from checks.core.inputs import InputBatch
from checks.core.metrics import relative_l2
from checks.core.models import Port, build_port
from checks.core.rounding import LayerRounding, measure_rounding
from checks.core.source_tensors import BrokenSource, find_overflow
from checks.core.types import Array
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


class TensorFlowSide:
    """The TensorFlow graphs of one source, open until closed. A context manager.

    Args:
        source: The open source.
        tensors: Its converted variables as float32, by TensorFlow's names.
        weights: As in `plan.plan_conversion`.
        own_graph: Whether to run the source's own graph. A graph whose weights are not float32 computes in
            another precision and cannot judge float32 rounding.
        network: The network of MTCNN that the tensors belong to, whose files hold no graph; None is
            Inception-ResNet-v1.

    Attributes:
        own_graph: The file that the checkpoint's own graph was read from, or None.
        own_tensors: The weights as TensorFlow's reader gave them to that graph; empty without one.

    Raises:
        SourceError: The source's own graph cannot be run.
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
        from facenet_tf.mtcnn import RebuiltMtcnn
        from facenet_tf.rebuilt_network import RebuiltNetwork

        rebuild: Callable[..., RebuiltNetwork | RebuiltMtcnn] = RebuiltNetwork
        if network is not None:
            rebuild, own_graph = partial(RebuiltMtcnn, network.name), False
        self._variables = tensors
        self._port: Port | None = None
        self._closing = ExitStack()
        try:
            self._exact = rebuild(tensors, "float64")
            self._closing.callback(self._exact.close)
            self._single = rebuild(tensors, "float32")
            self._closing.callback(self._single.close)
            self._own = open_own_graph(source, weights) if own_graph else None
            if self._own is not None:
                self._closing.enter_context(self._own)
        except BaseException:
            self._closing.close()
            raise
        self.own_graph: Path | None = None if self._own is None else self._own.path
        self.own_tensors: Mapping[str, Array] = {} if self._own is None else self._own.tensors

    def run(self, batch: InputBatch, activations: tuple[str, ...]) -> Activations:
        """Run every graph on an input.

        An activation that the checkpoint's own graph lacks, such as the Logits of a frozen one, comes from
        the rebuilt graph.
        """
        exact = self._exact.run(batch.images, activations)
        rebuilt = self._single.run(batch.images, activations)
        height, width = batch.images.shape[1:3]
        if self._own is None or not self._own.supports(height, width):
            return Activations(batch, exact, rebuilt, False, {}, ())
        own = self._own.run(
            batch.images, [activation for activation in activations if activation in self._own.activations]
        )
        return Activations(
            batch,
            exact,
            {activation: own.get(activation, rebuilt[activation]) for activation in activations},
            True,
            {activation: relative_l2(rebuilt[activation], own[activation]) for activation in own},
            self._own_rounding(batch.images[:1]),
        )

    def run_exact(self, images: Array, activations: tuple[str, ...]) -> Mapping[str, Array]:
        """Run the rebuilt graph in float64 alone; as `Activations.float64`."""
        return self._exact.run(images, activations)

    def _own_rounding(self, images: Array) -> tuple[LayerRounding, ...]:
        """Measure the rounding of every layer of the own graph, with the converted weights in float64."""
        assert self._own is not None
        if self._port is None:
            variant = infer_variant(describe(self._variables))
            port = build_port(to_numpy_state_dict(self._variables), variant)
            assert isinstance(port, Port)  # converted variables load
            self._port = port
        names = activation_names(every_layer=True, logits=True)
        layers = self._own.run(images, [name for name in names if name in self._own.activations])
        return measure_rounding(self._port.float64, images, layers)

    def close(self) -> None:
        """Release the sessions."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


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


def open_own_graph(source: TensorSource, weights: Weights) -> OwnGraph | None:
    """Open a source's own graph, a .pb, a checkpoint's .meta or a SavedModel's; None if it has none.

    Raises:
        SourceError: The graph cannot be run.
    """
    from facenet_tf.graph_nodes import GraphError
    from facenet_tf.own_graph import OwnGraph

    named = source if isinstance(source, NetworkTensors) else NetworkTensors(source)
    opened, scope = named.source, named.prefix
    file = find_own_graph(opened)
    if file is None:
        return None
    path, kind = file
    try:
        if isinstance(opened, SavedModel):
            return OwnGraph.from_saved_model(path, opened.variables, weights, scope)
        if isinstance(opened, FrozenGraph):
            return OwnGraph.from_frozen(path, weights, scope, kind)
        return OwnGraph.from_checkpoint(path, opened.path, weights, scope)
    except GraphError as error:
        problem = f"the checkpoint's own graph cannot be run: {error.problem}"
        next_step = f"{WITHOUT_OWN_GRAPH[kind]} to compare with the rebuilt graph alone"
        raise SourceError(error.path, problem, next_step=next_step) from error
