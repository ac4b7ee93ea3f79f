"""The unit roundoffs that the charts show."""

from __future__ import annotations

from checks.core import thresholds
from checks.report.charts import Limit

UNIT64 = 2.0**-53
"""Relative error of one float64 rounding (IEEE 754)."""

SINGLE = Limit("unit roundoff of float32", "2⁻²⁴", thresholds.UNIT_ROUNDOFF)
DOUBLE = Limit("unit roundoff of float64", "2⁻⁵³", UNIT64)
