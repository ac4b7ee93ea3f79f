"""Every threshold of the checks, and why it is what it is."""

from __future__ import annotations

MAPPING = 1e-13
"""Largest distance in float64: of the embeddings (Frobenius) and, as relative L2, of every tap.

Two correct float64 implementations differ by rounding alone, some 1e-15 through this network's 132
convolutions. The smallest fault that a port has shipped with moves a tap by more than 1e-9; 1e-13 stands
well clear of both.
"""

ROUNDING = 2.0
"""How many times further from the float64 result PyTorch's float32 may be than TensorFlow's, at any tap."""

ROUNDING_FEW_VALUES = 4.0
"""The same on inputs of few distinct values, where rounding errors repeat and do not average out."""

UNIT_ROUNDOFF = 2.0**-24
"""Relative error of one float32 rounding (IEEE 754). TensorFlow's error counts as at least this much: it can
be zero by luck on a constant image, and no implementation could stay below a multiple of zero."""

HEADLINE = 2e-6
"""Largest float32 distance (Frobenius) of five embeddings; the field quotes 1.287e-06 for its own port."""

HEADLINE_ROW = 1e-6
"""Largest float32 distance of a single embedding among them."""
