"""The pickle of a PyTorch file, walked without running any of it, to know what torch.load would do.

`torch.load(weights_only=True)` runs no foreign code, but it takes a pickle at its word where that costs
memory or time: a tensor larger than its storage makes it allocate, a key of nested tuples takes years.
Here only what torch.save writes for a state_dict is followed. The meaning of the calls: torch/_utils.py and
torch/serialization.py, both formats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from converter.formats.limits import MAX_RANK
from converter.formats.safe_pickle import (
    DamagedPickleError,
    ForbiddenPickleError,
    Global,
    PickleReader,
    as_kind,
    natural,
    set_items,
    some,
)

MAX_PICKLE_BYTES = 8 << 20
"""Bytes of a file's pickle; 716 tensors take 0.1 MB."""

_DTYPES = {
    "torch.DoubleStorage": ("float64", 8),
    "torch.FloatStorage": ("float32", 4),
    "torch.HalfStorage": ("float16", 2),
    "torch.BFloat16Storage": ("bfloat16", 2),
    "torch.LongStorage": ("int64", 8),
    "torch.IntStorage": ("int32", 4),
    "torch.ShortStorage": ("int16", 2),
    "torch.CharStorage": ("int8", 1),
    "torch.ByteStorage": ("uint8", 1),
    "torch.BoolStorage": ("bool", 1),
    "torch.ComplexFloatStorage": ("complex64", 8),
    "torch.ComplexDoubleStorage": ("complex128", 16),
}


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes that tensors are views of.

    Attributes:
        key: Its name in the file.
        dtype: NumPy's name of the element type, in which sizes and offsets are counted.
        itemsize: Bytes of an element.
        numel: Number of elements.
    """

    key: str
    dtype: str
    itemsize: int
    numel: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.itemsize


@dataclass(frozen=True, slots=True)
class Tensor:
    """A dense tensor that lies within its storage and has no element twice."""

    storage: Storage
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Other:
    """What a call of PyTorch gives that is no dense tensor: a sparse, quantised or meta tensor, a device."""

    function: str


class TorchPickleReader(PickleReader):
    """Walks the pickles of one file.

    Attributes:
        storages: The storages that they name, by key.
    """

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[str, Storage] = {}

    def _step(self, opcode: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
        if opcode == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        else:
            super()._step(opcode, argument, stack, memo)

    def _admits(self, name: str) -> bool:
        return name.startswith("torch.") or name == "collections.OrderedDict"

    def _build(self, target: Any, state: Any) -> None:
        # The one object that torch.save gives attributes is an OrderedDict (`_metadata`).
        if type(as_kind(dict, state)) is not type(target):
            raise ForbiddenPickleError("BUILD")

    def _storage(self, identity: Any) -> Storage:
        """Find a storage by what names it: kind, type, key, location, size, in the old format a view."""
        kind, storage_type, key, _, numel, *view = as_kind(tuple, identity)
        if kind != "storage" or view not in ([], [None]):
            raise ForbiddenPickleError("a view of a storage")
        name = as_kind(Global, storage_type).name
        if name not in _DTYPES:
            raise ForbiddenPickleError(name[:200])
        storage = Storage(as_kind(str, key), *_DTYPES[name], natural(numel))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise DamagedPickleError("a storage has two sizes")
        return storage

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name == "collections.OrderedDict":
            target: dict[Any, Any] = {}
            if arguments:  # as Python 2 writes it
                (pairs,) = arguments
                set_items(target, (some(list(pair), 2) for pair in as_kind(list, pairs)))
            return target
        if name == "torch._utils._rebuild_parameter":
            data, _, hooks = arguments
            return data if hooks == {} else Other(name)
        if name == "torch._utils._rebuild_tensor":
            return _tensor(*arguments)
        if name == "torch._utils._rebuild_tensor_v2":
            storage, offset, shape, stride, _, hooks, *metadata = arguments
            return Other(name) if hooks or any(metadata) else _tensor(storage, offset, shape, stride)
        return Other(name)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
    storage = as_kind(Storage, storage)
    shape = tuple(map(natural, as_kind(tuple, shape)))
    strides = tuple(map(natural, as_kind(tuple, stride)))
    if len(shape) > MAX_RANK or len(shape) != len(strides):
        raise DamagedPickleError("a tensor of impossible shape")
    count = math.prod(shape)
    last = natural(offset)
    if count:
        last += sum((extent - 1) * step for extent, step in zip(shape, strides, strict=True)) + 1
    # PyTorch would make the storage larger; an expanded tensor costs a file nothing.
    if last > storage.numel or count > storage.numel:
        raise DamagedPickleError("a tensor is larger than its storage")
    return Tensor(storage, shape)
