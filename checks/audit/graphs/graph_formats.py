"""The graph formats that an audit reads, each with the packages that read and run it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from checks.audit.graphs import onnx_file, tensorflow_file, tflite_file
from checks.audit.graphs.graph import Graph
from converter.errors import RequirementError, SourceError
from converter.formats.neighbours import (
    HEAD_BYTES,
    is_onnx,
    is_tflite,
    recognise,
    recognise_text,
    refuse_placeholder,
)


@dataclass(frozen=True, slots=True)
class GraphFormat:
    """A format of graph files.

    Attributes:
        name: The name, with which `Graph.format` begins.
        extra: The extra of this project that installs the packages.
        packages: Module to package, for reading and running these files; the last package runs them.
        runtime: The name of the runtime.
        loads: The modules of these packages that have to load in this process.
        detect: Function that returns True if a file, given with its first bytes, has this format.
        read: Function that reads a file.
    """

    name: str
    extra: str
    packages: Mapping[str, str]
    runtime: str
    loads: tuple[str, ...]
    detect: Callable[[Path, bytes], bool]
    read: Callable[[Path], Graph]

    def require(self, what: str) -> None:
        """Refuse to start without the packages.

        Args:
            what: What needs them, the subject of the message.

        Raises:
            RequirementError: Some are not installed, or do not load.
        """
        missing = [
            package for module, package in self.packages.items() if importlib.util.find_spec(module) is None
        ]
        if missing:
            raise RequirementError(
                f"{what} needs {' and '.join(missing)}: pip install 'facenet-port[{self.extra}]'."
            )
        for module in self.loads:
            self._load(module, what)

    def require_runtime(self, what: str) -> None:
        """Refuse to run a file if the package that runs it is installed but does not load.

        Raises:
            RequirementError: It does not.
        """
        self._load(self.loads[-1], what)

    def _load(self, module: str, what: str) -> None:
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken package raises any exception, most often ImportError
            package = self.packages[module.partition(".")[0]]
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise RequirementError(
                f"{what} needs {package}, which is installed but does not load: {reason.rstrip('.')}. "
                f"Install it again: pip install --force-reinstall {package}."
            ) from error

    def versions(self) -> dict[str, str]:
        """Map packages to installed versions; the runtime comes last."""
        return {package: _version(module, package) for module, package in self.packages.items()}

    def runtime_version(self) -> str:
        """Return the name and version of the runtime."""
        return f"{self.runtime} {list(self.versions().values())[-1]}"


GRAPH_FORMATS = (
    GraphFormat(
        "ONNX",
        "onnx",
        {"onnx": "onnx", "onnxruntime": "onnxruntime"},
        "onnxruntime",
        ("onnx", "onnxruntime"),
        onnx_file.is_onnx,
        onnx_file.read_onnx,
    ),
    GraphFormat(
        "TFLite",
        "tflite",
        {"ai_edge_litert": "ai-edge-litert"},
        "LiteRT",
        ("ai_edge_litert.interpreter",),
        tflite_file.is_tflite,
        tflite_file.read_tflite,
    ),
    GraphFormat(
        "TensorFlow",
        "tensorflow",
        {"tensorflow": "tensorflow"},
        "TensorFlow",
        (),  # it is loaded in a process of its own
        tensorflow_file.is_folded_graph,
        tensorflow_file.read_folded_graph,
    ),
)


def find_graph_format(path: Path) -> GraphFormat | None:
    """Find the format of a graph file; None if the file is not a graph.

    Raises:
        SourceError: The file stands for another one, such as a pointer of Git LFS, or is of another format
            than its ending says.
        RequirementError: A package that reads or runs the file is not installed, or does not load.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    refuse_placeholder(path, head)
    for graph_format in GRAPH_FORMATS:
        if not graph_format.detect(path, head):
            continue
        if not (is_onnx(head) or is_tflite(head)) and (
            other := recognise(path, head) or recognise_text(head)
        ):
            raise SourceError(path, other[0], next_step=other[1])
        graph_format.require(f"{path}: this {graph_format.name} graph")
        return graph_format
    return None


def format_of(graph: Graph) -> GraphFormat:
    """Return the format of a graph's file."""
    return next(each for each in GRAPH_FORMATS if graph.format.startswith(each.name))


def _version(module: str, package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # another build of the package, such as onnxruntime-gpu
        return version(packages_distributions()[module][0])
