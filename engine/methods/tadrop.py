"""TADrop: how sparse each tensor may become, from the distribution of its task vector (ALGORITHMS 3).

The abstract of arXiv 2508.06163 fixes one data-free sparsity per tensor that grows with redundancy; it does not fix the
statistic. The statistics here are this project's choice and claim no parity with the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

MAX_SPARSITY = 0.99
BISECTION_STEPS = 100
BISECTION_RANGE = 20.0


def participation(numel: int, moments: NDArray[np.float64]) -> float:
    """(sum |t|)^2 / (N sum t^2): 1 for equal magnitudes, 0.637 for a Gaussian; NaN for an all-zero task vector."""
    total, squares = float(moments[0]), float(moments[1])
    return total * total / (numel * squares) if squares > 0 else math.nan


def kurtosis(numel: int, moments: NDArray[np.float64]) -> float:
    """(mean t^2)^2 / mean t^4; NaN for an all-zero task vector."""
    squares, fourths = float(moments[1]) / numel, float(moments[2]) / numel
    return squares * squares / fourths if fourths > 0 else math.nan


def quantile(median: float, high: float, all_zero: bool) -> float:
    """Q.50(|t|) / Q.99(|t|), 0 where Q.99 is 0; NaN for an all-zero task vector."""
    if all_zero:
        return math.nan
    return median / high if high > 0 else 0.0


def local_density(u: float) -> float:
    """Density from redundancy without a target: 1 - min(u, 0.99); 0 for an all-zero task vector."""
    return 0.0 if math.isnan(u) else 1.0 - min(u, MAX_SPARSITY)


def budget_densities(u: Sequence[float], counts: Sequence[int], mean: float, spread: float) -> list[float]:
    """Densities of one model's tensors whose mean, weighted with the elements that count, is `mean`.

    z = (u - mu) / sigma with mu and sigma weighted alike; sparsity = clamp(c + spread * z, 0, 0.99), c by
    bisection. All-zero task vectors (u is NaN) get 0 and stand outside the budget.
    """
    places = [i for i, value in enumerate(u) if not math.isnan(value)]
    densities = [0.0] * len(u)
    if not places:
        return densities
    total = math.fsum(counts[i] for i in places)
    mu = math.fsum(counts[i] * u[i] for i in places) / total
    sigma = math.sqrt(math.fsum(counts[i] * (u[i] - mu) ** 2 for i in places) / total)
    z = np.array([(u[i] - mu) / sigma if sigma > 0 else 0.0 for i in places])
    weights = np.array([counts[i] / total for i in places])

    def sparsities(c: float) -> NDArray[np.float64]:
        return np.minimum(np.maximum(c + spread * z, 0.0), MAX_SPARSITY)

    low, high = -BISECTION_RANGE, BISECTION_RANGE
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        reached = math.fsum((weights * sparsities(middle)).tolist())
        low, high = (middle, high) if reached < 1.0 - mean else (low, middle)
    for i, sparsity in zip(places, sparsities((low + high) / 2).tolist(), strict=True):
        densities[i] = 1.0 - sparsity
    return densities


@dataclass(frozen=True, slots=True)
class TadropDensity:
    """A density that follows from each tensor's own distribution (TADrop, arXiv 2508.06163)."""

    mean: float | None = None
    """Target mean density of a model over the tensors that this setting applies to; None: no target."""
    spread: float = 0.1
    """Change of sparsity per standard deviation of redundancy; used with a target only."""
    statistic: Literal["participation", "quantile", "kurtosis"] = "participation"
    mean_of: Literal["all", "changed"] = "all"
    """Which elements the target mean counts: every one, or those of which fine-tuning changed the value. Rows of
    embeddings that training never touched are most of some models; among all elements they make room for others."""


Density: TypeAlias = float | TadropDensity
"""A share of a tensor's elements, or how it follows from them."""
