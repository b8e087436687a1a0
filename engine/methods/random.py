"""Methods that keep elements at random: DARE (arXiv 2311.03099)."""

from __future__ import annotations

from .stages import Random, Rescale, TaskVectorMerge


def dare_linear(*, rescale: Rescale, normalize: bool, lambda_: float) -> TaskVectorMerge:
    """Drop at random with probability 1 - d, divide what is kept by d, add up."""
    return TaskVectorMerge(Random(), rescale, "sum", normalize, lambda_)


def dare_ties(*, rescale: Rescale, normalize: bool, lambda_: float) -> TaskVectorMerge:
    """DARE with the sign consensus of TIES."""
    return TaskVectorMerge(Random(), rescale, "ties", normalize, lambda_)
