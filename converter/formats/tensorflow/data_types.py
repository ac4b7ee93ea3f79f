"""TensorFlow's element types and shapes, as NumPy's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from converter.formats.limits import MAX_RANK


class DataType(IntEnum):
    """TensorFlow's numbers for element types (core/framework/types.proto)."""

    DT_INVALID = 0
    DT_FLOAT = 1
    DT_DOUBLE = 2
    DT_INT32 = 3
    DT_UINT8 = 4
    DT_INT16 = 5
    DT_INT8 = 6
    DT_STRING = 7
    DT_COMPLEX64 = 8
    DT_INT64 = 9
    DT_BOOL = 10
    DT_QINT8 = 11
    DT_QUINT8 = 12
    DT_QINT32 = 13
    DT_BFLOAT16 = 14
    DT_QINT16 = 15
    DT_QUINT16 = 16
    DT_UINT16 = 17
    DT_COMPLEX128 = 18
    DT_HALF = 19
    DT_RESOURCE = 20
    DT_VARIANT = 21
    DT_UINT32 = 22
    DT_UINT64 = 23
    DT_FLOAT8_E5M2 = 24
    DT_FLOAT8_E4M3FN = 25
    DT_INT4 = 29
    DT_UINT4 = 30


NUMPY_DTYPES: Mapping[DataType, np.dtype] = MappingProxyType(
    {
        DataType.DT_FLOAT: np.dtype("<f4"),
        DataType.DT_DOUBLE: np.dtype("<f8"),
        DataType.DT_INT32: np.dtype("<i4"),
        DataType.DT_UINT8: np.dtype("u1"),
        DataType.DT_INT16: np.dtype("<i2"),
        DataType.DT_INT8: np.dtype("i1"),
        DataType.DT_STRING: np.dtype(object),
        DataType.DT_COMPLEX64: np.dtype("<c8"),
        DataType.DT_INT64: np.dtype("<i8"),
        DataType.DT_BOOL: np.dtype(bool),
        DataType.DT_BFLOAT16: np.dtype(ml_dtypes.bfloat16),
        DataType.DT_UINT16: np.dtype("<u2"),
        DataType.DT_COMPLEX128: np.dtype("<c16"),
        DataType.DT_HALF: np.dtype("<f2"),
        DataType.DT_UINT32: np.dtype("<u4"),
        DataType.DT_UINT64: np.dtype("<u8"),
    }
)
"""Supported element types, each with the NumPy dtype of the same bits; strings are objects (`bytes`)."""


_QUANTISED = frozenset(
    {
        DataType.DT_QINT8,
        DataType.DT_QUINT8,
        DataType.DT_QINT32,
        DataType.DT_QINT16,
        DataType.DT_QUINT16,
        DataType.DT_INT4,
        DataType.DT_UINT4,
    }
)


def numpy_dtype(number: int) -> np.dtype:
    """Return the NumPy dtype of a TensorFlow element type.

    Args:
        number: Value of a message field of type DataType.

    Returns:
        A little-endian dtype; `object` for strings, `ml_dtypes.bfloat16` for bfloat16.

    Raises:
        ValueError: The type is unknown or not supported; the message names it.
    """
    try:
        data_type = DataType(number)
    except ValueError:
        raise ValueError(f"element type number {number} is unknown") from None
    if data_type in _QUANTISED:
        raise ValueError(
            f"it is quantised to integers ({data_type.name}), and the float32 weights are gone. Give the "
            "model from before it was quantised"
        )
    if data_type not in NUMPY_DTYPES:
        raise ValueError(f"element type {data_type.name} is not supported")
    return NUMPY_DTYPES[data_type]


def data_type(dtype: np.dtype) -> DataType:
    """Return the TensorFlow element type of a NumPy dtype of any byte order.

    Args:
        dtype: A NumPy dtype.

    Returns:
        The element type.

    Raises:
        ValueError: TensorFlow has no such type, or it is not supported.
    """
    for number, known in NUMPY_DTYPES.items():
        if dtype.newbyteorder("<") == known.newbyteorder("<"):
            return number
    raise ValueError(f"dtype {dtype} has no TensorFlow element type")


def shape_of(message: Any, dtype: np.dtype) -> tuple[int, ...]:
    """Read a shape, and refuse one that no array can have before memory is allocated for it.

    Args:
        message: A TensorShapeProto.
        dtype: The type of the elements.

    Returns:
        Row-major extents; `()` for a scalar.

    Raises:
        ValueError: The rank is unknown or above 32, a dimension is negative, or the dimensions that are not
            zero give more than 2**63 - 1 bytes.
    """
    if message.unknown_rank:
        raise ValueError("the shape is unknown")
    if len(message.dim) > MAX_RANK:
        raise ValueError(f"the shape has {len(message.dim)} dimensions, more than {MAX_RANK}")
    shape = tuple(dim.size for dim in message.dim)
    if any(size < 0 for size in shape):
        raise ValueError(f"the shape {shape} has a negative dimension")
    if math.prod(size for size in shape if size) * dtype.itemsize >= 1 << 63:
        raise ValueError(f"the shape {shape} overflows")
    return shape
