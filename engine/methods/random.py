"""Methods that keep elements at random: DARE (arXiv 2311.03099) and DELLA (arXiv 2406.11617)."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from .parameters import Density, Enlarge, Lambda, Normalize, RescaleNorm, Share, Weight, divisor
from .schema import Means, PerModel, merge_method
from .stages import Random, RankedRandom, TaskVectorMerge

Epsilon: TypeAlias = Annotated[
    PerModel[Share],
    Means(
        "how far the probability of a row's smallest change lies below the density, and that of its largest above it. "
        "Both must be between 0 and 1, unless the density is 0 or 1; beside tadrop epsilon gives way"
    ),
]


@merge_method()
def dare_linear(
    *,
    weight: Weight = (1.0,),
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
    rescale: Enlarge = True,
    rescale_norm: RescaleNorm = "none",
    density: Density = (1.0,),
) -> TaskVectorMerge[Random]:
    """Drop at random with probability 1 - d, divide what is kept by d, add up (DARE, arXiv 2311.03099)."""
    return TaskVectorMerge(
        selection=Random(density),
        weights=weight,
        rescale=divisor(rescale, rescale_norm),
        normalize=normalize,
        lambda_=lambda_,
    )


@merge_method()
def dare_ties(
    *,
    weight: Weight = (1.0,),
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
    rescale: Enlarge = True,
    rescale_norm: RescaleNorm = "none",
    density: Density = (1.0,),
) -> TaskVectorMerge[Random]:
    """DARE (arXiv 2311.03099) with the sign consensus of TIES (arXiv 2306.01708)."""
    return TaskVectorMerge(
        selection=Random(density),
        weights=weight,
        rescale=divisor(rescale, rescale_norm),
        consensus="ties",
        normalize=normalize,
        lambda_=lambda_,
    )


@merge_method()
def della(
    *,
    weight: Weight = (1.0,),
    lambda_: Lambda = 1.0,
    normalize: Normalize = True,
    rescale: Enlarge = True,
    rescale_norm: RescaleNorm = "none",
    density: Density = (1.0,),
    epsilon: Epsilon = (0.15,),
) -> TaskVectorMerge[RankedRandom]:
    """Drop at random, small magnitudes rather than large ones, divide by the probability; then TIES's signs.

    DELLA (arXiv 2406.11617) with the sign consensus of TIES (arXiv 2306.01708).
    """
    return TaskVectorMerge(
        selection=RankedRandom(density, epsilon),
        weights=weight,
        rescale=divisor(rescale, rescale_norm),
        consensus="ties",
        normalize=normalize,
        lambda_=lambda_,
    )


@merge_method()
def della_linear(
    *,
    weight: Weight = (1.0,),
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
    rescale: Enlarge = True,
    rescale_norm: RescaleNorm = "none",
    density: Density = (1.0,),
    epsilon: Epsilon = (0.15,),
) -> TaskVectorMerge[RankedRandom]:
    """The drop of DELLA (arXiv 2406.11617), then the sum."""
    return TaskVectorMerge(
        selection=RankedRandom(density, epsilon),
        weights=weight,
        rescale=divisor(rescale, rescale_norm),
        normalize=normalize,
        lambda_=lambda_,
    )
