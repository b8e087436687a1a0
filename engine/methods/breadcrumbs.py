"""Methods that leave out the largest changes as well as the smallest (Model Breadcrumbs, arXiv 2312.06795)."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from .parameters import Density, Enlarge, Lambda, Normalize, RescaleNorm, Share, Weight, divisor
from .schema import Means, PerModel, merge_method
from .stages import Band, TaskVectorMerge

Gamma: TypeAlias = Annotated[
    PerModel[Share],
    Means("share of a tensor's largest changes to leave out; less where `density` and `gamma` together are above 1"),
]


@merge_method()
def breadcrumbs(
    *,
    weight: Weight = (1.0,),
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
    rescale: Enlarge = False,
    rescale_norm: RescaleNorm = "l1",
    density: Density = (1.0,),
    gamma: Gamma = (0.01,),
) -> TaskVectorMerge[Band]:
    """Leave out the largest and the smallest changes, add the band between them (Breadcrumbs, arXiv 2312.06795)."""
    return TaskVectorMerge(
        selection=Band(density, gamma),
        weights=weight,
        rescale=divisor(rescale, rescale_norm),
        normalize=normalize,
        lambda_=lambda_,
    )


@merge_method()
def breadcrumbs_ties(
    *,
    weight: Weight = (1.0,),
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
    rescale: Enlarge = False,
    rescale_norm: RescaleNorm = "l1",
    density: Density = (1.0,),
    gamma: Gamma = (0.01,),
) -> TaskVectorMerge[Band]:
    """Model Breadcrumbs (arXiv 2312.06795) with the sign consensus of TIES (arXiv 2306.01708)."""
    return TaskVectorMerge(
        selection=Band(density, gamma),
        weights=weight,
        rescale=divisor(rescale, rescale_norm),
        consensus="ties",
        normalize=normalize,
        lambda_=lambda_,
    )
