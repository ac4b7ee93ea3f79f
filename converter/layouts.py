"""Orders of a tensor's axes in TensorFlow and PyTorch: a layout is a named permutation with an inverse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Extent = TypeVar("Extent")


@dataclass(frozen=True, slots=True)
class Layout:
    """A named permutation of axes.

    Attributes:
        name: Source axes, an arrow, target axes.
        permutation: The source axis of each target axis, as `numpy.transpose` takes it.
    """

    name: str
    permutation: tuple[int, ...]

    def __post_init__(self) -> None:
        if sorted(self.permutation) != list(range(len(self.permutation))):
            raise ValueError(f"layout {self.name}: {self.permutation} is not a permutation of its axes")

    @property
    def inverse(self) -> Layout:
        """The inverse layout."""
        source, _, target = self.name.partition("->")
        back = tuple(self.permutation.index(axis) for axis in range(len(self.permutation)))
        return Layout(f"{target}->{source}", back)

    def shape(self, shape: Sequence[Extent]) -> tuple[Extent, ...]:
        """Permute a shape; extents may be symbols.

        Raises:
            ValueError: The rank differs from the layout's.
        """
        self._check_rank(len(shape))
        return tuple(shape[axis] for axis in self.permutation)

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Reorder the axes of an array of any dtype; the result has the same bits and is C-contiguous.

        If no axis moves, this returns the array itself.

        Raises:
            ValueError: The rank differs from the layout's.
        """
        self._check_rank(array.ndim)
        return np.asarray(array.transpose(self.permutation), order="C")

    def _check_rank(self, rank: int) -> None:
        if rank != len(self.permutation):
            raise ValueError(f"layout {self.name} takes {len(self.permutation)} axes, not {rank}")


# Kernels: TensorFlow puts height and width first and the output channel last (tf.nn.conv2d), PyTorch the
# output channel first and height and width last (torch.nn.Conv2d). Fully connected layers: TensorFlow
# multiplies from the right (inputs, outputs), torch.nn.Linear keeps (outputs, inputs).
CONVOLUTION = Layout("HWIO->OIHW", (3, 2, 0, 1))
# MTCNN: facenet's detector transposes each image before a network and each map behind it
# (src/align/detect_face.py). A port that does not transpose needs transposed kernels: height and width change
# places on purpose.
CONVOLUTION_WIDTH_FIRST = Layout("HWIO->OIWH", (3, 2, 1, 0))
FULLY_CONNECTED = Layout("IO->OI", (1, 0))
VECTOR = Layout("C->C", (0,))
