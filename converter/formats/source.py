"""TensorSource, the interface of every reader: named tensors, described at once and read on demand."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

Naming = Literal["tensorflow", "keras", "pytorch"]

DOWNLOAD_AGAIN = "Download or copy it again"
"""The advice on a damaged file."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The dtype and shape of a tensor.

    Attributes:
        dtype: NumPy dtype; `object` for a string tensor (its elements are `bytes`), `ml_dtypes.bfloat16`
            for bfloat16.
        shape: Row-major extents; `()` for a scalar.
    """

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements, one for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes; for a string tensor, of the pointers to its strings."""
        return self.size * self.dtype.itemsize


class TensorSource(Mapping[str, NDArray[Any]]):
    """An open file of tensors: a mapping from name to array.

    `source[name]` reads one tensor, checks it against everything that the format says about it, and returns
    it; nothing else is read. `source.info` describes all tensors without reading any. A source is a context
    manager; an array that it returned stays valid only until the source is closed.

    Attributes:
        path: The file, or the checkpoint prefix.
        format: The format in words, for messages and manifests.
        naming: The kind of names: TensorFlow variables, Keras weights or PyTorch state_dict keys.
        files: Every file that tensors are read from.
        info: Name to dtype and shape, in the file's own order.
        key: The entry of a training file that holds the tensors, such as `state_dict`; empty if the whole
            file does.
        beside: The other entries of such a file, which are not read.
        notes: Clauses on what the file leaves open and the reader takes for granted.
    """

    path: Path
    format: str
    naming: Naming
    files: tuple[Path, ...]
    info: Mapping[str, TensorInfo]
    key: str = ""
    beside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @abstractmethod
    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read and check one tensor.

        Raises:
            KeyError: There is no tensor of this name.
            SourceError: The tensor is corrupt.
        """

    def __iter__(self) -> Iterator[str]:
        return iter(self.info)

    def __len__(self) -> int:
        return len(self.info)

    @abstractmethod
    def close(self) -> None:
        """Release the file. Arrays that were read may become invalid."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
