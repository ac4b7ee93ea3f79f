"""Layouts: each has an inverse, keeps every bit, and is the order of axes that the arithmetic needs."""

from __future__ import annotations

from itertools import permutations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from converter.layouts import CONVOLUTION, FULLY_CONNECTED, VECTOR, Layout
from tests.conftest import random_bits, same_bits

LAYOUTS = (CONVOLUTION, FULLY_CONNECTED, VECTOR)
layouts = st.integers(0, 4).flatmap(
    lambda rank: st.permutations(range(rank)).map(lambda axes: Layout("any->order", tuple(axes)))
)


@given(st.one_of(st.sampled_from(LAYOUTS), layouts), st.data())
def test_inverse_undoes_a_layout_bit_for_bit(layout, data):
    shape = data.draw(st.tuples(*[st.integers(0, 4)] * len(layout.permutation)))
    array = random_bits(shape, data.draw(st.integers(0, 99)))
    moved = layout.apply(array)
    assert moved.shape == layout.shape(shape)
    assert moved.flags.c_contiguous
    assert same_bits(layout.inverse.apply(moved), array)
    assert layout.inverse.inverse == layout


@given(layouts, st.data())
def test_an_element_goes_where_the_shape_says(layout, data):
    shape = data.draw(st.tuples(*[st.integers(1, 4)] * len(layout.permutation)))
    index = data.draw(st.tuples(*[st.integers(0, extent - 1) for extent in shape]))
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    assert layout.apply(array)[layout.shape(index)] == array[index]


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.float16, ml_dtypes.bfloat16, np.float64])
def test_any_dtype_keeps_its_bits(dtype):
    array = np.arange(24).reshape(2, 3, 4, 1).astype(dtype)
    moved = CONVOLUTION.apply(array[::-1])
    assert moved.dtype == array.dtype
    assert same_bits(CONVOLUTION.inverse.apply(moved), array[::-1])


def test_nothing_is_copied_where_nothing_moves():
    array = random_bits((5,), 0)
    assert np.may_share_memory(VECTOR.apply(array), array)
    assert not np.may_share_memory(FULLY_CONNECTED.apply(random_bits((2, 3), 0)), array)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_say_what_moves(layout):
    source, target = layout.name.split("->")
    assert "".join(layout.shape(source)) == target
    assert layout.inverse.name == f"{target}->{source}"


@pytest.mark.parametrize("axes", [(0, 0), (1,), (0, 2), (-1, 0)])
def test_what_is_no_permutation_is_refused(axes):
    with pytest.raises(ValueError, match="not a permutation"):
        Layout("a->b", axes)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3, 4)])
def test_another_rank_is_refused(shape):
    with pytest.raises(ValueError, match="takes 2 axes"):
        FULLY_CONNECTED.apply(np.zeros(shape))
    with pytest.raises(ValueError, match="takes 2 axes"):
        FULLY_CONNECTED.shape(shape)


# The arithmetic as the judge


def naive_convolution(images, kernel):
    """Compute tf.nn.conv2d from its definition: NHWC images, HWIO kernel, VALID, stride 1, no flip."""
    count, height, width, _ = images.shape
    rows, columns, _, outputs = kernel.shape
    result = np.zeros((count, height - rows + 1, width - columns + 1, outputs))
    for n, i, j, o in np.ndindex(result.shape):
        result[n, i, j, o] = np.sum(images[n, i : i + rows, j : j + columns] * kernel[..., o])
    return result


def torch_convolution(images, kernel):
    result = torch.conv2d(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(kernel))
    return result.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("shape", [(1, 7, 4, 5), (7, 1, 4, 5), (3, 3, 3, 3)])
def test_a_converted_kernel_computes_the_same(shape):
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal(shape)
    images = generator.standard_normal((2, 8, 9, shape[2]))
    expected = naive_convolution(images, kernel)
    np.testing.assert_allclose(torch_convolution(images, CONVOLUTION.apply(kernel)), expected, atol=1e-12)


def test_every_other_order_of_axes_computes_something_else():
    # With all four extents equal no shape gives a wrong order away: only the arithmetic does.
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal((3, 3, 3, 3))
    images = generator.standard_normal((1, 5, 5, 3))
    expected = naive_convolution(images, kernel)
    right = [
        axes
        for axes in permutations(range(4))
        if np.allclose(torch_convolution(images, Layout("?->?", axes).apply(kernel)), expected)
    ]
    assert right == [CONVOLUTION.permutation]
    flipped = CONVOLUTION.apply(kernel[::-1, ::-1])
    assert not np.allclose(torch_convolution(images, flipped), expected)


def test_a_converted_matrix_computes_the_same():
    generator = np.random.default_rng(0)
    matrix, rows = generator.standard_normal((4, 4)), generator.standard_normal((2, 4))
    linear = torch.nn.functional.linear
    result = linear(torch.from_numpy(rows), torch.from_numpy(FULLY_CONNECTED.apply(matrix))).numpy()
    np.testing.assert_allclose(result, rows @ matrix, atol=1e-12)
    wrong = linear(torch.from_numpy(rows), torch.from_numpy(matrix)).numpy()
    assert not np.allclose(wrong, rows @ matrix)
