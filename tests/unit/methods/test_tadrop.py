"""TADrop's statistics and budget, worked by hand; the order of sums is held by the merge oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.engine.methods.tadrop import (
    MAX_SPARSITY,
    budget_densities,
    kurtosis,
    local_density,
    participation,
    quantile,
)


def moments(t):
    a = np.abs(np.asarray(t, np.float64))
    return np.array([a.sum(), (a**2).sum(), (a**4).sum()])


def test_participation_by_hand():
    # |t| = 1, 1, 2, 0: (1 + 1 + 2)^2 / (4 * (1 + 1 + 4))
    assert participation(4, moments([1, -1, 2, 0])) == 16 / 24
    assert participation(5, moments([3, -3, 3, 3, 3])) == 1.0
    assert participation(8, moments([0, 0, 7, 0, 0, 0, 0, 0])) == 1 / 8


def test_kurtosis_by_hand():
    # mean t^2 = 6/4, mean t^4 = 18/4
    assert kurtosis(4, moments([1, -1, 2, 0])) == 2.25 / 4.5
    assert kurtosis(3, moments([2, -2, 2])) == 1.0


def test_quantile_by_hand():
    assert quantile(1.0, 4.0, False) == 0.25
    assert quantile(0.0, 0.0, False) == 0.0  # more than 99 % zeros, but not all


def test_an_all_zero_task_vector_has_no_redundancy_and_nothing_to_keep():
    for u in (participation(4, moments([0] * 4)), kurtosis(4, moments([0] * 4)), quantile(0.0, 0.0, True)):
        assert math.isnan(u)
        assert local_density(u) == 0.0


@pytest.mark.parametrize(
    ("values", "expected"),
    [("normal", 0.637), ("laplace", 0.5), ("zeros", 0.0637)],
)
def test_participation_of_known_distributions(values, expected):
    rng = np.random.default_rng(0)
    t = rng.laplace(size=400_000) if values == "laplace" else rng.standard_normal(400_000)
    if values == "zeros":
        t[rng.random(400_000) < 0.9] = 0
    assert participation(400_000, moments(t)) == pytest.approx(expected, rel=0.02)


def test_local_densities():
    assert local_density(0.637) == 1 - 0.637
    assert local_density(0.0) == 1.0
    assert local_density(1.0) == 1 - MAX_SPARSITY


def test_a_budget_by_hand():
    # Two tensors of one size: mu = 0.5, sigma = 0.2, z = -1 and 1; sparsity 0.7 -+ 0.1 on average 0.7.
    low, high = budget_densities([0.3, 0.7], [100, 100], mean=0.3, spread=0.1)
    assert low == pytest.approx(0.4, abs=1e-12)  # less redundant: kept more
    assert high == pytest.approx(0.2, abs=1e-12)


def test_a_budget_weighs_tensors_by_their_size():
    # mu = 0.25 * 0.2 + 0.75 * 0.6 = 0.5; variance = 0.25 * 0.09 + 0.75 * 0.01 = 0.03
    sigma = math.sqrt(0.03)
    small, large = budget_densities([0.2, 0.6], [10, 30], mean=0.4, spread=0.1)
    assert small == pytest.approx(1 - (0.6 + 0.1 * -0.3 / sigma), abs=1e-12)
    assert large == pytest.approx(1 - (0.6 + 0.1 * 0.1 / sigma), abs=1e-12)


def test_equal_redundancies_get_equal_densities():
    assert budget_densities([0.5, 0.5, 0.5], [1, 10, 100], mean=0.25, spread=0.3) == pytest.approx([0.25] * 3)


def test_clamped_tensors_leave_their_share_to_the_others():
    # u = 0.1 three times and 0.9: mu = 0.3, sigma = sqrt(0.12), z = -0.577 three times and 1.732, which is cut.
    densities = budget_densities([0.1, 0.1, 0.1, 0.9], [1, 1, 1, 1], mean=0.2, spread=0.3)
    assert densities[3] == pytest.approx(1 - MAX_SPARSITY)
    assert densities[0] == pytest.approx((0.8 - 0.01) / 3, abs=1e-12)


def test_all_zero_task_vectors_stand_outside_the_budget():
    with_zero = budget_densities([0.3, math.nan, 0.7], [100, 10**9, 100], mean=0.3, spread=0.1)
    assert with_zero == [budget_densities([0.3, 0.7], [100, 100], 0.3, 0.1)[0], 0.0, with_zero[2]]
    assert budget_densities([math.nan], [5], 0.3, 0.1) == [0.0]
    assert budget_densities([], [], 0.3, 0.1) == []


@given(
    st.lists(st.tuples(st.floats(0.001, 1), st.integers(1, 10**9)), min_size=1, max_size=30),
    st.floats(0.02, 1),
    st.floats(0, 1),
)
def test_the_mean_is_reached_and_order_follows_redundancy(tensors, mean, spread):
    u, sizes = zip(*tensors, strict=True)
    densities = budget_densities(u, sizes, mean, spread)
    assert all(1 - MAX_SPARSITY - 1e-12 <= d <= 1 for d in densities)
    assert sum(n * d for n, d in zip(sizes, densities, strict=True)) / sum(sizes) == pytest.approx(mean, abs=1e-9)
    by_redundancy = [d for _, d in sorted(zip(u, densities, strict=True))]
    assert by_redundancy == sorted(by_redundancy, reverse=True)
