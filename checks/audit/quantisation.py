"""Quantised tensors: integers, with the scale and the zero point that turn them into numbers.

The arithmetic is that of ONNX's QuantizeLinear and DequantizeLinear, and of TFLite: a number x becomes
clip(round(x / scale) + zero point), where round gives the nearest integer, and of two that are equally near
the even one; an integer q becomes (q - zero point) * scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from checks.core.types import Array


@dataclass(frozen=True, slots=True, eq=False)
class Quantisation:
    """A scale and a zero point, for a whole tensor or for each channel.

    Attributes:
        scale: float32, a scalar or (channels,).
        zero_point: Integers of the dtype of the quantised tensor, of the shape of the scale.
        axis: The axis of the channels.
    """

    scale: Array
    zero_point: Array
    axis: int = 0

    @property
    def is_per_channel(self) -> bool:
        """True if each channel has a scale of its own."""
        return self.scale.size > 1

    @property
    def lowest(self) -> int:
        """The lowest integer of the dtype."""
        return int(np.iinfo(self.zero_point.dtype).min)

    @property
    def highest(self) -> int:
        """The highest integer of the dtype."""
        return int(np.iinfo(self.zero_point.dtype).max)

    @property
    def interval(self) -> tuple[float, float]:
        """The lowest and the highest number that a tensor with one scale can hold."""
        scale, zero_point = float(self.scale.reshape(-1)[0]), int(self.zero_point.reshape(-1)[0])
        return (self.lowest - zero_point) * scale, (self.highest - zero_point) * scale

    def fits(self, array: Array) -> bool:
        """Return True if the channels of an array are those of the scales."""
        size = self.scale.size
        return size == 1 or (-array.ndim <= self.axis < array.ndim and array.shape[self.axis] == size)

    def steps(self, exact: Array) -> Array:
        """The place of each number between the integers, neither rounded nor clipped, float64."""
        scale, zero_point = self._broadcast(exact.ndim)
        return np.asarray(exact.astype(np.float64) / scale + zero_point)

    def quantise(self, exact: Array) -> Array:
        """Quantise numbers; int64."""
        scale, zero_point = self._broadcast(exact.ndim)
        rounded = np.rint(exact.astype(np.float64) / scale) + zero_point
        return np.asarray(np.clip(rounded, self.lowest, self.highest).astype(np.int64))

    def dequantise(self, integers: Array) -> Array:
        """Turn integers into numbers, float64."""
        scale, zero_point = self._broadcast(integers.ndim)
        return np.asarray((integers.astype(np.int64) - zero_point.astype(np.int64)) * scale)

    def along(self, values: Array, rank: int) -> Array:
        """Reshape values of the shape of the scale so that they apply to a tensor of a rank."""
        if values.size == 1:
            return values.reshape(())
        return values.reshape([-1 if axis == self.axis % rank else 1 for axis in range(rank)])

    def _broadcast(self, rank: int) -> tuple[Array, Array]:
        return self.along(self.scale.astype(np.float64), rank), self.along(self.zero_point, rank)


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedTensor:
    """A constant of integers.

    Attributes:
        name: Its name in the file.
        integers: Its values.
        quantisation: Their scale and zero point.
    """

    name: str
    integers: Array
    quantisation: Quantisation

    def dequantise(self) -> Array:
        """The numbers that it stands for, float64."""
        return self.quantisation.dequantise(self.integers)
