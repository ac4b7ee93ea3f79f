"""TensorFlow's side of comparisons with one checkpoint, computed once for several commands of a process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest

from checks.core.inputs import InputBatch
from checks.core.tensorflow_side import Activations, TensorFlowSide
from checks.core.types import Array
from converter.formats.source import TensorSource
from converter.plan import Weights

TAKEN_FROM = "checks.compare.run.TensorFlowSide"


class _SharedSide(TensorFlowSide):
    """Stays open at the end of a comparison, and runs an input once."""

    def __init__(
        self, source: TensorSource, tensors: Mapping[str, Array], weights: Weights, **options: Any
    ) -> None:
        super().__init__(source, tensors, weights, **options)
        self._known: dict[object, Callable[[], Activations]] = {}

    def begin(self, batch: InputBatch, activations: tuple[str, ...]) -> Callable[[], Activations]:
        """Begin to run every graph on an input, or return what they gave."""
        key = batch.name, batch.images.shape, batch.images.tobytes(), activations
        if key not in self._known:
            self._known[key] = cache(super().begin(batch, activations))
        return self._known[key]

    def __exit__(self, *exception: object) -> None:
        pass


@contextmanager
def shared_tensorflow() -> Iterator[None]:
    """Let all comparisons with a checkpoint use the graphs that the first one opened, while open."""
    sides: dict[object, _SharedSide] = {}

    def side(
        source: TensorSource, tensors: Mapping[str, Array], weights: Weights, **options: Any
    ) -> _SharedSide:
        key = source.path.resolve(), weights, *sorted(options.items())
        if key not in sides:
            sides[key] = _SharedSide(source, tensors, weights, **options)
        return sides[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TAKEN_FROM, side)
        yield
    for opened in sides.values():
        opened.close()
