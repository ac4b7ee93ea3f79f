"""Keras files: the weights of a full model (`model.save`) or of `save_weights`, and nothing else.

Keras 2 and 3 write `.h5`, Keras 3 also `.weights.h5` and `.keras`, an archive. Of the model's configuration,
which may hold marshalled Python code in its Lambda layers, only the names of layers are read. libhdf5
runs in a child process (see `read_in_child_process`), which describes the weights. A weight whose bytes are
the same in the file and in memory, as Keras writes them, is then read without libhdf5.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.child_process import AnswerError, ChildError, ChildProcess, NoAnswerError
from converter.errors import RequirementError, SourceError
from converter.formats.limits import check_claims, open_regular
from converter.formats.source import DOWNLOAD_AGAIN, Naming, TensorInfo, TensorSource

_CHILD = "converter.formats.hdf5.read_in_child_process"
_DESCRIBE = "describe"
_LONGEST_NOTE = 400  # characters
_SECONDS = 60.0  # for one answer: a slow disk may take its time, but not this much


class KerasHdf5(TensorSource):
    """The weights of a Keras file under the names of Keras 2 (`Conv2d_1a_3x3/kernel:0`), whatever wrote it.

    In Keras 3 the names of the models around a layer come first (`facenet/Conv2d_1a_3x3/kernel:0`).

    Args:
        path: The file.

    Raises:
        SourceError: The file is not HDF5, is damaged, has no Keras weights, has layers without names, or
            claims more data than its size justifies; or a weight is missing, named twice, kept outside the
            file, not stored whole, not of a standard integer or float type, or stored with a filter other
            than gzip, shuffle and fletcher32.
        RequirementError: The process that reads HDF5 cannot be started, or gives no answer in time.
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
        if self._file.read(2) == b"PK":
            self.format = "Keras archive"
        try:
            self._child = ChildProcess(_CHILD, path.absolute(), seconds=_SECONDS)
        except BaseException:
            self._file.close()
            raise
        try:
            with self._errors():
                answer, _ = self._child.ask(_DESCRIBE)
            size = os.fstat(self._file.fileno()).st_size
            self.info, self._offsets, self.notes = self._describe(answer, size)
        except BaseException:
            self.close()
            raise
        self._numbers = {name: number for number, name in enumerate(self.info)}

    def _describe(
        self, answer: Any, size: int
    ) -> tuple[dict[str, TensorInfo], dict[str, int], tuple[str, ...]]:
        """Check the child's answer: a damaged file may have broken the child."""
        info: dict[str, TensorInfo] = {}
        offsets: dict[str, int] = {}
        try:
            weights, notes = answer
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
            raise self._damaged("libhdf5 answers nonsense") from error
        check_claims(self.path, info, size)
        for name, offset in offsets.items():
            if not 0 <= offset <= size - info[name].nbytes:
                raise self._cut_off(name)
        return info, offsets, tuple(str(note)[:_LONGEST_NOTE] for note in notes)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read one weight into memory.

        Raises:
            KeyError: There is no weight of this name.
            SourceError: HDF5 cannot read it, or the file has become shorter.
            RequirementError: The process that reads HDF5 gives no answer in time.
            ValueError: The source is closed.
        """
        info = self.info[name]
        if name not in self._offsets:
            return self._ask_for(name)
        array = np.empty(info.shape, info.dtype)
        self._file.seek(self._offsets[name])
        try:
            count = self._file.readinto(array.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise SourceError(
                self.path, f"the file cannot be read ({error.strerror})", tensor=name
            ) from error
        if count != array.nbytes:
            raise self._cut_off(name)
        return array

    def _ask_for(self, name: str) -> NDArray[Any]:
        """Have the child read a weight."""
        if self._file.closed:
            raise ValueError(f"{self.path} is closed")
        info = self.info[name]
        with self._errors(name):
            _, arrays = self._child.ask(self._numbers[name], most_bytes=info.nbytes)
        if [(array.dtype, array.shape) for array in arrays] != [(info.dtype, info.shape)]:
            raise self._damaged("libhdf5 reads another dtype or shape than it described", name)
        return arrays[0]

    @contextmanager
    def _errors(self, tensor: str | None = None) -> Iterator[None]:
        """Turn the errors of the child into a SourceError, and its silence into a RequirementError."""
        try:
            yield
        except AnswerError as error:
            tensor = error.details.get("tensor") or tensor
            raise SourceError(
                self.path,
                str(error),
                tensor=None if tensor is None else str(tensor)[:200],
                next_step=str(error.details.get("next_step") or DOWNLOAD_AGAIN),
            ) from error
        except NoAnswerError as error:  # unless the file is large, work without end meets its limit before
            raise RequirementError(
                f"{self.path}: libhdf5 {error}: the disk or the processor is too busy, or the file is "
                "damaged. Run it again when the machine is idle."
            ) from error
        except ChildError as error:
            raise self._damaged(f"libhdf5 {error}", tensor) from error

    def _damaged(self, problem: str, tensor: str | None = None) -> SourceError:
        return SourceError(
            self.path, f"this HDF5 file is damaged ({problem})", tensor=tensor, next_step=DOWNLOAD_AGAIN
        )

    def _cut_off(self, name: str) -> SourceError:
        problem = "its data is behind the end of the file"
        return SourceError(self.path, problem, tensor=name, next_step=DOWNLOAD_AGAIN)

    def close(self) -> None:
        """End the child process and close the file; arrays that were read stay valid."""
        self._child.close()
        self._file.close()
