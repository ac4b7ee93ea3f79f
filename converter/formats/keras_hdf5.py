"""Keras HDF5 files: the weights of a full model (`model.save`) or of `save_weights`, and nothing but weights.

The model's configuration, which may hold marshalled Python code in its Lambda layers, is never looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from converter.errors import SourceError
from converter.tensor_source import Naming, TensorInfo, TensorSource


class KerasHdf5(TensorSource):
    """The weights of a Keras HDF5 file under their Keras names (`Conv2d_1a_3x3/kernel:0`).

    Args:
        path: The file.

    Raises:
        SourceError: Not HDF5, no Keras weights inside, a weight that the index names and the file does not
            hold, a name that stands twice, data kept outside the file, or a non-numeric dtype.
    """

    format = "Keras HDF5"
    naming: Naming = "keras"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise SourceError(
                path, f"cannot be read as HDF5 ({error})", next_step="Download or copy it again"
            ) from error
        try:
            self._datasets = self._index()
        except SourceError:
            self._file.close()
            raise
        except (RuntimeError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            self._file.close()
            raise SourceError(
                path, f"damaged HDF5 ({error})", next_step="Download or copy it again"
            ) from error
        self.info = {
            name: TensorInfo(dataset.dtype, dataset.shape) for name, dataset in self._datasets.items()
        }

    def _index(self) -> dict[str, h5py.Dataset]:
        root = self._file.get("model_weights", self._file)
        indices = ("layer_names", "layer_names0")
        if not isinstance(root, h5py.Group) or not any(index in root.attrs for index in indices):
            raise SourceError(
                self.path,
                "no Keras weights inside",
                next_step="Give a file written by model.save or save_weights",
            )
        datasets: dict[str, h5py.Dataset] = {}
        for layer in _names(root, "layer_names"):
            for name in _names(root[layer], "weight_names"):
                dataset = root[layer].get(name)
                if not isinstance(dataset, h5py.Dataset):
                    raise SourceError(self.path, "named in the file, but not there", tensor=name)
                if name in datasets:
                    raise SourceError(self.path, "there twice", tensor=name)
                if dataset.external or dataset.is_virtual:
                    raise SourceError(self.path, "its data is kept in another file", tensor=name)
                if dataset.dtype.kind not in "fiu":
                    raise SourceError(self.path, f"not numeric ({dataset.dtype})", tensor=name)
                datasets[name] = dataset
        return datasets

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read one weight into memory.

        Raises:
            KeyError: There is no weight of this name.
            SourceError: HDF5 cannot read it.
        """
        dataset = self._datasets[name]
        try:
            return np.asarray(dataset[()])
        except (OSError, RuntimeError) as error:
            raise SourceError(
                self.path,
                f"cannot be read ({error})",
                tensor=name,
                next_step="Download or copy the file again",
            ) from error

    def close(self) -> None:
        """Close the HDF5 file; arrays that were read stay valid."""
        self._file.close()


def _names(group: h5py.Group, attribute: str) -> list[str]:
    # Keras splits a list over attribute0, attribute1, ... where it exceeds HDF5's 64 KiB for a header.
    if attribute in group.attrs:
        pieces = [group.attrs[attribute]]
    else:
        pieces = []
        while f"{attribute}{len(pieces)}" in group.attrs:
            pieces.append(group.attrs[f"{attribute}{len(pieces)}"])
    return [name.decode() if isinstance(name, bytes) else str(name) for piece in pieces for name in piece]
