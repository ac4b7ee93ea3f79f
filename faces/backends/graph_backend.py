"""ONNX Runtime and LiteRT as runtimes: an exported file that turns images into embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from checks.audit.graphs.graph import Graph
from checks.audit.graphs.graph_formats import find_graph_format
from checks.audit.graphs.quantisation import dequantise_ends
from checks.audit.graphs.runtime_process import RuntimeProcess
from checks.core.inputs import IMAGE_SIZE
from converter.errors import SourceError
from converter.formats.neighbours import HEAD_BYTES, is_onnx, is_tflite
from converter.free_names import quoted
from faces.backends.facts import RUNTIMES, BackendName

_SIZES = (1, IMAGE_SIZE, IMAGE_SIZE, IMAGE_SIZE)  # of an input's variable extents; the channels have theirs
_LENGTH_TOLERANCE = 1e-2  # of an embedding that is computed in half precision or from 8 bits

Run = Callable[[NDArray[Any]], dict[str, NDArray[Any]]]
"""A function from a batch in the layout and dtype of a graph's input to its outputs by name."""


def find_runtime(path: Path) -> BackendName | None:
    """Find what runs an exported file, by its contents, or else by its ending; None for any other path."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:  # its reader explains why
        head = b""
    if is_tflite(head):
        return "litert"
    return "onnxruntime" if is_onnx(head) else RUNTIMES.get(path.suffix.lower())


class GraphFile:
    """Runs an exported file, on as many threads as PyTorch uses in the calling thread.

    Args:
        path: The file, ONNX or TFLite, which was audited or tried before.
        is_detector: Whether it is a network of the detector.

    Attributes:
        name: The name of the runtime, as `--backend` has it.
    """

    def __init__(self, path: Path, *, is_detector: bool = False) -> None:
        name = find_runtime(path)
        assert name is not None  # its caller has read it
        self.path, self.name, self._is_detector = path, name, is_detector
        self._runs: dict[int, Run] = {}
        self._opening = Lock()

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run a batch in the layout and dtype of the graph's input; returns its outputs by name.

        Raises:
            SourceError: The runtime refuses the file.
        """
        return self._open(torch.get_num_threads())(batch)

    def _open(self, threads: int) -> Run:
        with self._opening:
            if threads not in self._runs:
                if self.name == "onnxruntime":
                    from faces.backends.onnxruntime_backend import open_onnxruntime

                    self._runs[threads] = open_onnxruntime(self.path, threads, is_detector=self._is_detector)
                else:
                    from faces.backends.litert_backend import open_litert

                    self._runs[threads] = open_litert(self.path, threads)
            return self._runs[threads]


class GraphBackend:
    """Embeds faces with an exported file.

    Args:
        path: The file, ONNX or TFLite, which was audited or tried before.
        sha256: Its SHA-256.
        shape: The shape of its input; None for a variable extent.
        takes_pixels: Whether the input is the pixels of images, uint8, which the graph standardises.
        embedding_size: The length of an embedding.

    Attributes:
        name: The name of the runtime, as `--backend` has it.
    """

    def __init__(
        self,
        path: Path,
        sha256: str,
        *,
        shape: tuple[int | None, ...] = (None, 3, None, None),
        takes_pixels: bool = False,
        embedding_size: int,
    ) -> None:
        self.path, self.sha256, self.takes_pixels = path, sha256, takes_pixels
        self.embedding_size = embedding_size
        self._file = GraphFile(path)
        self.name = self._file.name
        self._batch, self._channels_last = shape[0], shape[3] == 3

    def embed(self, images: NDArray[Any]) -> NDArray[Any]:
        """Compute the embeddings of images: (N, H, W, 3), standardised or pixels, to (N, E), float32.

        Raises:
            SourceError: The runtime refuses the file, or it gives no embeddings of length one.
        """
        ordered = images if self._channels_last else images.transpose(0, 3, 1, 2)
        ready = np.ascontiguousarray(ordered, np.uint8 if self.takes_pixels else np.float32)
        size = self._batch or len(ready)
        rows = []
        for start in range(0, len(ready), size):
            batch = ready[start : start + size]
            missing = np.repeat(batch[-1:], size - len(batch), axis=0)  # of a graph with a fixed batch
            whole = np.concatenate([batch, missing]) if len(missing) else batch
            rows.append(next(iter(self._file.run(whole).values()))[: len(batch)])
        embeddings = np.concatenate(rows).astype(np.float32, copy=False)
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        if not np.all(np.abs(lengths - 1) <= _LENGTH_TOLERANCE):  # NaN is not
            raise SourceError(
                self.path,
                "its output is no embedding of length one",
                next_step="Export it with `facenet-port export`, without --classify",
            )
        exact: NDArray[Any] = embeddings / lengths  # those of 8 bits are less exact
        return exact


def try_file(path: Path) -> tuple[Graph, int]:
    """Read a file of unknown origin, and run it on an image in a process of its own, which may crash.

    Returns:
        The graph, and the length of a row of its first output.

    Raises:
        SourceError: It is no ONNX or TFLite file, is damaged, does not run, or does not turn images of
            160x160 into embeddings.
        RequirementError: A package that reads or runs it is not installed, or does not load.
    """
    graph_format = find_graph_format(path)
    if graph_format is None or graph_format.name not in ("ONNX", "TFLite"):
        raise SourceError(path, "it is no ONNX or TFLite file")
    graph = dequantise_ends(graph_format.read(path))
    if graph.ends:
        raise SourceError(
            path,
            "its input or output has integers with a scale, which an audit feeds and reads, and no other "
            "command",
            next_step="Convert it without inference_input_type and inference_output_type",
        )
    taken, given = graph.inputs[0], graph.outputs[0]
    fits = len(taken.shape) == 4 and 3 in (taken.shape[1], taken.shape[3])
    if not fits or taken.dtype not in ("float32", "uint8"):
        raise SourceError(
            path,
            f"it takes no images of three channels: its input is {taken.dtype} {list(taken.shape)}",
            next_step="Export it with `facenet-port export`",
        )
    height, width = taken.shape[2:] if taken.shape[1] == 3 else taken.shape[1:3]
    if not {height, width} <= {None, IMAGE_SIZE}:
        stated = f"it takes images of {height or 'any'}x{width or 'any'}, not {IMAGE_SIZE}x{IMAGE_SIZE}"
        raise SourceError(
            path,
            f"{stated}, the size of crops",
            next_step="Export it for that size, as `facenet-port export` does",
        )
    if given.shape and len(given.shape) != 2:
        raise _refuse_network(path, f"it gives no row of numbers for each image, but {_list(given.shape)}")
    images = np.zeros([extent or size for extent, size in zip(taken.shape, _SIZES, strict=True)], taken.dtype)
    with RuntimeProcess(graph) as process:
        (output,) = process.run(images, [given.name], as_written=False)
    if output.ndim != 2 or len(output) != len(images):
        raise _refuse_network(path, f"it gives no row of numbers for each image, but {_list(output.shape)}")
    return graph, output.shape[1]


def _list(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if extent is None else str(extent) for extent in shape) + "]"


def _refuse_network(path: Path, problem: str) -> SourceError:
    step = f"`facenet-port audit {quoted(path)} --against CHECKPOINT` compares it with its checkpoint"
    return SourceError(path, f"{problem}, so it is no network of embeddings", next_step=step)
