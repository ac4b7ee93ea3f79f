"""PyTorch state_dict files (.pt): read without running any pickle, written the same way every time."""

from __future__ import annotations

import io
import mmap
import os
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy
import numpy as np
import torch
from numpy.typing import NDArray

from converter.errors import SourceError
from converter.formats.limits import check_claims, open_regular
from converter.formats.safe_pickle import DamagedPickleError, ForbiddenPickleError, Unread
from converter.formats.source import DOWNLOAD_AGAIN, Naming, TensorInfo, TensorSource
from converter.formats.torch.state_dict_pickle import (
    EXPANDED,
    MAX_PICKLE_BYTES,
    META,
    Other,
    Tensor,
    TorchPickleReader,
)
from converter.formats.torch.state_dict_zip import read_archive
from converter.formats.torch.training_file import find_state_dicts, holds_tensors, names_beside
from converter.free_names import save_line

_ZIP_MAGIC = b"PK\x03\x04"
_COUNT_BYTES = 8
# torch/serialization.py: MAGIC_NUMBER and PROTOCOL_VERSION.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict", "net")
"""The entries of a training file that may be its state_dict."""

_INTEGERS = re.compile(r"torch\.(qu?|u)?int\w+|torch\._utils\._rebuild_qtensor")
"""The dtypes of integers that are not read, and the function that makes a quantised tensor."""


class StateDictFile(TensorSource):
    """A state_dict saved by `torch.save`, in the zip format or in the one before PyTorch 1.6.

    A training file is a dictionary with the state_dict beside an epoch, an optimiser and the like; the entry
    of `STATE_DICT_KEYS` is read, also one below another such as `model.state_dict`.

    Args:
        path: The file.
        verify: Whether to check the CRC-32 of the archive's members, which torch.load does not check. A
            caller that compares every bit anyway does not need it.

    Raises:
        SourceError: The file is corrupt, contains code, holds several state_dicts, or is not a flat mapping
            of names to dense tensors.
    """

    format = "PyTorch state_dict"
    naming: Naming = "pytorch"

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        self.path = path
        self.files = (path,)
        self._keys: tuple[str, ...] = ()
        try:
            with open_regular(path) as file:
                self._size = os.fstat(file.fileno()).st_size
                is_zip = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
                content, self._starts = (
                    self._walk_archive(file, verify) if is_zip else self._walk_legacy(file)
                )
                self._mapped: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise SourceError(path, f"the file cannot be read ({error.strerror})") from error
        except DamagedPickleError as error:
            raise self._damaged(f"the pickle inside: {error}") from error
        self._tensors = self._check_content(self._find_state_dict(content))
        self.info = {
            name: TensorInfo(np.dtype(tensor.storage.dtype), tensor.shape)
            for name, tensor in self._tensors.items()
        }
        check_claims(path, self.info, self._size)

    def _walk_archive(self, file: io.BufferedReader, verify: bool) -> tuple[Any, dict[str, int]]:
        """Check the zip format; returns the value of its pickle, and where each storage starts."""
        archive = read_archive(self.path, file, verify=verify)
        if archive.byte_order != b"little":
            raise self._damaged("it is not little-endian")
        walk = TorchPickleReader()
        content = self._read_pickle(walk, io.BytesIO(archive.pickle))
        for key, storage in walk.storages.items():
            if archive.sizes.get(f"data/{key}") != storage.nbytes:
                raise self._damaged(f"storage {key[:80]!r} does not have the size that the pickle says")
        return content, {key: archive.starts[f"data/{key}"] for key in walk.storages}

    def _walk_legacy(self, file: io.BufferedReader) -> tuple[Any, dict[str, int]]:
        """Check the format before PyTorch 1.6: five pickles, then the storages one after another."""
        file.seek(0)
        head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        walk = TorchPickleReader()
        if self._read_pickle(walk, head) != _LEGACY_MAGIC:
            raise SourceError(
                self.path,
                "this is a pickle that torch.save did not write",
                next_step="If you trust it, load it where it was written, and save its weights: "
                f"{save_line('model.state_dict()')}",
            )
        if self._read_pickle(walk, head) != _LEGACY_PROTOCOL:
            raise DamagedPickleError("not that of a PyTorch file")
        system = self._read_pickle(walk, head)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise self._damaged("it is not little-endian")
        content, keys = self._read_pickle(walk, head), self._read_pickle(walk, head)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise DamagedPickleError("its storages have no names")
        if len(keys) != len(walk.storages) or set(keys) != set(walk.storages):
            raise self._damaged("its storages are not those of the pickle")
        position = head.tell()
        starts = {}
        for key in keys:
            file.seek(position)
            storage = walk.storages[key]
            if int.from_bytes(file.read(_COUNT_BYTES), "little") != storage.numel:
                raise self._damaged(f"storage {key[:80]!r} does not have the size that the pickle says")
            starts[key] = position + _COUNT_BYTES
            position = starts[key] + storage.nbytes
        if position != self._size:
            raise self._damaged(f"its storages end at byte {position}, but it has {self._size} bytes")
        return content, starts

    def _read_pickle(self, walk: TorchPickleReader, pickle: io.BytesIO) -> Any:
        """Read one pickle, and refuse a whole model or other code by that name."""
        try:
            return walk.load(pickle)
        except ForbiddenPickleError as error:
            content = pickle.getvalue()
            key = next((key for key in STATE_DICT_KEYS if _holds_text(content, key)), None)
            if b"torch.nn.modules" not in content:
                # The name of a class or function is readable: the file is sound.
                or_damaged = "" if "." in str(error) else ", or is damaged"
                line = save_line("model.state_dict()") if key is None else self._save([key])
                raise SourceError(
                    self.path,
                    f"the pickle inside asks for more than tensors{or_damaged} ({error}); it was not run",
                    next_step=f"If you trust it, save its weights in a file of their own: {line}",
                ) from error
            line = f"model = {self._load()}; {save_line('model.state_dict()')}"
            if key in ("state_dict", "model_state_dict"):
                line = self._save([key])
            raise SourceError(
                self.path,
                f"it holds a whole pickled model, which is code ({error}); it was not run",
                next_step=f"If you trust it, write its weights where the model's code is: {line}. In a "
                "training file the model is an entry of the dictionary that torch.load returns",
            ) from error

    def _find_state_dict(self, content: Any) -> dict[Any, Any]:
        """Find the state_dict in a training file; the content itself if it is not one."""
        if not isinstance(content, dict):
            items = content if isinstance(content, list | tuple) else ()
            index = next((index for index, item in enumerate(items) if holds_tensors(item)), None)
            raise SourceError(
                self.path,
                f"it holds {_kind(content)}, not a state_dict",
                next_step="Give the file of the weights"
                if index is None
                else f"If you trust it, save the state_dict in a file of its own: {self._save([index])}",
            )
        found = find_state_dicts(content, STATE_DICT_KEYS)
        if len(found) > 1:
            places = " and ".join(repr(".".join(keys)) for keys, _ in found)
            line = self._save(found[0][0])
            raise SourceError(
                self.path,
                f"it holds several state_dicts, under {places}",
                next_step=f"If you trust it, save one of them in a file of its own: {line}",
            )
        if found:
            ((keys, state_dict),) = found
            self._keys = keys
            self.key = ".".join(keys)
            self.format = f"PyTorch state_dict, under {self.key!r}"
            self.beside = tuple(names_beside(content, keys))
            return state_dict
        # The largest comes first: the state of an optimiser is in several.
        others = sorted(find_state_dicts(content), key=lambda item: -len(item[1]))
        if others:
            places = ", ".join(repr(".".join(map(str, keys)))[:60] for keys, _ in others[:3])
            line = self._save(others[0][0])
            raise SourceError(
                self.path,
                f"this is a training file, with tensors under {places}; a state_dict is looked for under "
                f"{', '.join(STATE_DICT_KEYS)}",
                next_step=f"If you trust it, save the state_dict in a file of its own: {line}",
            )
        return content

    def _load(self) -> str:
        # With `weights_only` torch.load refuses NumPy's numbers and whole models.
        return f'torch.load({str(self.path)!r}, map_location="cpu", weights_only=False)'

    def _save(self, keys: Sequence[object]) -> str:
        """Give the line that saves an entry of a training file."""
        return save_line(self._entry(keys))

    def _entry(self, keys: Sequence[object]) -> str:
        return self._load() + "".join(f"[{key!r}]"[:200] for key in keys)

    def _check_content(self, content: dict[Any, Any]) -> dict[str, Tensor]:
        for name, value in content.items():
            if not isinstance(name, str):
                raise SourceError(
                    self.path,
                    f"its keys are not names: {_kind(name)} is among them",
                    next_step=f"Save its state_dict in a file of its own: {save_line('model.state_dict()')}",
                )
            if not isinstance(value, Tensor | Other):
                line = self._save_tensors("v", "if torch.is_tensor(v)")
                raise SourceError(
                    self.path,
                    f"{name[:200]!r} is {_kind(value)}, not a tensor",
                    next_step=f"If you trust it, save its tensors in a file of their own: {line}"
                    if holds_tensors(content)
                    else "If this is a training file, save the state_dict in it in a file of its own: "
                    f"{save_line('STATE_DICT')}",
                )
            if isinstance(value, Other):
                raise self._other_tensor(name, value.function)
        return content

    def _other_tensor(self, name: str, function: str) -> SourceError:
        """Explain why a tensor is not read, and what to do about it."""
        line = ""
        if function == META:
            problem = "it was saved without its data (a tensor of the meta device)"
        elif function == EXPANDED:
            problem = "it has more elements than are stored (an expanded tensor)"
            line = self._save_tensors("v.contiguous()")
        elif function.startswith("torch._utils._rebuild_sparse"):
            problem, line = "it is sparse", self._save_tensors("v.to_dense()")
        elif re.fullmatch(r"torch\.b?float\w+", function):
            problem, line = f"its dtype {function} is not converted", self._save_tensors("v.float()")
        elif _INTEGERS.fullmatch(function) and name.endswith("num_batches_tracked"):
            problem = f"its dtype {function} is not converted; such a counter is not needed"
            line = self._save_tensors("v", "if v.is_floating_point()")
        elif _INTEGERS.fullmatch(function):
            integers = "" if function.startswith("torch._") else f" ({function})"
            problem = f"it is quantised to integers{integers}, and the float32 weights are gone"
            next_step = "Give the state_dict from before it was quantised"
            return SourceError(self.path, problem, tensor=name[:200], next_step=next_step)
        else:
            problem = f"this is not a dense tensor that can be converted ({function[:80]})"
        step = f"If you trust it, save its tensors in a file of their own: {line}" if line else None
        return SourceError(self.path, problem, tensor=name[:200], next_step=step)

    def _save_tensors(self, value: str, condition: str = "") -> str:
        """Give the line that saves the items `v` of the state_dict under their keys."""
        entry = self._entry(self._keys)
        return save_line(f"{{k: {value} for k, v in {entry}.items(){condition and ' '}{condition}}}")

    def _damaged(self, problem: str) -> SourceError:
        return SourceError(
            self.path,
            f"this PyTorch file is damaged or cut off ({problem})",
            next_step=DOWNLOAD_AGAIN,
        )

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a tensor as a NumPy array, mapped from the file and read-only.

        Raises:
            KeyError: There is no tensor of this name.
            ValueError: The source is closed.
        """
        tensor, info = self._tensors[name], self.info[name]
        if self._mapped is None:
            raise ValueError(f"{self.path} is closed")
        if 0 in info.shape:
            return np.empty(info.shape, info.dtype)  # its strides may be any numbers
        size = info.dtype.itemsize
        array: NDArray[Any] = np.ndarray(
            info.shape,
            info.dtype,
            self._mapped,
            self._starts[tensor.storage.key] + tensor.offset * size,
            tuple(stride * size for stride in tensor.strides),
        )
        return array if array.flags.aligned else array.copy()

    def close(self) -> None:
        """Drop the map; the file stays mapped until the last array of it is gone."""
        self._mapped = None


def _holds_text(pickle: bytes, text: str) -> bool:
    """Return whether a text stands in a pickle of protocol 2 (with 4 bytes of its length) or 4 (with one)."""
    count, raw = len(text), text.encode()
    return any(head + raw in pickle for head in (b"X" + count.to_bytes(4, "little"), b"\x8c%c" % count))


def _kind(value: Any) -> str:
    """Name the type of a value, with an article."""
    if value is None or isinstance(value, Unread):
        return str(value)
    name = "tensor or array" if isinstance(value, Tensor | Other) else type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def write_state_dict(file: BinaryIO, state_dict: Mapping[str, NDArray[Any]]) -> None:
    """Write a state_dict as `torch.save` does.

    The bytes depend only on the tensors and the version of PyTorch: given a file object, PyTorch names the
    archive's folder `archive`, not after the file.

    Args:
        file: A binary file, open for writing.
        state_dict: Key to C-contiguous array.

    Raises:
        OSError: The file cannot be written.
    """
    try:
        torch.save(OrderedDict((key, torch.from_numpy(array)) for key, array in state_dict.items()), file)
    except RuntimeError as error:
        # PyTorch closes its archive and hides the reason for the failed write.
        if isinstance(error.__context__, OSError | KeyboardInterrupt):
            raise error.__context__ from None
        raise


def map_state_dict(path: Path, info: Mapping[str, TensorInfo]) -> dict[str, torch.Tensor]:
    """Map the tensors of a file that `write_state_dict` wrote, without reading its pickle.

    PyTorch's restricted unpickler takes as long as hashing the whole file, and the file's manifest already
    describes the tensors. The caller must compare the file's SHA-256 with the manifest before it uses any
    tensor.

    Args:
        path: The file.
        info: Key to dtype and shape, in the order in which they were written.

    Returns:
        Key to tensor. Each has a storage of its own, mapped from the file, copy on write.

    Raises:
        SourceError: The file does not hold these tensors.
    """
    try:
        with open_regular(path) as file:
            archive = read_archive(path, file, verify=False)
        # Not UntypedStorage.from_file, which takes no name that is not UTF-8.
        whole = torch.from_numpy(np.memmap(path, np.uint8, "c")).untyped_storage()
    except (OSError, ValueError) as error:
        raise SourceError(path, f"the file cannot be mapped ({error})") from error
    dtypes = {dtype: getattr(torch, dtype.name) for dtype in {tensor.dtype for tensor in info.values()}}
    tensors = {}
    for number, (key, tensor) in enumerate(info.items()):
        member = f"data/{number}"  # torch.save numbers the storages in this order
        size = tensor.nbytes
        if archive.sizes.get(member) != size:
            raise SourceError(path, "its size is not the one in the manifest", tensor=key)
        storage = whole[archive.starts[member] : archive.starts[member] + size]
        empty = torch.empty(0, dtype=dtypes[tensor.dtype])
        tensors[key] = empty.set_(storage).view(tensor.shape)
    return tensors
