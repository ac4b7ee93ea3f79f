"""An ONNX or TFLite graph, ready to be run on images: how they lie in its input, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.audit.graphs import onnx_file, tflite_file
from checks.audit.graphs.find_layers import GraphLayers
from checks.audit.graphs.graph import Graph
from checks.audit.graphs.runtime_process import RuntimeProcess
from checks.core.activations import BOTTLENECK, EMBEDDINGS, LOGITS, activation_names
from checks.core.inputs import IMAGE_SIZE
from converter.casting import HALVES
from converter.errors import SourceError
from reference.inception_resnet_v1 import MINIMUM_IMAGE_SIZE

Array = NDArray[Any]
_DTYPES = ("float32", "float16", "uint8", "int8", "int32")
_WORDS = {
    EMBEDDINGS: "embeddings of length one",
    BOTTLENECK: "embeddings before they are brought to length one",
    LOGITS: "logits",
}
_MOST_IMAGES = 64  # in a fixed batch
_MOST_PIXELS = 1024  # of height and width
_UNIT = 1e-2  # how far from one the length of an embedding may be that half precision brought to one


@dataclass(frozen=True, slots=True)
class _Layout:
    """How images lie in a graph's input."""

    channels_last: bool
    batch: int | None
    height: int | None
    width: int | None


class OnnxTfliteSession:
    """An ONNX or TFLite graph in a process that runs it, as `run_graph.GraphSession` says.

    Args:
        graph: The graph.
        layers: Its layers.
        process: The process.

    Raises:
        SourceError: It takes something else than images.
    """

    def __init__(self, graph: Graph, layers: GraphLayers, process: RuntimeProcess) -> None:
        self._graph, self._walked, self._process = graph, layers, process
        self.runtime = (tflite_file if graph.channels_last else onnx_file).runtime()
        self._layout = _image_layout(graph)
        self.dtype = graph.inputs[0].dtype
        self.feed = f"{'NHWC' if self._layout.channels_last else 'NCHW'} {self.dtype}"
        stored = {t.array.dtype for tensors in layers.weights.layers.values() for t in tensors.values()}
        self.weights = next((str(dtype) for dtype in HALVES if dtype in stored), "float32")
        self.halved = layers.halved
        self.activations = tuple(
            activation
            for activation in activation_names(every_layer=True, logits=True)
            if activation in layers.activations
        )
        outputs = {
            name: EMBEDDINGS if self._gives_unit_length(name) else BOTTLENECK for name in layers.embeddings
        }
        if layers.activations.get(LOGITS) in {output.name for output in graph.outputs}:
            outputs[layers.activations[LOGITS]] = LOGITS
        self._outputs = tuple(outputs)
        self.outputs = tuple(outputs.values())
        self.gives = " and ".join(_WORDS[output] for output in dict.fromkeys(self.outputs))

    def _gives_unit_length(self, name: str) -> bool:
        # A ramp: a constant image has no deviation to be divided by.
        ramp = np.linspace(-1, 1, IMAGE_SIZE**2 * 3, dtype=np.float32).reshape(1, IMAGE_SIZE, IMAGE_SIZE, 3)
        (found,) = self._run(self.fitted(ramp), [name], as_written=False)
        length = np.sqrt(np.square(found.astype(np.float64)).sum())
        return bool(abs(length - 1) <= _UNIT)

    def fitted(self, images: Array) -> Array:
        """Images cut or repeated to the size that the graph takes."""
        for axis, extent in ((1, self._layout.height), (2, self._layout.width)):
            if extent is not None and extent != images.shape[axis]:
                images = np.take(images, np.arange(extent) % images.shape[axis], axis=axis)
        return images

    def given(self, images: Array) -> list[Array]:
        """What each of `outputs` is, (N, size), as its runtime runs it by default."""
        if not self.outputs:
            return []
        found = self._run(images, list(self._outputs), as_written=False)
        return [array.reshape(len(images), -1) for array in found]

    def inner(self, images: Array) -> tuple[Array, list[Array]]:
        """What the first convolution takes, and what every activation gives, NHWC, run as the graph is written."""
        names = [self._walked.activations[activation] for activation in self.activations]
        is_prepared = self._walked.input != self._graph.inputs[0].name
        found = self._run(images, [*names, self._walked.input] if is_prepared else names, as_written=True)
        if not self._graph.channels_last:
            found = [array.transpose(0, 2, 3, 1) if array.ndim == 4 else array for array in found]
        return (found[-1], found[:-1]) if is_prepared else (images.astype(self.dtype), found)

    def _run(self, images: Array, names: list[str], *, as_written: bool) -> list[Array]:
        whole = images if self._layout.channels_last else images.transpose(0, 3, 1, 2)
        ready = np.ascontiguousarray(whole).astype(self.dtype)
        size = self._layout.batch or len(ready)
        parts = []
        for start in range(0, len(ready), size):
            batch = ready[start : start + size]
            # A graph of fixed batch: the last one is filled up.
            filled = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
            found = self._process.run(filled, names, as_written=as_written)
            if any(np.ndim(each) < 2 or len(each) != size for each in found):
                raise SourceError(self._graph.path, "what it gives is not one row for each image")
            parts.append([each[: len(batch)] for each in found])
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
    sizes = all(extent is None or MINIMUM_IMAGE_SIZE <= extent <= _MOST_PIXELS for extent in extents)
    if len(graph.inputs) != 1 or channels not in (3, None) or value.dtype not in _DTYPES or not sizes:
        raise SourceError(graph.path, f"it does not take images of three channels ({graph.described()})")
    if shape[0] is not None and shape[0] > _MOST_IMAGES:
        raise SourceError(graph.path, f"it takes {shape[0]} images at once, more than {_MOST_IMAGES}")
    return _Layout(channels_last, shape[0], extents[0], extents[1])
