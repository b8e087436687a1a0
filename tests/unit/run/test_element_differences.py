"""What counts as a difference, and numbers that follow from it, by hand and against whole arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.engine.run.element_differences import (
    TensorDifference,
    TileDifference,
    compare_floats,
    compare_units,
    differing_bits,
)

NAN, INF = math.nan, math.inf


def compared(first: list[float], second: list[float], dtype: type = np.float32) -> TileDifference:
    a, b = np.array(first, dtype), np.array(second, dtype)
    bits = differing_bits(a.view(np.uint8), b.view(np.uint8), a.itemsize)
    return compare_floats(a, b, bits)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("first", "second", "differing", "other_bits", "nonfinite", "largest"),
    [
        ([1, 2], [1, 2], 0, 0, 0, 0),
        ([1, 2], [1, 4], 1, 0, 0, 2),
        ([0.0, 1], [-0.0, 1], 0, 1, 0, 0),
        ([NAN, 1], [NAN, 1], 0, 0, 0, 0),
        ([NAN, 1], [-NAN, 1], 0, 1, 0, 0),
        ([NAN, 1], [3, 1.5], 2, 0, 1, 0.5),
        ([INF, -INF], [INF, -INF], 0, 0, 0, 0),
        ([INF, 1], [-INF, 1], 1, 0, 1, 0),
        ([INF, NAN], [NAN, INF], 2, 0, 2, 0),
    ],
)
def test_by_hand(dtype, first, second, differing, other_bits, nonfinite, largest):
    found = compared(first, second, dtype)
    assert (found.differing, found.other_bits, found.nonfinite, found.largest) == (
        differing, other_bits, nonfinite, largest,
    )  # fmt: skip
    assert found.elements == len(first)


def test_norms_by_hand_leave_out_what_is_not_finite() -> None:
    whole = TensorDifference()
    whole.add(compared([3, 4, NAN], [3, 0, 5]))
    assert whole.relative == pytest.approx(4 / 5) and whole.cosine == pytest.approx(9 / 15)


@pytest.mark.parametrize(
    ("first", "second", "relative", "cosine"),
    [
        ([0, 0], [0, 0], 0.0, None),
        ([0, 0], [1, 0], None, None),
        ([1, 0], [0, 0], 1.0, None),
        ([1, 0], [-1, 0], 2.0, -1.0),
        ([1, 0], [0, 1], math.sqrt(2), 0.0),
        ([2, 3], [2, 3], 0.0, 1.0),
    ],
)
def test_ratios_that_there_are_and_are_not(first, second, relative, cosine):
    whole = TensorDifference()
    whole.add(compared(first, second))
    assert whole.relative == (None if relative is None else pytest.approx(relative))
    assert whole.cosine == (None if cosine is None else pytest.approx(cosine))


def test_squares_beyond_fp64_have_no_ratio() -> None:
    whole = TensorDifference()
    whole.add(compared([1e300, 1], [2e300, 1], np.float64))
    assert whole.differing == 1 and whole.largest == 1e300
    assert whole.relative is None and whole.cosine is None


def test_an_empty_tensor_is_equal() -> None:
    assert (TensorDifference().relative, TensorDifference().cosine) == (0.0, None)


def test_other_dtypes_are_compared_by_value_alone() -> None:
    found = compare_floats(np.array([1, 0.5], np.float32), np.array([1, 0.5 + 1e-12]), None)
    assert found.differing == 1 and found.other_bits == 0 and 0 < found.largest < 2e-12


@pytest.mark.parametrize("unit", [1, 2, 4, 8])
def test_units_are_compared_by_their_bytes(unit: int) -> None:
    a = np.arange(16 * unit, dtype=np.uint8)
    b = a.copy()
    b[[0, 5 * unit, 6 * unit - 1]] += 1
    assert compare_units(a, b, unit) == TileDifference(16, 2)
    assert compare_units(a, a, unit).differing == 0


numbers = st.floats(width=32, min_value=-(2.0**60), max_value=2.0**60)


@given(st.lists(st.tuples(numbers, numbers | st.just(0.0)), min_size=1, max_size=60), st.integers(1, 20))
def test_tiles_add_up_to_the_whole(pairs: list[tuple[float, float]], size: int) -> None:
    a, b = (np.array(column, np.float32) for column in zip(*pairs, strict=True))
    whole = TensorDifference()
    for begin in range(0, len(a), size):
        whole.add(compared(list(a[begin : begin + size]), list(b[begin : begin + size])))
    x, y = a.astype(np.float64), b.astype(np.float64)
    assert whole.differing == sum(float(p) != float(q) for p, q in zip(a, b, strict=True))
    assert whole.largest == np.abs(x - y).max()
    if np.any(x) and whole.differing:
        assert whole.relative == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x))
