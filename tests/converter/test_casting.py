"""Casting to float32: exact for half precisions, to the nearest for float64, reported or refused."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from converter.casting import Cast, measure_cast, state_casts, to_float32
from tests.conftest import same_bits

EVERY_HALF = np.arange(1 << 16, dtype=np.uint16)
LARGEST = float(np.finfo(np.float32).max)
HALF_STEP = 2.0**103  # half the distance of the largest float32 to what would follow it


def python_float32(number):
    """Return the nearest float32, as CPython packs it; None if CPython refuses the value."""
    try:
        return struct.pack("<f", number)
    except OverflowError:
        return None


def test_every_float16_is_widened_exactly():
    halves = EVERY_HALF.view(np.float16)
    wide = to_float32(halves)
    numbers = ~np.isnan(halves)
    expected = [struct.unpack("<e", half.tobytes())[0] for half in halves[numbers]]
    assert same_bits(wide[numbers], np.array(expected, np.float32))
    for half, bits in zip(
        EVERY_HALF[~numbers].tolist(), wide[~numbers].view(np.uint32).tolist(), strict=True
    ):
        assert bits == (half >> 15) << 31 | 0xFF << 23 | (half & 0x3FF) << 13


def test_every_bfloat16_is_widened_exactly():
    """A bfloat16 is the first half of a float32's bits."""
    wide = to_float32(EVERY_HALF.view(ml_dtypes.bfloat16))
    assert same_bits(wide.view(np.uint32), EVERY_HALF.astype(np.uint32) << 16)
    numbers = ~np.isnan(wide)
    pytorch = torch.from_numpy(EVERY_HALF.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert same_bits(wide[numbers], pytorch[numbers])


@given(st.floats(allow_nan=False, width=64))
@example(1 + 2.0**-24)
@example(1 + 3 * 2.0**-24)
@example(-0.0)
@example(5e-324)
@example(2.0**-150)
@example(3 * 2.0**-150)
@example(LARGEST)
@example(math.nextafter(LARGEST + HALF_STEP, 0))
@example(LARGEST + HALF_STEP)
@example(-LARGEST - HALF_STEP)
@example(math.inf)
def test_float64_goes_to_the_nearest_float32_or_is_refused(number):
    expected = python_float32(number)
    if expected is None:
        with pytest.raises(OverflowError, match="1 of 2 values is beyond float32, the largest is"):
            to_float32(np.array([0.5, number]))
    else:
        assert to_float32(np.array([0.5, number]))[1].tobytes() == expected


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (0x7FF8000000000000, 0x7FC00000),
        (0xFFF8000000000000, 0xFFC00000),
        (0x7FF8000020000001, 0x7FC00001),
        (0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF),
        (0x7FF0000000000001, 0x7FC00000),  # signalling, and its payload does not reach into float32
        (0x7FF4000000000000, 0x7FE00000),
    ],
)
def test_a_nan_of_float64_stays_one_with_what_fits_of_its_payload(before, after):
    nan = np.array([before], np.uint64).view(np.float64)
    cast = to_float32(nan)
    assert cast.view(np.uint32).tolist() == [after]
    kept = before & 0x1FFFFFFF == 0 and bool(before >> 51 & 1)
    assert measure_cast(nan, cast) == Cast("float64", 1, 0 if kept else 1, 0.0)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_shape_order_and_position_stay(dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    array[1, 2, 3] = np.nan
    for view in (array, array.T, array[:, ::-1, ::2]):
        cast = to_float32(view)
        assert cast.flags.c_contiguous
        assert np.array_equal(cast, view, equal_nan=True)
        assert measure_cast(view, cast).changed == 0


def test_float32_is_not_touched_and_the_rest_is_refused():
    array = np.zeros(3, np.float32)
    assert to_float32(array) is array
    for dtype in ("int32", ">f8", "complex64"):
        with pytest.raises(TypeError, match="is not cast to float32"):
            to_float32(np.zeros(3, dtype))


@given(st.lists(st.floats(width=64, min_value=-LARGEST, max_value=LARGEST), min_size=1, max_size=20))
@example([5e-324, 1.0])
@example([1e-45, 0.1])
def test_the_change_is_what_exact_arithmetic_says(numbers):
    array = np.array(numbers)
    made = measure_cast(array, to_float32(array))
    rounded = [struct.unpack("<f", struct.pack("<f", number))[0] for number in numbers]
    errors = [
        abs(Fraction(after) - Fraction(before)) / abs(Fraction(before))
        for before, after in zip(numbers, rounded, strict=True)
        if before != 0
    ]
    assert made.changed == sum(error > 0 for error in errors)
    assert made.largest_relative_error == pytest.approx(float(max(errors, default=Fraction(0))), rel=1e-9)
    assert (made.dtype, made.elements) == ("float64", len(numbers))


def test_what_was_cast_is_put_into_words():
    casts = {
        "a": Cast("float16", 1000, 0, 0.0),
        "b": Cast("float64", 3000, 2, 1e-9),
        "c": Cast("float16", 500, 0, 0.0),
        "d": Cast("float64", 1, 1, 5.9e-8),
    }
    assert state_casts(casts) == (
        "2 tensors of float16 widened to float32, which holds each of the 1,500 values exactly",
        "2 tensors of float64 rounded to the nearest float32: 3 of 3,001 values changed, by 5.9e-08 of "
        "the value at most (d)",
    )
    assert state_casts({"a": Cast("float64", 9, 0, 0.0)}) == (
        "1 tensor of float64 rounded to the nearest float32: none of the 9 values changed",
    )
    assert state_casts({}) == ()
