"""Reading an HDF5 file with libhdf5, which loops and crashes on damaged files: the work of a child process.

`keras` runs this module as a `ChildProcess` for each file. The request "describe" opens the file and
describes its weights; each later request is the number of a weight to read. The child limits its own memory
and processor time.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from converter.child_process import AnswerError, allow_processor_time, limit_memory, serve
from converter.formats.hdf5.keras_3_variables import find_variables, is_keras_3, open_archive, settle_betas
from converter.frames import Arrays

_OPEN_SECONDS = 1.0  # of processor time; 490 weights take 0.15
_TENSOR_SECONDS = 0.01
_BYTES_PER_SECOND = 20 << 20  # slower than any gzip
_SPARE_MEMORY = 200 << 20
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32"}  # H5Zpublic.h, H5Z_FILTER_...
_NUMBERED = re.compile(r"(.*/)?(conv2d|batch_normalization|dense)(_\d+)?")
_TRUNCATED = re.compile(r"truncated file: eof = (\d+),.* stored_eof = (\d+)")  # H5Fint.c, H5F_open
_MAX_RANK = 32  # H5S_MAX_RANK


class _Child:
    """Answers the requests about one file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: _KerasFile | None = None

    def answer(self, request: Any, _: Arrays) -> tuple[Any, Arrays]:
        """Describe the weights, or read one.

        Raises:
            AnswerError: The file is refused.
        """
        try:
            if request == "describe":
                self._file = self._open()
                return [self._file.weights, self._file.notes], ()
            return None, [] if self._file is None else [self._file.read(request)]
        except MemoryError:
            raise AnswerError(
                "this HDF5 file is damaged: it needs more memory than its size justifies"
            ) from None
        except (RuntimeError, OSError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise AnswerError("this HDF5 file is damaged") from error

    def _open(self) -> _KerasFile:
        size = self._path.stat().st_size
        limit_memory(2 * size + _SPARE_MEMORY)
        allow_processor_time(_OPEN_SECONDS)
        content: Path | BinaryIO = self._path
        config: Any = None
        start: int | None = 0
        with self._path.open("rb") as opened:
            is_archive = opened.read(2) == b"PK"
        if is_archive:
            allow_processor_time(_OPEN_SECONDS + size / _BYTES_PER_SECOND)
            content, config, start = open_archive(self._path, size + _SPARE_MEMORY // 2)
        try:
            file = h5py.File(content, "r")
        except OSError as error:
            cut_off = _TRUNCATED.search(str(error))
            where = f"cut off at byte {cut_off[1]} of {cut_off[2]}" if cut_off else "damaged"
            raise AnswerError(f"this HDF5 file is {where}") from error
        return _KerasFile(file, config, start)


class _KerasFile:
    """The weights that the Keras index of an HDF5 file, or the names of its layers in Keras 3, tell.

    Attributes:
        notes: Sentences on what the file leaves open.
        weights: Name, dtype string, shape and offset in the file of each weight. The offset is None if the
            bytes in the file are not those in memory: chunked, compressed or inside a header.

    Args:
        file: The open file.
        config: The parsed config.json of a .keras archive, or None.
        start: The position of the HDF5 file in the file that the user gave; None if it is compressed there.

    Raises:
        AnswerError: The file has no Keras weights, or a weight is not a plain array inside the file.
        RuntimeError, OSError, KeyError, TypeError, ValueError, AttributeError: The file is damaged.
    """

    def __init__(self, file: h5py.File, config: Any = None, start: int | None = 0) -> None:
        self._file, self._config = file, config
        self._datasets: list[Any] = []
        self._betas: list[str] = []
        self.weights = []
        index = self._index()
        for name, dataset in index.items():
            self._check(name, dataset)
            offset = dataset.id.get_offset()
            offset = None if offset is None or start is None else start + offset
            self.weights.append([name, dataset.dtype.str, dataset.shape, offset])
            self._datasets.append(dataset)
        self.notes = settle_betas({name: index[name] for name in self._betas})

    def read(self, number: int) -> NDArray[Any]:
        """Read one weight into memory, with the processor time that its size justifies."""
        dataset = self._datasets[number]
        allow_processor_time(_TENSOR_SECONDS + dataset.nbytes / _BYTES_PER_SECOND)
        return np.asarray(dataset[()])

    def _index(self) -> dict[str, Any]:
        if is_keras_3(self._file):
            pairs, self._betas = find_variables(self._file, self._config, self._get)
        else:
            pairs = list(self._indexed())
        datasets: dict[str, Any] = {}
        for name, dataset in pairs:
            if not isinstance(dataset, h5py.Dataset):
                raise AnswerError("the file names this weight, but does not hold it", tensor=name)
            full = name if name.endswith(":0") else f"{name}:0"  # Keras 3 leaves the :0 out
            if full in datasets:
                raise AnswerError("the file names this weight twice", tensor=name)
            datasets[full] = dataset
        layers = list(dict.fromkeys(name.rpartition("/")[0] for name in datasets))
        if any("conv2d" in layer for layer in layers) and all(_NUMBERED.fullmatch(layer) for layer in layers):
            raise AnswerError(
                f"its layers have no names of their own: Keras numbered them ({', '.join(layers[:3])}, ...), "
                "and a layer is not found by its number",
                next_step="Build the network with the layer names of facenet_keras.h5, such as Conv2d_1a_3x3 "
                "and Conv2d_1a_3x3_BatchNorm, load these weights into it and save it again",
            )
        return datasets

    def _indexed(self) -> Iterator[tuple[str, Any]]:
        root = self._get(self._file, "model_weights") if "model_weights" in self._file else self._file
        indices = ("layer_names", "layer_names0")
        if not isinstance(root, h5py.Group) or not any(index in root.attrs for index in indices):
            raise AnswerError(
                "this HDF5 file has no Keras weights",
                next_step="Give a file written by model.save or save_weights",
            )
        for layer in self._names(root, "layer_names"):
            group = self._get(root, layer)
            if not isinstance(group, h5py.Group):
                raise AnswerError("the file names this layer, but does not hold it", tensor=layer)
            for name in self._names(group, "weight_names"):
                # Keras 3.0 leaves the layer out of a weight's name.
                yield name if "/" in name else f"{layer}/{name}", self._get(group, name)

    def _get(self, group: Any, name: str) -> Any:
        """Return an object by a path of hard links, or None; soft and external links may lead anywhere."""
        for part in name.split("/"):
            if not isinstance(group, h5py.Group):
                return None
            link = group.get(part, getlink=True) if part else None
            if link is None:
                return None
            if not isinstance(link, h5py.HardLink):
                raise AnswerError("it is a soft or external link, which Keras does not write", tensor=name)
            group = group[part]
        return group

    def _names(self, group: Any, attribute: str) -> list[str]:
        # Keras splits a list that exceeds HDF5's 64 KiB for a header over attribute0, attribute1, ...
        if attribute in group.attrs:
            pieces = [group.attrs[attribute]]
        else:
            pieces = []
            while f"{attribute}{len(pieces)}" in group.attrs:
                pieces.append(group.attrs[f"{attribute}{len(pieces)}"])
        names = []
        for piece in pieces:
            for name in piece:
                if not isinstance(name, bytes | str):
                    raise AnswerError(f"its {attribute} holds a {type(name).__name__} instead of a name")
                try:
                    text = name.decode() if isinstance(name, bytes) else name
                    text.encode()  # h5py passes bytes that are not UTF-8 as surrogates
                except UnicodeError:
                    raise AnswerError(f"a name in its {attribute} is not UTF-8") from None
                names.append(text)
        return names

    def _check(self, name: str, dataset: Any) -> None:
        """Check that a dataset is a plain array, all of it in this file."""
        if dataset.external or dataset.is_virtual:
            raise AnswerError("its data is in another file", tensor=name)
        if dataset.dtype.kind not in "fiu":
            raise AnswerError(f"its dtype is {dataset.dtype}, not a number", tensor=name)
        if dataset.shape is None or len(dataset.shape) > _MAX_RANK:
            raise AnswerError(f"its shape is not that of an array ({dataset.shape})", tensor=name)
        # HDF5 silently converts a float of the right size with another exponent bias.
        if not dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype)):
            raise AnswerError("its element type is not a standard integer or float", tensor=name)
        properties = dataset.id.get_create_plist()
        filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
        unknown = [number for number in filters if number not in _FILTERS]
        if unknown:
            known = ", ".join(_FILTERS.values())
            raise AnswerError(
                f"it uses HDF5 filter number {unknown[0]}; only {known} are supported", tensor=name
            )
        if not _is_stored_whole(dataset, has_filters=bool(filters)):
            raise AnswerError("not all of its data is stored in the file", tensor=name)


def _is_stored_whole(dataset: h5py.Dataset, *, has_filters: bool) -> bool:
    """Return whether a dataset has all of its chunks, and all of its bytes if they are not compressed.

    HDF5 reads zeros for data that was never stored, so that a small file could claim any size.
    """
    if dataset.chunks is not None:
        chunks = math.prod(
            -(-extent // chunk) for extent, chunk in zip(dataset.shape, dataset.chunks, strict=True)
        )
        if dataset.id.get_num_chunks() != chunks:
            return False
    if has_filters:
        return True
    stored = dataset.id.get_storage_size()
    # The chunks at the edges of a dataset are stored whole.
    return bool(stored == dataset.nbytes if dataset.chunks is None else stored >= dataset.nbytes)


if __name__ == "__main__":
    serve(_Child(Path(sys.argv[1])).answer)
