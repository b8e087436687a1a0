"""Coefficients from dot products against the same methods on the vectors themselves, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from anabranch.engine.methods.coefficients import (
    Coefficients,
    Karcher,
    ModelStock,
    MultiSlerp,
    NoDirection,
    NuSlerp,
    Slerp,
    Weights,
)

Vectors = NDArray[np.float64]


def solved(coefficients: Coefficients, vectors: Vectors, weights: list[float] | None = None) -> list[float]:
    found: list[float] = coefficients.solve(vectors @ vectors.T, weights or [1.0] * len(vectors)).tolist()
    return found


def unit(vector: Vectors) -> Vectors:
    return np.asarray(vector / np.linalg.norm(vector))


# -- by hand ---------------------------------------------------------------------------------------------------------

RIGHT_ANGLE = np.array([[2.0, 0.0], [0.0, 3.0]])
SIXTY_DEGREES = np.array([[1.0, 0.0], [0.5, math.sqrt(0.75)]])


def test_weights_are_themselves() -> None:
    assert solved(Weights(), RIGHT_ANGLE, [0.5, -2.0]) == [0.5, -2.0]


def test_slerp_of_a_right_angle_is_cosine_and_sine() -> None:
    third = math.pi / 6
    assert solved(Slerp(1 / 3), RIGHT_ANGLE) == pytest.approx([math.cos(third), math.sin(third)])
    assert solved(Slerp(0.0), RIGHT_ANGLE) == pytest.approx([1, 0])
    assert solved(Slerp(1.0), RIGHT_ANGLE) == pytest.approx([0, 1])


def test_slerp_goes_on_beyond_its_ends() -> None:
    assert solved(Slerp(2.0), RIGHT_ANGLE) == pytest.approx([-1, 0])


@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0, -2.5])
def test_slerp_of_parallel_tensors_is_linear(factor: float) -> None:
    vectors = np.array([[1.0, 2.0], [factor, 2 * factor]])
    assert solved(Slerp(0.25), vectors) == [0.75, 0.25]
    assert solved(NuSlerp(), vectors, [3.0, 1.0]) == [0.75, 0.25]


def test_slerp_of_a_zero_tensor_takes_a_right_angle() -> None:
    half = math.sqrt(0.5)
    assert solved(Slerp(0.5), np.array([[1.0, 2.0], [0.0, 0.0]])) == pytest.approx([half, half])


def test_nuslerp_finds_its_place_by_weights() -> None:
    assert solved(NuSlerp(), RIGHT_ANGLE, [2.0, 1.0]) == pytest.approx(solved(Slerp(1 / 3), RIGHT_ANGLE))
    assert solved(NuSlerp(), RIGHT_ANGLE, [0.5, -0.5]) == pytest.approx(solved(Slerp(0.5), RIGHT_ANGLE))


def test_multislerp_is_the_mean_direction_with_the_mean_norm() -> None:
    half = math.sqrt(0.5)  # directions [1, 0] and [0, 1]; the mean norm is 2.5
    found = solved(MultiSlerp(True, 0.0), RIGHT_ANGLE)
    assert found == pytest.approx([2.5 * half / 2, 2.5 * half / 3])
    assert solved(MultiSlerp(False, 0.0), RIGHT_ANGLE) == pytest.approx([2 * x for x in found])


def test_multislerp_needs_a_direction() -> None:
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(NoDirection, match="cancel each other"):
        solved(MultiSlerp(True, 1e-8), opposite)
    with pytest.raises(NoDirection, match="add up to 0"):
        solved(MultiSlerp(True, 1e-8), RIGHT_ANGLE, [1.0, -1.0])
    assert solved(MultiSlerp(True, 1e-8), opposite[:2]) == [0.5, 0.5]  # two models: their mean, as mergekit
    assert solved(MultiSlerp(True, 1e-8), np.zeros((3, 2))) == pytest.approx([1 / 3] * 3)


def test_karcher_of_two_tensors_lies_halfway() -> None:
    assert solved(Karcher(10, 1e-5), SIXTY_DEGREES) == pytest.approx(solved(Slerp(0.5), SIXTY_DEGREES))


def test_karcher_leaves_out_directions_of_zero_tensors_but_not_their_norm() -> None:
    vectors = np.array([[3.0, 0.0], [0.0, 0.0], [3.0, 0.0]])
    found = np.array(solved(Karcher(10, 1e-5), vectors))
    assert found @ vectors == pytest.approx([2.0, 0.0])
    assert solved(Karcher(10, 1e-5), np.zeros((2, 2))) == [0, 0]


def test_karcher_of_opposite_tensors_is_the_first() -> None:
    vectors = np.array([[2.0, 0.0], [-4.0, 0.0]])
    assert np.array(solved(Karcher(10, 1e-5), vectors)) @ vectors == pytest.approx([3.0, 0.0])


def test_model_stock_by_hand() -> None:
    # A cosine of 1/2 between two models: T = 2 * 0.5 / (1 + 0.5) = 2/3, a third for each difference.
    assert solved(ModelStock(), SIXTY_DEGREES) == pytest.approx([1 / 3, 1 / 3])
    assert solved(ModelStock(), RIGHT_ANGLE) == [0, 0]
    equal = np.array([[1.0, 2.0], [1.0, 2.0]])
    assert solved(ModelStock(), equal) == pytest.approx([0.5, 0.5])
    opposite = np.array([[1.0, 2.0], [-1.0, -2.0]])
    assert solved(ModelStock(), opposite) == [0, 0]  # 1 + cos is 0: the base stays


def test_the_karcher_mean_ends_where_no_step_is_short_enough() -> None:
    vectors = np.random.default_rng(2).standard_normal((3, 5))
    found = solved(Karcher(10**12, 0.0), vectors)
    assert found == solved(Karcher(1000, 0.0), vectors)
    assert found == pytest.approx(solved(Karcher(50, 1e-12), vectors), rel=1e-9)
    assert solved(Karcher(10, 0.0), np.ones((2, 3))) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("coefficients", [NuSlerp(), MultiSlerp(True, 1e-8), Karcher(10, 1e-5)])
def test_a_tensor_alone_is_the_result(coefficients: Coefficients) -> None:
    assert solved(coefficients, np.array([[1.0, 2.0]]), [0.3]) == [1.0]


@pytest.mark.parametrize("coefficients", [NuSlerp(), ModelStock()])
def test_rows_are_solved_as_each_alone(coefficients: Coefficients) -> None:
    rows = [RIGHT_ANGLE, SIXTY_DEGREES, np.ones((2, 2)), np.zeros((2, 2)), -SIXTY_DEGREES * [[1], [3]]]
    gram = np.array([v @ v.T for v in rows])
    together = coefficients.solve(gram, [1.0, 2.0])
    assert together.tolist() == [coefficients.solve(each, [1.0, 2.0]).tolist() for each in gram]


# -- on the vectors themselves ---------------------------------------------------------------------------------------


@st.composite
def vectors(draw: st.DrawFn, fewest: int = 2, most: int = 4) -> Vectors:
    """Tensors that share a direction more or less, as models do."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    common = rng.standard_normal(20) * draw(st.sampled_from([0.0, 1.0, 5.0]))
    return np.array([common + rng.standard_normal(20) for _ in range(draw(st.integers(fewest, most)))])


WEIGHTS = st.lists(st.sampled_from([0.25, 1.0, 2.0, 3.5]), min_size=4, max_size=4)


@given(v=vectors(2, 2), t=st.floats(-0.5, 1.5))
def test_slerp_turns_by_its_share_of_the_angle(v: Vectors, t: float) -> None:
    a, b = unit(v[0]), unit(v[1])
    angle = math.acos(a @ b)
    if abs(math.cos(angle)) > 0.999:
        return
    side = unit(b - (a @ b) * a)
    point = np.array(solved(Slerp(t), np.array([a, b]))) @ np.array([a, b])
    assert point == pytest.approx(math.cos(t * angle) * a + math.sin(t * angle) * side, abs=1e-9)


@given(v=vectors(), weights=WEIGHTS)
def test_multislerp_by_way_of_the_tangent_space(v: Vectors, weights: list[float]) -> None:
    eps = 1e-3
    w = np.array(weights[: len(v)]) / sum(weights[: len(v)])
    norms = np.linalg.norm(v, axis=1)
    units = v / (norms + eps)[:, None]
    mean = unit(w @ units)
    tangents = units - (units @ mean)[:, None] * mean
    step = w @ tangents
    length = np.linalg.norm(step) + eps
    expected = (mean * math.cos(length) + step * (math.sin(length) / length)) * (norms @ w)
    found = np.array(solved(MultiSlerp(True, eps), v, weights[: len(v)])) @ v
    assert found == pytest.approx(expected, abs=1e-9)


@given(v=vectors())
def test_karcher_ends_where_the_logarithms_add_up_to_zero(v: Vectors) -> None:
    found = np.array(solved(Karcher(200, 1e-9), v)) @ v
    assert np.linalg.norm(found) == pytest.approx(np.mean(np.linalg.norm(v, axis=1)))
    mean = unit(found)
    logarithms = []
    for x in (unit(row) for row in v):
        angle = math.acos(min(1.0, x @ mean))
        logarithms.append(angle / math.sin(angle) * (x - (x @ mean) * mean) if angle > 1e-9 else 0 * x)
    if min(unit(row) @ mean for row in v) > 0.1:  # all on one side: the mean is unique
        assert np.linalg.norm(sum(logarithms)) < 1e-6


@given(v=vectors())
def test_model_stock_lies_between_the_base_and_the_mean(v: Vectors) -> None:
    k = len(v)
    cosine = np.mean([unit(v[i]) @ unit(v[j]) for i in range(k) for j in range(i)])
    share = k * cosine / (1 + (k - 1) * cosine)
    if abs(1 + (k - 1) * cosine) < 1e-3:
        return
    assert np.array(solved(ModelStock(), v)) @ v == pytest.approx(share * v.mean(axis=0), abs=1e-9)
