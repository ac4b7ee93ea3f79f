"""Reading the pickle inside a PyTorch file, without running it.

`torch.load(weights_only=True)` runs no foreign code either, but a pickle can still cost it memory or time: it
allocates a tensor larger than its storage, and a key of nested tuples takes years to hash. It also refuses
pickles of protocol 4 and the NumPy scalars of training files. The meaning of the calls: torch/_utils.py and
torch/serialization.py, for the zip format and the format before it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from converter.formats.limits import MAX_RANK
from converter.formats.safe_pickle import (
    DamagedPickleError,
    ForbiddenPickleError,
    Global,
    PickleReader,
    expect_count,
    expect_size,
    expect_type,
    set_items,
)

MAX_PICKLE_BYTES = 8 << 20
"""Limit on the size of a file's pickle; 716 tensors take 0.1 MB."""

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
    "torch.QInt8Storage": ("int8", 1),
    "torch.QUInt8Storage": ("uint8", 1),
    "torch.QInt32Storage": ("int32", 4),
    "torch.storage.UntypedStorage": ("uint8", 1),  # of the dtypes since PyTorch 2.1, such as float8
}


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes that tensors are views of.

    Attributes:
        key: Its name in the file.
        dtype: NumPy's name of the element type; sizes and offsets count elements.
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


# The names that torch.save itself writes: tensors, storages, dtypes, layouts and devices.
_OF_TORCH = re.compile(
    r"torch\.(_utils\._rebuild_\w+|_tensor\._rebuild_from_type_v2|serialization\._get_layout"
    r"|nn\.parameter\.(Parameter|Buffer)|torch_version\.TorchVersion|Size|Tensor|device|(storage\.)?\w+Storage"
    r"|q?u?int\d+\w*|b?float\d+\w*|complex\d+|bool|per_\w+_affine\w*)"
)
# What training files hold beside the weights, with the names of NumPy 1 and 2, Python 2 and 3.
_BESIDE_WEIGHTS = {
    "_codecs.encode",  # bytes
    "argparse.Namespace",
    "collections.Counter",
    "datetime.date",
    "datetime.datetime",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "fractions.Fraction",
    "numpy.dtype",
    "numpy.ndarray",
    "types.SimpleNamespace",
    "uuid.UUID",
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(
        f"{module}.{name}"
        for module in ("__builtin__", "builtins")
        for name in ("bytearray", "complex", "frozenset", "range", "set", "slice", "xrange")
    ),
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")  # the latter in Python 3.13
        for name in ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
    ),
}


# Dictionaries: those of PyTorch Lightning, and others that hold the options of a training.
_DICTIONARIES = {
    "addict.addict.Dict",
    "collections.OrderedDict",
    "collections.defaultdict",
    "easydict.EasyDict",
    "fvcore.common.config.CfgNode",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "yacs.config.CfgNode",
}
# The types that a defaultdict makes its values of, under the names of Python 2 and 3.
_FACTORIES = {
    f"{module}.{name}" for module in ("__builtin__", "builtins") for name in ("dict", "float", "int", "list")
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A dense tensor inside its storage that shows no element twice.

    Attributes:
        storage: The storage.
        offset: Number of the storage's elements before the first one of the tensor.
        shape: Extents.
        strides: Elements from one index of a dimension to the next.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_LISTS = {"collections.deque"}
EXPANDED = "an expanded tensor"
META = "torch._utils._rebuild_meta_tensor_no_storage"


@dataclass(frozen=True, slots=True, eq=False)
class Other:
    """Anything but a dense tensor: a sparse, quantised, expanded or meta tensor, a device, a number of NumPy.

    Attributes:
        function: The function that makes it; of a tensor of another dtype, the dtype; or `EXPANDED`.
    """

    function: str


class TorchPickleReader(PickleReader):
    """Reads the pickles of one PyTorch file.

    Attributes:
        storages: Key to each storage that the pickles name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[str, Storage] = {}

    def _step(self, opcode: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
        if opcode == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif opcode == "EMPTY_SET":
            stack.append([])  # items of a set need not be hashable here
        elif opcode == "FROZENSET":
            super()._step("TUPLE", argument, stack, memo)
        elif opcode == "ADDITEMS":
            super()._step("APPENDS", argument, stack, memo)
        elif opcode == "BYTEARRAY8":
            stack.append(argument)
        elif opcode == "NEWOBJ":
            arguments = expect_type(tuple, stack.pop())
            name = expect_type(Global, stack.pop()).name
            if name not in _BESIDE_WEIGHTS | _DICTIONARIES:
                raise ForbiddenPickleError(name[:200])
            stack.append(self._call(name, arguments))
        else:
            super()._step(opcode, argument, stack, memo)

    def _allows(self, name: str) -> bool:
        known = name in _BESIDE_WEIGHTS | _DICTIONARIES | _LISTS | _FACTORIES
        return known or _OF_TORCH.fullmatch(name) is not None

    def _build(self, target: Any, state: Any) -> None:
        if isinstance(target, Other) and target.function in _BESIDE_WEIGHTS:
            return
        # A dictionary may have attributes: an OrderedDict of torch.save has `_metadata`.
        if type(expect_type(dict, state)) is not type(target):
            raise ForbiddenPickleError("BUILD")

    def _storage(self, identity: Any) -> Storage:
        """Read a storage's identity: kind, type, key, location, size and, in the old format, a view."""
        if expect_type(tuple, identity)[0] == "module":  # the class of a model, with its source code
            raise ForbiddenPickleError("the class of a model")
        kind, storage_type, key, _, numel, *view = identity
        if kind != "storage" or view not in ([], [None]):
            raise ForbiddenPickleError("a view of a storage")
        name = expect_type(Global, storage_type).name
        if name not in _DTYPES:
            raise ForbiddenPickleError(name[:200])
        storage = Storage(expect_type(str, key), *_DTYPES[name], expect_size(numel))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise DamagedPickleError("a storage has two sizes")
        return storage

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name == "collections.defaultdict":
            return {}  # its argument makes values, and none is made here
        if name in _LISTS:
            return []  # its items follow
        if name in _DICTIONARIES:
            target: dict[Any, Any] = {}
            if arguments:  # as Python 2 writes it
                (pairs,) = arguments
                set_items(target, (expect_count(list(pair), 2) for pair in expect_type(list, pairs)))
            return target
        if name == "torch._utils._rebuild_parameter":
            data, _, hooks = arguments
            return data if hooks == {} else Other(name)
        if name == "torch._utils._rebuild_tensor":
            return _tensor(*arguments)
        if name == "torch._utils._rebuild_tensor_v2":
            storage, offset, shape, stride, _, hooks, *metadata = arguments
            return Other(name) if hooks or any(metadata) else _tensor(storage, offset, shape, stride)
        if name == "torch._utils._rebuild_tensor_v3":
            return Other(expect_type(Global, arguments[6]).name)
        return Other(name)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor | Other:
    storage = expect_type(Storage, storage)
    shape = tuple(map(expect_size, expect_type(tuple, shape)))
    strides = tuple(map(expect_size, expect_type(tuple, stride)))
    if len(shape) > MAX_RANK or len(shape) != len(strides):
        raise DamagedPickleError("a tensor has an impossible shape")
    count = math.prod(shape)
    last = expect_size(offset)
    if count:
        last += sum((extent - 1) * step for extent, step in zip(shape, strides, strict=True)) + 1
    if last > storage.numel:  # PyTorch would enlarge the storage
        raise DamagedPickleError("a tensor is larger than its storage")
    if count > storage.numel:  # a small file could claim any size
        return Other(EXPANDED)
    return Tensor(storage, offset, shape, strides)
