"""safetensors files of a state_dict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from converter.errors import SourceError
from converter.tensor_source import Naming, TensorInfo, TensorSource

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


class SafetensorsFile(TensorSource):
    """A .safetensors file whose names are state_dict keys.

    Args:
        path: The file.

    Raises:
        SourceError: The library refuses the file, or a dtype is none of NumPy's.
    """

    format = "safetensors"
    naming: Naming = "pytorch"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        try:
            self._file: Any = safe_open(path, framework="np")
            self._file.__enter__()
        except (SafetensorError, OSError) as error:
            raise SourceError(
                path, f"not a readable safetensors file ({error})", next_step="Download or copy it again"
            ) from error
        self.info = {}
        for name in self._file.keys():  # noqa: SIM118 - not a mapping
            view = self._file.get_slice(name)
            if view.get_dtype() not in _DTYPES:
                raise SourceError(path, f"dtype {view.get_dtype()} is not supported", tensor=name)
            self.info[name] = TensorInfo(np.dtype(_DTYPES[view.get_dtype()]), tuple(view.get_shape()))

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read one tensor into memory.

        Raises:
            KeyError: There is no tensor of this name.
        """
        if name not in self.info:
            raise KeyError(name)
        return np.asarray(self._file.get_tensor(name))

    def close(self) -> None:
        """Close the file; arrays that were read stay valid."""
        self._file.__exit__(None, None, None)


def write_safetensors(path: Path, state_dict: Mapping[str, NDArray[Any]]) -> None:
    """Write a state_dict as safetensors; the same tensors give the same bytes.

    Args:
        path: Where to write; an existing file is replaced.
        state_dict: Key to C-contiguous array.

    Raises:
        OSError: The file cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode  # as the user's umask has it; the library makes files for their owner alone
    try:
        # A single metadata entry: the library writes several in an order that changes from run to run.
        save_file(dict(state_dict), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)
