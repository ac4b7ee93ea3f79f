"""Stored activations: TensorFlow's side of a comparison in one HDF5 file, for machines without TensorFlow.

float64 activations are stored whole: the mapping judgement measures 1e-13, and float32 resolves 6e-8 only.
float32 activations are stored as steps from the rounded float64 ones, which are small numbers. Everything
is compressed without loss. For the built-in checkpoint, every layer takes 357.3 MB (654.8 MB as plain
arrays), and the stages alone take 188.3 MB. The stages are enough for the four judgements and, with the
checkpoint, for the cause.

The file depends on the checkpoint, not on the port. Keep it outside the repository, as an asset of a
release or in the cache of the CI, together with the SHA-256 that `--save-activations` prints.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from checks.core.inputs import InputBatch
from checks.core.network import LOGITS
from checks.core.rounding import LayerRounding
from checks.core.tensorflow_side import Activations
from checks.core.types import Array
from converter.atomic import AtomicFiles
from converter.errors import SourceError

_FORMAT = "facenet-port activations 3"
_STORE_AGAIN = "Store the activations again with --save-activations"


@contextmanager
def activation_writer(path: Path, provenance: Mapping[str, Any]) -> Iterator[Callable[[Activations], None]]:
    """Open a new file of activations, which appears when it is complete.

    Args:
        path: The file.
        provenance: The source and the names of the activations, as JSON values.

    Yields:
        A function that stores one input with TensorFlow's activations. If they are not finite, it stores
        nothing, and the file does not appear.

    Raises:
        UsageError: The file exists, or its folder does not.
    """
    is_sound = True
    with AtomicFiles(path.parent, overwrite=False) as files:
        with h5py.File(files.stage(path.name), "w") as file:

            def store(activations: Activations) -> None:
                nonlocal is_sound
                if activations.broken is None:
                    _add(file, activations)
                else:
                    is_sound = False

            file.attrs["format"] = _FORMAT
            file.attrs["provenance"] = json.dumps(provenance)
            yield store
            file.attrs["inputs"] = json.dumps([str(file[name].attrs["name"]) for name in file])
        if is_sound:
            files.commit()


def _add(file: h5py.File, activations: Activations) -> None:
    """Store one input with TensorFlow's activations."""
    batch = activations.batch
    group = file.create_group(f"{len(file):03d}")
    group.attrs["name"] = batch.name
    group.attrs["own_graph"] = activations.own_graph
    group.attrs["rebuilt"] = json.dumps(activations.rebuilt)
    group.attrs["own_rounding"] = json.dumps([astuple(layer) for layer in activations.own_rounding])
    _store(group, "images", batch.images)
    for index, (name, exact) in enumerate(activations.float64.items()):
        steps = _steps(exact, activations.float32[name])
        for precision, array in (("float64", exact), ("float32", steps)):
            dataset = _store(group, f"{precision}/{index:03d}", array)
            dataset.attrs["activation"] = name


def _store(group: h5py.Group, name: str, array: Array) -> h5py.Dataset:
    # A chunk holds the activations of one image, with zlib's Adler-32 checksum that HDF5 verifies.
    chunk = (1, *array.shape[1:])
    dataset = group.create_dataset(
        name, array.shape, array.dtype, chunks=chunk, shuffle=True, compression="gzip", compression_opts=1
    )
    for number, image in enumerate(array):
        dataset.id.write_direct_chunk((number, *[0] * (array.ndim - 1)), _compress(image))
    return dataset


def _compress(image: Array) -> bytes:
    """Compress a chunk as HDF5's filters do, but look for runs alone: of floats, little else repeats.

    It takes three fifths of the time that HDF5 itself takes, and as many bytes.
    """
    shuffled = np.ascontiguousarray(image).reshape(-1, 1).view(np.uint8).T.tobytes()
    compressor = zlib.compressobj(1, strategy=zlib.Z_RLE)
    return compressor.compress(shuffled) + compressor.flush()


def _steps(exact: Array, single: Array) -> Array:
    """The steps from the rounded `exact` to `single`, coded as 0, -1, 1, -2, ... -> 0, 1, 2, 3, ..."""
    difference = single.view(np.int32) - exact.astype(np.float32).view(np.int32)  # wraps around
    return (difference << 1) ^ (difference >> 31)


def _add_steps(exact: Array, steps: Array) -> Array:
    """The inverse of `_steps`: the float32 array, bit for bit."""
    difference = (steps.view(np.uint32) >> np.uint32(1)).view(np.int32) ^ -(steps & 1)
    return (exact.astype(np.float32).view(np.int32) + difference).view(np.float32)


class ActivationFile:
    """Stored activations, read input by input. A context manager.

    Args:
        path: The file.

    Attributes:
        provenance: The source and the names of the activations.
        inputs: The names of the inputs.

    Raises:
        SourceError: The file does not hold stored activations, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            problem = "cannot be read as HDF5" if path.is_file() else "no such file"
            raise SourceError(path, problem, next_step=_STORE_AGAIN) from error
        if self._file.attrs.get("format") != _FORMAT:
            self._file.close()
            raise SourceError(path, "not a file of stored activations", next_step=_STORE_AGAIN)
        try:
            self.provenance: Mapping[str, Any] = json.loads(self._file.attrs["provenance"])
            self.inputs: tuple[str, ...] = tuple(json.loads(self._file.attrs["inputs"]))
            present = tuple(str(self._file[name].attrs["name"]) for name in sorted(self._file))
        except (KeyError, ValueError) as error:
            self._file.close()
            raise SourceError(path, "its provenance is damaged", next_step=_STORE_AGAIN) from error
        if present != self.inputs:
            self._file.close()
            raise SourceError(path, f"inputs are missing: {present} of {self.inputs}", next_step=_STORE_AGAIN)

    def __iter__(self) -> Iterator[Activations]:
        """Read one input after another.

        Raises:
            SourceError: A checksum is wrong, or an array is missing.
        """
        for name in sorted(self._file):
            group = self._file[name]
            try:
                batch = InputBatch(str(group.attrs["name"]), group["images"][()])
                exact, steps = _read(group["float64"]), _read(group["float32"])
                activations = Activations(
                    batch,
                    exact,
                    {name: _add_steps(exact[name], array) for name, array in steps.items()},
                    bool(group.attrs["own_graph"]),
                    json.loads(group.attrs["rebuilt"]),
                    tuple(
                        LayerRounding(str(name), float(error), float(bound))
                        for name, error, bound in json.loads(group.attrs["own_rounding"])
                    ),
                )
                self._check_activations(activations)
            except (OSError, KeyError, TypeError, ValueError) as error:
                raise SourceError(
                    self._path, f"input {name} is damaged ({error})", next_step=_STORE_AGAIN
                ) from error
            yield activations

    def _check_activations(self, read: Activations) -> None:
        names = list(self.provenance["activations"])
        if list(read.float64) != names or list(read.float32) != names:
            raise ValueError("activations are missing")
        # A frozen graph has no Logits of its own.
        compared = [names, [name for name in names if name != LOGITS]] if read.own_graph else [[]]
        if list(read.rebuilt) not in compared or bool(read.own_rounding) is not read.own_graph:
            raise ValueError("the comparison of the two TensorFlow graphs is missing")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def _read(group: h5py.Group) -> dict[str, Array]:
    return {str(group[name].attrs["activation"]): np.asarray(group[name][()]) for name in sorted(group)}
