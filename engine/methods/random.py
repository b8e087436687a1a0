"""Methods that keep elements at random: DARE (arXiv 2311.03099) and DELLA (arXiv 2406.11617)."""

from __future__ import annotations

from .stages import Random, RankedRandom, Rescale, TaskVectorMerge


def dare_linear(*, rescale: Rescale, normalize: bool, lambda_: float) -> TaskVectorMerge:
    """Drop at random with probability 1 - d, divide what is kept by d, add up."""
    return TaskVectorMerge(Random(), rescale, "sum", normalize, lambda_)


def dare_ties(*, rescale: Rescale, normalize: bool, lambda_: float) -> TaskVectorMerge:
    """DARE with the sign consensus of TIES."""
    return TaskVectorMerge(Random(), rescale, "ties", normalize, lambda_)


def della(*, rescale: Rescale, normalize: bool, lambda_: float) -> TaskVectorMerge:
    """Drop at random, small magnitudes rather than large ones, divide by the probability; then TIES's signs."""
    return TaskVectorMerge(RankedRandom(), rescale, "ties", normalize, lambda_)


def della_linear(*, rescale: Rescale, normalize: bool, lambda_: float) -> TaskVectorMerge:
    """The drop of DELLA, then the sum."""
    return TaskVectorMerge(RankedRandom(), rescale, "sum", normalize, lambda_)
