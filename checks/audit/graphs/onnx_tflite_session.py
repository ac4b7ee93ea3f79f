"""Run an ONNX or TFLite graph on images, in the layout, dtype and batch size of its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from checks.audit.graphs.find_layers import GraphLayers
from checks.audit.graphs.graph import Graph
from checks.audit.graphs.graph_formats import format_of
from checks.audit.graphs.preprocessing import fit_size
from checks.audit.graphs.run_graph import GraphSession
from checks.audit.graphs.runtime_process import RuntimeProcess
from checks.audit.metadata import describe_shape
from checks.core.activations import activation_names
from checks.core.inputs import IMAGE_SIZE
from checks.core.network import BOTTLENECK, EMBEDDINGS, LOGITS
from checks.core.types import Array
from converter.casting import HALVES
from converter.errors import SourceError
from reference.inception_resnet_v1 import MINIMUM_IMAGE_SIZE

MOST_IMAGES = 64
"""A graph is run on so many images at once at most."""

_INPUT_DTYPES = ("float32", "float16", "uint8", "int8", "int32")
_OUTPUT_NAMES = {
    EMBEDDINGS: "embeddings of length one",
    BOTTLENECK: "embeddings before they are normalised",
    LOGITS: "logits",
}
_MOST_PIXELS = 1024  # of height and width
_LENGTH_TOLERANCE = 1e-2  # of the length of an embedding that is normalised in half precision


@dataclass(frozen=True, slots=True)
class _ImageLayout:
    """The layout of images in a graph's input; a variable extent is None."""

    channels_last: bool
    batch: int | None
    height: int | None
    width: int | None


class OnnxTfliteSession(GraphSession):
    """The session of an ONNX or TFLite graph in a process of its own.

    Args:
        graph: The graph.
        layers: Its layers.
        process: The process that runs it.

    Raises:
        SourceError: The graph does not take images.
    """

    def __init__(self, graph: Graph, layers: GraphLayers, process: RuntimeProcess) -> None:
        self._graph, self._layers, self._process = graph, layers, process
        self._layout = _image_layout(graph)
        self.runtime = format_of(graph).runtime_version()
        taken = graph.inputs[0]
        self.input_dtype = taken.dtype
        order = "NHWC" if self._layout.channels_last else "NCHW"
        self.input_description = f"{order} {graph.dtype_in_file(taken)} {describe_shape(taken.shape)}"
        if taken.name in graph.ends:
            self.input_description += ", quantised by its scale"
        dtypes = {array.dtype for array in graph.constants.values() if array.ndim > 1}
        self.weights_dtype = next((str(dtype) for dtype in HALVES if dtype in dtypes), "float32")
        self.computes_in_half = layers.computes_in_half
        self.activations = tuple(
            activation
            for activation in activation_names(every_layer=True, logits=True)
            if activation in layers.activations
        )
        outputs = {
            name: EMBEDDINGS if self._is_normalised(name) else BOTTLENECK for name in layers.embeddings
        }
        outputs |= dict.fromkeys(layers.logits, LOGITS)
        self._output_tensors = list(outputs)
        self.outputs = tuple(outputs.values())
        self.output_description = " and ".join(_OUTPUT_NAMES[each] for each in dict.fromkeys(self.outputs))

    def fit_images(self, images: Array) -> Array:
        """Cut or repeat images to the size that the graph takes."""
        return fit_size(images, self._layout.height, self._layout.width)

    def run(self, images: Array) -> list[Array]:
        """Run the graph as its runtime optimises it; return each of `outputs` as (N, size)."""
        if not self.outputs:
            return []
        arrays = self._run(images, self._output_tensors, as_written=False)
        return [array.reshape(len(images), -1) for array in arrays]

    def fetch(self, images: Array, names: Sequence[str], *, as_written: bool) -> list[Array]:
        """Run the graph; return tensors in its own layout. `as_written` is that of `RuntimeProcess.run`."""
        return self._run(images, list(names), as_written=as_written)

    def prepare(self, images: Array) -> Array:
        """Return the first convolution's input, NHWC."""
        if self._layers.input == self._graph.inputs[0].name:
            return images.astype(self.input_dtype)
        (prepared,) = self._channels_last(self._run(images, [self._layers.input], as_written=True))
        return prepared

    def run_layers(self, images: Array) -> list[Array]:
        """Run the graph node by node; return every activation, NHWC."""
        names = [self._layers.activations[activation] for activation in self.activations]
        return self._channels_last(self._run(images, names, as_written=True))

    def _is_normalised(self, output: str) -> bool:
        # A ramp, because whitening divides by the deviation, which is 0 in a constant image.
        ramp = np.linspace(-1, 1, IMAGE_SIZE**2 * 3, dtype=np.float32).reshape(1, IMAGE_SIZE, IMAGE_SIZE, 3)
        (embedding,) = self._run(self.fit_images(ramp), [output], as_written=False)
        length = np.sqrt(np.square(embedding.astype(np.float64)).sum())
        return bool(abs(length - 1) <= _LENGTH_TOLERANCE)

    def _channels_last(self, arrays: list[Array]) -> list[Array]:
        if self._graph.channels_last:
            return arrays
        return [array.transpose(0, 2, 3, 1) if array.ndim == 4 else array for array in arrays]

    def _run(self, images: Array, names: list[str], *, as_written: bool) -> list[Array]:
        """Run the graph on NHWC images, in batches of its own size."""
        ordered = images if self._layout.channels_last else images.transpose(0, 3, 1, 2)
        ready = np.ascontiguousarray(ordered).astype(self.input_dtype)
        return self._process.run_in_batches(ready, names, self._layout.batch, as_written=as_written)


def _image_layout(graph: Graph) -> _ImageLayout:
    """Infer the layout of images from the shape of the graph's input.

    Raises:
        SourceError: The graph does not take images of three channels.
    """
    value = graph.inputs[0]
    if value.dtype in ("bfloat16", "float64"):
        raise SourceError(
            graph.path,
            f"it computes in {value.dtype}, which its runtime does not support on a CPU",
            next_step="Export the model in float32 or in half precision: model.float() or model.half()",
        )
    shape = value.shape if len(value.shape) == 4 else (None, None, None, None)
    is_clear = (shape[1] == 3) != (shape[3] == 3)  # the first extent is the number of images
    channels_last = shape[3] == 3 if is_clear else graph.channels_last
    channels, *extents = (shape[3], *shape[1:3]) if channels_last else shape[1:]
    fits = all(extent is None or MINIMUM_IMAGE_SIZE <= extent <= _MOST_PIXELS for extent in extents)
    if len(graph.inputs) != 1 or channels not in (3, None) or value.dtype not in _INPUT_DTYPES or not fits:
        raise SourceError(graph.path, f"it does not take images of three channels ({graph.description()})")
    if shape[0] is not None and shape[0] > MOST_IMAGES:
        raise SourceError(graph.path, f"it takes {shape[0]} images at once, more than {MOST_IMAGES}")
    return _ImageLayout(channels_last, shape[0], extents[0], extents[1])
