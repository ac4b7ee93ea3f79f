"""An ONNX or TFLite graph, ready to be run on images: how they lie in its input, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.audit.graphs import onnx_file, tflite_file
from checks.audit.graphs.graph import Graph
from checks.audit.graphs.process import GraphProcess
from checks.audit.graphs.walk import Walked
from checks.probes import IMAGE_SIZE
from checks.taps import BOTTLENECK, EMBEDDINGS, LOGITS, tap_names
from converter.casting import HALVES
from converter.errors import SourceError

Array = NDArray[Any]
_DTYPES = ("float32", "float16", "uint8", "int8", "int32")
_UNIT = 1e-2  # how far from one the length of an embedding may be that half precision brought to one


@dataclass(frozen=True, slots=True)
class _Layout:
    """How images lie in a graph's input."""

    channels_last: bool
    batch: int | None
    height: int | None
    width: int | None


class GraphRunner:
    """An ONNX or TFLite graph in a process that runs it, as `running.Runner` says.

    Args:
        graph: The graph.
        walked: Its layers.
        process: The process.

    Raises:
        SourceError: It takes something else than images.
    """

    def __init__(self, graph: Graph, walked: Walked, process: GraphProcess) -> None:
        self._graph, self._walked, self._process = graph, walked, process
        self.runtime = (tflite_file if graph.channels_last else onnx_file).runtime()
        self._layout = _image_layout(graph)
        self.dtype = graph.inputs[0].dtype
        self.feed = f"{'NHWC' if self._layout.channels_last else 'NCHW'} {self.dtype}"
        self.weights = str(walked.weights.layers[BOTTLENECK]["weights"].array.dtype)
        kernels = {node.inputs[1] for node in graph.nodes if node.op == "conv"}
        as_stored = kernels - {node.output for node in graph.nodes}
        self.halved = any(
            name in graph.constants and graph.constants[name].dtype in HALVES for name in as_stored
        )
        self.taps = tuple(tap for tap in tap_names(every_layer=True, logits=True) if tap in walked.taps)
        self._output = walked.embeddings or walked.taps[BOTTLENECK]
        normalised = bool(walked.embeddings) and self._gives_unit_length()
        self.compared = EMBEDDINGS if normalised else BOTTLENECK
        length = "of length one" if normalised else "before they are brought to length one"
        gives = ["logits"] if LOGITS in walked.taps else []
        self.gives = " and ".join([f"embeddings {length}", *gives] if walked.embeddings else gives)

    def _gives_unit_length(self) -> bool:
        grey = self.fitted(np.full((1, IMAGE_SIZE, IMAGE_SIZE, 3), 0.25, np.float32))
        lengths = np.sqrt(np.square(self.embeddings(grey).astype(np.float64)).sum(axis=1))
        return bool((np.abs(lengths - 1) <= _UNIT).all())

    def fitted(self, images: Array) -> Array:
        """Images cut or repeated to the size that the graph takes."""
        for axis, extent in ((1, self._layout.height), (2, self._layout.width)):
            if extent is not None and extent != images.shape[axis]:
                images = np.take(images, np.arange(extent) % images.shape[axis], axis=axis)
        return images

    def embeddings(self, images: Array) -> Array:
        """(N, size): what it gives, as its runtime runs it by default."""
        (found,) = self._run(images, [self._output], plain=not self._walked.embeddings)
        return found.reshape(len(images), -1)

    def inner(self, images: Array) -> list[Array]:
        """What every tap gives, maps as NHWC, run as the graph is written."""
        found = self._run(images, [self._walked.taps[tap] for tap in self.taps], plain=True)
        if self._graph.channels_last:
            return found
        return [array.transpose(0, 2, 3, 1) if array.ndim == 4 else array for array in found]

    def _run(self, images: Array, names: list[str], *, plain: bool) -> list[Array]:
        whole = images if self._layout.channels_last else images.transpose(0, 3, 1, 2)
        ready = np.ascontiguousarray(whole).astype(self.dtype)
        size = self._layout.batch or len(ready)
        parts = []
        for start in range(0, len(ready), size):
            batch = ready[start : start + size]
            # A graph of fixed batch: the last one is filled up.
            filled = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
            parts.append([each[: len(batch)] for each in self._process.run(filled, names, plain=plain)])
        return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _image_layout(graph: Graph) -> _Layout:
    """How images lie in the graph's input, from its shape.

    Raises:
        SourceError: It takes something else than images of three channels.
    """
    value = graph.inputs[0]
    shape = value.shape if len(value.shape) == 4 else (None, None, None, None)
    channels_last = shape[3] == 3 if shape.count(3) == 1 else graph.channels_last
    channels, *extents = (shape[3], *shape[1:3]) if channels_last else shape[1:]
    if len(graph.inputs) != 1 or channels not in (3, None) or value.dtype not in _DTYPES:
        raise SourceError(graph.path, f"it does not take images of three channels ({graph.described()})")
    return _Layout(channels_last, shape[0], extents[0], extents[1])
