"""safetensors files of a state_dict."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from converter.errors import SourceError
from converter.formats.limits import MAX_TENSORS, check_claims, open_regular
from converter.formats.source import DOWNLOAD_AGAIN, Naming, TensorInfo, TensorSource
from converter.free_names import save_line

# https://github.com/huggingface/safetensors, README, "Format"; sub-byte and 8-bit floats are left out.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}

_METADATA = "__metadata__"  # the one entry of a header that is not a tensor
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 4 << 20  # 716 tensors take 0.1 MB; the library allows 100 MB


class SafetensorsFile(TensorSource):
    """A .safetensors file whose names are state_dict keys.

    The library maps the file: it must not be shortened while it is open.

    Args:
        path: The file.

    Raises:
        SourceError: The library refuses the file, its header is larger than that of any state_dict or has a
            name twice, or NumPy does not have a dtype.
    """

    format = "safetensors"
    naming: Naming = "pytorch"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        try:
            with open_regular(path) as file:
                self._size = os.fstat(file.fileno()).st_size
                self._check_header(file)
        except OSError as error:
            raise SourceError(path, f"the file cannot be read ({error.strerror})") from error
        with self._refusals():
            self._file: Any = safe_open(path, framework="np")
            self._file.__enter__()
            views = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
            described = {name: (view.get_dtype(), tuple(view.get_shape())) for name, view in views.items()}
        info: dict[str, TensorInfo] = {}
        for name, (dtype, shape) in described.items():
            if dtype not in _DTYPES:
                raise self._other_dtype(name, dtype)
            info[name] = TensorInfo(np.dtype(_DTYPES[dtype]), shape)
        check_claims(path, info, self._size)
        self.info = info

    def _check_header(self, file: io.BufferedReader) -> None:
        """Check what the library does not, or says in words of its own: sizes, and that no name is twice."""
        size = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        start = _LENGTH_BYTES + size
        if size > _MAX_HEADER_BYTES:
            raise self._refused(f"damaged: its header claims {size} bytes, more than any header has")
        if start > self._size:
            raise self._refused(f"cut off: its header ends at byte {start}, the file at {self._size}")
        try:
            header = json.loads(file.read(size), object_pairs_hook=_without_duplicates)
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != _METADATA]
            end = start + max(ends, default=0)
        except _NameTwiceError:
            raise self._refused("damaged: its header has a name twice") from None
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise self._refused("damaged: its header cannot be read") from error
        if len(ends) > MAX_TENSORS:
            raise self._refused(f"too large: it holds more than {MAX_TENSORS} tensors")
        if end > self._size:
            raise self._refused(f"cut off: its tensors end at byte {end}, the file at {self._size}")

    def _other_dtype(self, name: str, dtype: str) -> SourceError:
        """Explain that a dtype is not read, and what to do about it."""
        next_step = "Give the state_dict from before it was quantised"
        if dtype.startswith("F"):
            values = f"{{k: v.float() for k, v in safetensors.torch.load_file({str(self.path)!r}).items()}}"
            next_step = f"Save its tensors as float32: {save_line(values)}"
        return SourceError(
            self.path, f"its dtype {dtype} is not converted", tensor=name[:200], next_step=next_step
        )

    def _refused(self, problem: str, tensor: str | None = None) -> SourceError:
        problem = f"this safetensors file is {problem}"
        return SourceError(self.path, problem, tensor=tensor, next_step=DOWNLOAD_AGAIN)

    @contextmanager
    def _refusals(self, tensor: str | None = None) -> Iterator[None]:
        """Turn the library's exceptions into a SourceError, also a panic of its Rust code."""
        try:
            yield
        except BaseException as error:
            # A panic derives from BaseException.
            panic = type(error).__name__ == "PanicException"
            if not panic and not isinstance(error, SafetensorError | OSError | ValueError | TypeError):
                raise
            raise self._refused("damaged: its header does not describe its data", tensor) from error

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read one tensor into memory.

        Raises:
            KeyError: There is no tensor of this name.
            SourceError: The file has been shortened.
            ValueError: The source is closed.
        """
        if name not in self.info:
            raise KeyError(name)
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        # If the map reaches beyond the end of the file, reading it ends the process.
        if self.path.stat().st_size < self._size:
            raise self._refused("damaged: it was cut off after it was opened", name)
        with self._refusals(name):
            return np.asarray(self._file.get_tensor(name))

    def close(self) -> None:
        """Close the file; arrays that were read stay valid."""
        if self._file is not None:
            self._file.__exit__(None, None, None)
            self._file = None


class _NameTwiceError(Exception):
    """A name is twice in a JSON object."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise _NameTwiceError
    return content


def write_safetensors(path: Path, state_dict: Mapping[str, NDArray[Any]]) -> None:
    """Write a state_dict as safetensors. The same tensors always give the same bytes.

    Args:
        path: The file to write; an existing one is replaced.
        state_dict: Key to C-contiguous array.

    Raises:
        OSError: The file cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode  # set by the user's umask; the library gives the owner alone access
    try:
        # A single metadata entry, because the library writes several in a random order.
        save_file(dict(state_dict), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)
