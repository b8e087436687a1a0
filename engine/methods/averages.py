"""Sums with given weights: task arithmetic (arXiv 2212.04089), the linear average (arXiv 2203.05482), passthrough."""

from __future__ import annotations

from .coefficients import Weights
from .stages import All, CombinationMerge, TaskVectorMerge


def task_arithmetic(*, normalize: bool, lambda_: float) -> TaskVectorMerge:
    """W0 + lambda * sum of w_i (W_i - W0)."""
    return TaskVectorMerge(All(), normalize=normalize, lambda_=lambda_)


def linear(*, normalize: bool) -> CombinationMerge:
    """Sum of w_i W_i, divided by the sum of w_i when normalized."""
    return CombinationMerge(Weights(), normalize=normalize)


def passthrough() -> CombinationMerge:
    """scale * W; with a scale of 1, W's own bytes."""
    return CombinationMerge(Weights(), copies=True)
