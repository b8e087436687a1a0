"""Methods that keep magnitudes by their order: per tensor, per model, or per block of n:m sparsity."""

from __future__ import annotations

from typing import Literal

from .stages import Band, Blocks, ModelThreshold, Rescale, TaskVectorMerge, Top


def magnitude(
    *, conflict: Literal["none", "sequential"], rescale: Rescale, normalize: bool, lambda_: float
) -> TaskVectorMerge:
    """W0 + lambda * sum of w_i times the int(d N) largest elements of t_i; `sequential` lets models choose in turn."""
    selection = Top(sequential=conflict == "sequential")
    return TaskVectorMerge(selection, rescale, "sum", normalize, lambda_)


def ties(*, scope: Literal["tensor", "model"], rescale: Rescale, normalize: bool, lambda_: float) -> TaskVectorMerge:
    """Trim, elect a sign, merge what agrees (TIES, arXiv 2306.01708)."""
    selection = ModelThreshold() if scope == "model" else Top()
    return TaskVectorMerge(selection, rescale, "ties", normalize, lambda_)


def breadcrumbs(*, rescale: Rescale, normalize: bool, lambda_: float) -> TaskVectorMerge:
    """Leave out the largest and the smallest changes, add the band between them (arXiv 2312.06795)."""
    return TaskVectorMerge(Band(), rescale, "sum", normalize, lambda_)


def breadcrumbs_ties(*, rescale: Rescale, normalize: bool, lambda_: float) -> TaskVectorMerge:
    """Breadcrumbs with the sign consensus of TIES."""
    return TaskVectorMerge(Band(), rescale, "ties", normalize, lambda_)


def cabs(
    *,
    block: int,
    tail: Literal["keep", "drop"],
    overlap: Literal["allow", "never"],
    overlap_merge: Literal["sum", "ties"],
    rescale: Rescale,
    normalize: bool,
    lambda_: float,
) -> TaskVectorMerge:
    """Conflict-aware (sequential masks) and balanced (n:m) sparsification (CABS, arXiv 2503.01874, algorithm 1)."""
    selection = Blocks(block, drop_tail=tail == "drop", overlap_never=overlap == "never")
    consensus: Literal["sum", "overlap_ties"] = "overlap_ties" if overlap_merge == "ties" else "sum"
    return TaskVectorMerge(selection, rescale, consensus, normalize, lambda_)
