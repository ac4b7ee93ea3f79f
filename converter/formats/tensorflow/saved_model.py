"""SavedModels: a folder with the graph (`saved_model.pb`) and the weights (`variables/`, a checkpoint).

If the graph was frozen before it was saved, its weights are constants in `saved_model.pb`, in the graph of
TensorFlow 1 or in the functions of TensorFlow 2.

Sources: TensorFlow's core/protobuf/saved_model.proto and meta_graph.proto, cc/saved_model/constants.h.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from converter.formats.source import TensorSource
from converter.formats.tensorflow.bundle import TensorBundle
from converter.formats.tensorflow.find_proto_fields import BYTES, Field, ProtoError, ProtoScanner
from converter.formats.tensorflow.frozen_graph import FrozenGraph

_FILE = "saved_model.pb"  # kSavedModelFilenamePb

_SERVE = b"serve"  # kSavedModelTagServe
# Numbers of fields.
_META_GRAPH = 2
_META_INFO, _GRAPH = 1, 2
_TAG = 4


class SavedModel(TensorSource):
    """The weights of a SavedModel, under their variables' names.

    Args:
        path: The `saved_model.pb`, under any name.

    Attributes:
        graph: That file.
        variables: The prefix of the checkpoint with the weights; None if they are constants.

    Raises:
        SourceError: A file is missing, corrupt or without weights.
    """

    def __init__(self, path: Path) -> None:
        self.graph = path
        folder = path.parent if path.parent.name else path.parent.resolve()
        self.path = folder if path.name == _FILE else path
        bundle = _open_variables(path)
        self.variables = None if bundle is None else bundle.path
        self._weights = FrozenGraph(path, find_graph) if bundle is None else bundle
        self.format = "TensorFlow SavedModel" + (" of a frozen graph" if bundle is None else "")
        self.naming = self._weights.naming
        self.files = tuple(dict.fromkeys((*self._weights.files, path)))
        self.info = self._weights.info
        self.notes = self._weights.notes

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read and check one tensor, as `TensorBundle` or `FrozenGraph` does."""
        return self._weights[name]

    def close(self) -> None:
        """Release the file that holds the weights."""
        self._weights.close()


def _open_variables(path: Path) -> TensorBundle | None:
    """Open `variables/variables` beside a saved_model.pb; None if there is nothing in it."""
    prefix = path.with_name("variables") / "variables"
    if not prefix.with_name("variables.index").is_file():
        return None
    bundle = TensorBundle(prefix)
    if bundle.info:
        return bundle
    bundle.close()
    return None


def find_graph(scanner: ProtoScanner) -> tuple[int, int]:
    """Find the GraphDef in a SavedModel: the one for serving if there are several.

    Returns:
        Its start and stop.

    Raises:
        ProtoError: The bytes are not a SavedModel, or it has no graph.
    """
    graphs: list[tuple[bool, Field]] = []
    for meta_graph in _parts(scanner, 0, len(scanner.data)):
        if meta_graph.number != _META_GRAPH:
            continue
        serves = False
        for part in _parts(scanner, meta_graph.start, meta_graph.stop):
            if part.number == _META_INFO:
                info = _parts(scanner, part.start, part.stop)
                serves = any(f.number == _TAG and scanner.data[f.start : f.stop] == _SERVE for f in info)
            elif part.number == _GRAPH:
                graphs.append((serves, part))
    if not graphs:
        raise ProtoError("a SavedModel without a graph")
    _, graph = next((entry for entry in graphs if entry[0]), graphs[0])
    return graph.start, graph.stop


def _parts(scanner: ProtoScanner, start: int, stop: int) -> list[Field]:
    """List the fields of a message that have a length."""
    return [field for field in scanner.fields(start, stop) if field.wire_type == BYTES]
