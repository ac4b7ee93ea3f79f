"""PyTorch state_dict files (.pt): read without executing any pickle, written the same way each time."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from converter.errors import SourceError
from converter.tensor_source import Naming, TensorInfo, TensorSource


class StateDictFile(TensorSource):
    """A state_dict saved by `torch.save`, in the zip format or in the one before PyTorch 1.6.

    Args:
        path: The file.
        verify: Whether to check the CRC-32 of the archive's members, which torch.load does not; not needed
            where every bit is about to be compared with something else.

    Raises:
        SourceError: The file is corrupt, holds anything but a flat mapping of names to dense tensors, or asks
            for code to be run.
    """

    format = "PyTorch state_dict"
    naming: Naming = "pytorch"

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        self.path = path
        self.files = (path,)
        self._tensors = self._load(verify)
        self.info = {
            name: TensorInfo(_numpy_dtype(tensor, path, name), tuple(tensor.shape))
            for name, tensor in self._tensors.items()
        }

    def _load(self, verify: bool) -> dict[str, torch.Tensor]:
        try:
            is_zip = zipfile.is_zipfile(self.path)
            if is_zip and verify:
                self._check_members()
            with warnings.catch_warnings(action="ignore"), self.path.open("rb") as file:
                # Newer releases of PyTorch go by a name that ends in .safetensors; an open file has none.
                misnamed = self.path.suffix == ".safetensors"
                content = torch.load(
                    file if misnamed else self.path,
                    map_location="cpu",
                    weights_only=True,
                    mmap=is_zip and not misnamed,
                )
        except SourceError:
            raise
        except pickle.UnpicklingError as error:
            raise SourceError(
                self.path,
                "the pickle inside asks for more than tensors, or is damaged; nothing of it was run",
                next_step="Ask its author for a plain state_dict: torch.save(model.state_dict(), path)",
            ) from error
        except Exception as error:  # PyTorch's unpickler meets damage with whatever Python raises there
            raise SourceError(
                self.path,
                "cannot be read as a PyTorch file: damaged, or cut off",
                next_step="Download or copy it again",
            ) from error
        if not isinstance(content, Mapping):
            raise SourceError(self.path, f"holds a {type(content).__name__}, not a state_dict")
        for name, value in content.items():
            if not isinstance(name, str) or not isinstance(value, torch.Tensor):
                raise SourceError(
                    self.path,
                    f"{name!r} is a {type(value).__name__}, not a tensor",
                    next_step="Give the state_dict itself, not the training checkpoint around it",
                )
        return {name: value.detach() for name, value in content.items()}

    def _check_members(self) -> None:
        # torch.save stores its members uncompressed: a compressed one is not of its making and may be a bomb.
        with zipfile.ZipFile(self.path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise SourceError(
                        self.path, f"member {member.filename!r} is compressed, not of torch.save"
                    )
            damaged = archive.testzip()
        if damaged is not None:
            raise SourceError(
                self.path, f"member {damaged!r} is corrupt (CRC-32)", next_step="Download or copy it again"
            )

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The tensor as a NumPy array, mapped from the file where the format allows it.

        Raises:
            KeyError: There is no tensor of this name.
        """
        tensor = self._tensors[name]
        if tensor.dtype == torch.bfloat16:  # which torch does not hand to NumPy
            return np.asarray(tensor.view(torch.int16).numpy()).view(self.info[name].dtype)
        return np.asarray(tensor.numpy())

    def close(self) -> None:
        """Drop the tensors; the mapping ends when the last array of it is gone."""
        self._tensors = {}


def _numpy_dtype(tensor: torch.Tensor, path: Path, name: str) -> np.dtype:
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise SourceError(path, f"not a dense tensor ({tensor.layout})", tensor=name)
    if tensor.is_meta:
        raise SourceError(path, "saved without its data (a tensor of the meta device)", tensor=name)
    try:
        return np.dtype(str(tensor.dtype).removeprefix("torch."))
    except TypeError as error:
        raise SourceError(path, f"dtype {tensor.dtype} is not supported", tensor=name) from error


def write_state_dict(file: BinaryIO, state_dict: Mapping[str, NDArray[Any]]) -> None:
    """Write a state_dict as `torch.save` does.

    The bytes depend on the tensors and the version of PyTorch only: through a file object PyTorch names the
    archive's root `archive`, not after the file.

    Args:
        file: Open for writing, in binary.
        state_dict: Key to C-contiguous array.

    Raises:
        OSError: The file cannot be written.
    """
    try:
        torch.save(OrderedDict((key, torch.from_numpy(array)) for key, array in state_dict.items()), file)
    except RuntimeError as error:
        # Closing its archive, PyTorch covers up why writing failed.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
