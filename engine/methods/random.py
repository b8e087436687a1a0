"""Methods that keep elements at random: DARE (arXiv 2311.03099)."""

from __future__ import annotations

from .magnitude import RescaleNorm, rescaling
from .stages import Random, TaskVectorMerge


def dare_linear(*, rescale: bool, rescale_norm: RescaleNorm, normalize: bool, lambda_: float) -> TaskVectorMerge:
    """Drop at random with probability 1 - d, divide what is kept by d, add up."""
    return TaskVectorMerge(Random(), rescaling(rescale, rescale_norm), "sum", normalize, lambda_)


def dare_ties(*, rescale: bool, rescale_norm: RescaleNorm, normalize: bool, lambda_: float) -> TaskVectorMerge:
    """DARE with the sign consensus of TIES."""
    return TaskVectorMerge(Random(), rescaling(rescale, rescale_norm), "ties", normalize, lambda_)
