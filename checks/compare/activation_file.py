"""Stored activations: TensorFlow's side of a comparison in one HDF5 file, for machines without TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from checks.core.activations import LOGITS
from checks.core.inputs import InputBatch
from checks.core.tensorflow_side import Activations
from converter.atomic import AtomicFiles
from converter.errors import SourceError

_FORMAT = "facenet-port activations 1"
_DAMAGED = "Store the activations again with --save-activations"


class ActivationWriter:
    """Writes activations input by input; the file appears when it is complete. A context manager.

    Args:
        path: The file.
        provenance: What the activations were made of, their activations in order among it; has to be JSON.

    Raises:
        UsageError: The file exists, or its folder does not.
    """

    def __init__(self, path: Path, provenance: Mapping[str, Any]) -> None:
        self._files = AtomicFiles(path.parent, overwrite=False)
        try:
            self._file = h5py.File(self._files.stage(path.name), "w")
        except BaseException:
            self._files.__exit__()
            raise
        self._file.attrs["format"] = _FORMAT
        self._file.attrs["provenance"] = json.dumps(provenance)

    def add(self, activations: Activations) -> None:
        """Store one input with what TensorFlow gave on it."""
        batch = activations.batch
        group = self._file.create_group(f"{len(self._file):03d}")
        group.attrs["name"] = batch.name
        group.attrs["own_graph"] = activations.own_graph
        group.attrs["rebuilt"] = json.dumps(activations.rebuilt)
        group.attrs["rebuilt_error"] = json.dumps(activations.rebuilt_error)
        _store(group, "images", batch.images)
        for precision, arrays in (("float64", activations.float64), ("float32", activations.float32)):
            for index, (activation, array) in enumerate(arrays.items()):
                dataset = _store(group, f"{precision}/{index:03d}", array)
                dataset.attrs["activation"] = activation

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self._file.attrs["inputs"] = json.dumps(
                [str(self._file[name].attrs["name"]) for name in self._file]
            )
            self._file.close()
            if kind is None:
                self._files.commit()
        finally:
            self._files.__exit__()


def _store(group: h5py.Group, name: str, array: NDArray[Any]) -> h5py.Dataset:
    # HDF5 checks Fletcher-32 sums of chunks, so a chunk it is: one image's activations.
    chunk = (1, *array.shape[1:])
    return group.create_dataset(name, data=array, chunks=chunk, fletcher32=True)


class ActivationFile:
    """Stored activations, read input by input. A context manager.

    Args:
        path: The file.

    Attributes:
        provenance: What the activations were made of.
        inputs: The names of the inputs.

    Raises:
        SourceError: Not a file of stored activations, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            problem = "cannot be read as HDF5" if path.is_file() else "no such file"
            raise SourceError(path, problem, next_step=_DAMAGED) from error
        if self._file.attrs.get("format") != _FORMAT:
            self._file.close()
            raise SourceError(path, "not a file of stored activations", next_step=_DAMAGED)
        try:
            self.provenance: Mapping[str, Any] = json.loads(self._file.attrs["provenance"])
            self.inputs: tuple[str, ...] = tuple(json.loads(self._file.attrs["inputs"]))
            there = tuple(str(self._file[name].attrs["name"]) for name in sorted(self._file))
        except (KeyError, ValueError) as error:
            self._file.close()
            raise SourceError(path, "its provenance is damaged", next_step=_DAMAGED) from error
        if there != self.inputs:
            self._file.close()
            raise SourceError(path, f"inputs are missing: {there} of {self.inputs}", next_step=_DAMAGED)

    def __iter__(self) -> Iterator[Activations]:
        """Read one input after another.

        Raises:
            SourceError: A checksum does not fit, or something is missing.
        """
        for name in sorted(self._file):
            group = self._file[name]
            try:
                batch = InputBatch(str(group.attrs["name"]), group["images"][()])
                found = Activations(
                    batch,
                    _read(group["float64"]),
                    _read(group["float32"]),
                    bool(group.attrs["own_graph"]),
                    json.loads(group.attrs["rebuilt"]),
                    json.loads(group.attrs["rebuilt_error"]),
                )
                self._check_activations(found)
            except (OSError, KeyError, ValueError) as error:
                raise SourceError(
                    self._path, f"input {name} is damaged ({error})", next_step=_DAMAGED
                ) from error
            yield found

    def _check_activations(self, found: Activations) -> None:
        activations = list(self.provenance["activations"])
        if list(found.float64) != activations or list(found.float32) != activations:
            raise ValueError("activations are missing")
        # A frozen graph has no Logits of its own.
        compared = (
            [activations, [activation for activation in activations if activation != LOGITS]]
            if found.own_graph
            else [[]]
        )
        if list(found.rebuilt) not in compared or list(found.rebuilt_error) not in compared:
            raise ValueError("the comparison of the two TensorFlow graphs is missing")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _read(group: h5py.Group) -> dict[str, NDArray[Any]]:
    return {str(group[name].attrs["activation"]): np.asarray(group[name][()]) for name in sorted(group)}
