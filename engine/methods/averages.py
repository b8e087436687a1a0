"""Methods that keep every element: task arithmetic (arXiv 2212.04089) and the linear average (arXiv 2203.05482)."""

from __future__ import annotations

from .stages import All, LinearMerge, TaskVectorMerge


def task_arithmetic(*, normalize: bool, lambda_: float) -> TaskVectorMerge:
    """W0 + lambda * sum of w_i (W_i - W0)."""
    return TaskVectorMerge(All(), normalize=normalize, lambda_=lambda_)


def linear(*, normalize: bool) -> LinearMerge:
    """Sum of w_i W_i, divided by the sum of w_i when normalized."""
    return LinearMerge(normalize)
