"""Methods that keep magnitudes by their order: per tensor, per model, or per block of n:m sparsity."""

from __future__ import annotations

from typing import Annotated, Literal

from .parameters import Density, Enlarge, Lambda, Normalize, RescaleNorm, Weight, divisor
from .schema import SAME_FOR_ALL_TENSORS, Means, Range, merge_method
from .stages import Blocks, ModelThreshold, TaskVectorMerge, Top, TopInTurn


@merge_method()
def magnitude(
    *,
    weight: Weight = (1.0,),
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
    rescale: Enlarge = False,
    rescale_norm: RescaleNorm = "none",
    density: Density,
    conflict: Annotated[
        Literal["none", "sequential"],
        Means("models choose independently, or in order, each among what earlier ones left free"),
    ] = "none",
) -> TaskVectorMerge[Top | TopInTurn]:
    """W0 + lambda * sum of w_i times the int(d N) largest elements of t_i; `sequential` lets models choose in turn.

    The trim step of TIES (arXiv 2306.01708), and the sequential masks of CABS (arXiv 2503.01874).
    """
    return TaskVectorMerge(
        selection=TopInTurn(density) if conflict == "sequential" else Top(density),
        weights=weight,
        rescale=divisor(rescale, rescale_norm),
        normalize=normalize,
        lambda_=lambda_,
    )


@merge_method()
def cabs(
    *,
    weight: Weight = (1.0,),
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
    rescale: Enlarge = False,
    rescale_norm: RescaleNorm = "none",
    density: Density,
    block: Annotated[
        int,
        Range(1, 65536),
        Means(
            "elements per block; of each block `floor(density * block + 0.5)` are taken, at least one unless the "
            "density is 0; unchanged elements among them are not kept"
        ),
    ] = 256,
    tail: Annotated[
        Literal["keep", "drop"],
        Means("the last block of a tensor when it is shorter: keep its share, or prune it away"),
    ] = "keep",
    overlap: Annotated[
        Literal["allow", "never"], Means("when no position is left free: share positions, or keep fewer")
    ] = "allow",
    overlap_merge: Annotated[
        Literal["sum", "ties"],
        Means(
            "where models share a position: add them, or average those that agree with the sign of the sum. `ties` "
            "does not go with `normalize: true`"
        ),
    ] = "sum",
) -> TaskVectorMerge[Blocks]:
    """Conflict-aware (sequential masks) and balanced (n:m) sparsification (CABS, arXiv 2503.01874, algorithm 1)."""
    return TaskVectorMerge(
        selection=Blocks(density, block, drop_tail=tail == "drop", overlap_never=overlap == "never"),
        weights=weight,
        rescale=divisor(rescale, rescale_norm),
        consensus="overlap_ties" if overlap_merge == "ties" else "sum",
        normalize=normalize,
        lambda_=lambda_,
    )


@merge_method()
def ties(
    *,
    weight: Weight = (1.0,),
    lambda_: Lambda = 1.0,
    normalize: Normalize = True,
    rescale: Enlarge = False,
    rescale_norm: RescaleNorm = "l1",  # `rescale: true` means mergekit's ratio of norms where its users write it
    density: Density = (1.0,),
    scope: Annotated[
        Literal["tensor", "model"],
        SAME_FOR_ALL_TENSORS,
        Means(
            "the threshold of magnitudes: one per tensor, or one for the whole model. `model` needs a plain number as "
            "density; it takes no filters"
        ),
    ] = "tensor",
) -> TaskVectorMerge[Top | ModelThreshold]:
    """Trim, elect a sign, merge what agrees (TIES, arXiv 2306.01708)."""
    return TaskVectorMerge(
        selection=ModelThreshold(density) if scope == "model" else Top(density),
        weights=weight,
        rescale=divisor(rescale, rescale_norm),
        consensus="ties",
        normalize=normalize,
        lambda_=lambda_,
    )
