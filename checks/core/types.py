"""Type aliases that the checks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
"""An array of any dtype and shape."""

Arrays = Mapping[str, Array]
"""state_dict key, TensorFlow variable or activation, to its array."""

Say = Callable[[str], None]
"""A progress callback. Takes a line on what is going on now."""
