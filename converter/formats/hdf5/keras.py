"""Keras HDF5 files: the weights of a full model (`model.save`) or of `save_weights`, and nothing but weights.

The model's configuration, which may hold marshalled Python code in its Lambda layers, is never looked at.
What libhdf5 has to do is done in another process (see `hdf5_worker`), which says what is in the file and
where; weights that lie there as they are in memory, as Keras writes them, are then read without it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import SourceError
from converter.formats.hdf5.process import Hdf5Process
from converter.formats.limits import check_claims, open_regular
from converter.formats.source import Naming, TensorInfo, TensorSource


class KerasHdf5(TensorSource):
    """The weights of a Keras HDF5 file under their Keras names (`Conv2d_1a_3x3/kernel:0`).

    Args:
        path: The file.

    Raises:
        SourceError: Not HDF5, damaged, no Keras weights inside, a weight that the index names and the file
            does not hold, a name that stands twice, data kept outside the file or not stored at all, an
            element type that is not a standard integer or float, a filter other than gzip, shuffle and
            fletcher32, or more data than a file of its size can hold.
        RequirementError: The process that reads HDF5 cannot be started.
    """

    format = "Keras HDF5"
    naming: Naming = "keras"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise SourceError(path, f"the file cannot be read ({error.strerror})") from error
        try:
            self._process = Hdf5Process(path)
        except BaseException:
            self._file.close()
            raise
        try:
            size = os.fstat(self._file.fileno()).st_size
            self.info, self._offsets = self._describe(self._process.weights, size)
        except BaseException:
            self.close()
            raise
        self._numbers = {name: number for number, name in enumerate(self.info)}

    def _describe(self, weights: Any, size: int) -> tuple[dict[str, TensorInfo], dict[str, int]]:
        """Check what the other process says, which a damaged file may have made say anything."""
        info: dict[str, TensorInfo] = {}
        offsets: dict[str, int] = {}
        try:
            for name, dtype, shape, offset in weights:
                described = TensorInfo(np.dtype(dtype), tuple(shape))
                if described.dtype.kind not in "fiu" or not isinstance(name, str) or name in info:
                    raise ValueError(name)
                if not all(type(number) is int for number in (*shape, offset or 0)):
                    raise ValueError(name)
                info[name] = described
                if offset is not None:
                    offsets[name] = offset
        except (TypeError, ValueError) as error:
            raise SourceError(
                self.path,
                "damaged HDF5 (libhdf5 answers nonsense)",
                next_step="Download or copy it again",
            ) from error
        check_claims(self.path, info, size)
        for name, offset in offsets.items():
            if not 0 <= offset <= size - info[name].nbytes:
                raise self._cut_off(name)
        return info, offsets

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read one weight into memory.

        Raises:
            KeyError: There is no weight of this name.
            SourceError: HDF5 cannot read it, or the file has become shorter.
            ValueError: The source is closed.
        """
        info = self.info[name]
        array = np.empty(info.shape, info.dtype)
        if name not in self._offsets:
            self._process.read(self._numbers[name], name, array)
            return array
        self._file.seek(self._offsets[name])
        try:
            count = self._file.readinto(array.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise SourceError(self.path, f"cannot be read ({error.strerror})", tensor=name) from error
        if count != array.nbytes:
            raise self._cut_off(name)
        return array

    def _cut_off(self, name: str) -> SourceError:
        return SourceError(
            self.path, "its data lies behind the end of the file", tensor=name,
            next_step="Download or copy the file again",
        )  # fmt: skip

    def close(self) -> None:
        """Close the HDF5 file; arrays that were read stay valid."""
        self._process.close()
        self._file.close()
