"""Models themselves with given weights: the linear average (arXiv 2203.05482), passthrough."""

from __future__ import annotations

from typing import Annotated

from .coefficients import Weights
from .parameters import Normalize, Weight
from .schema import Means, PerModel, merge_method
from .stages import CombinationMerge


@merge_method(base="listed")
def linear(*, weight: Weight = (1.0,), normalize: Normalize = True) -> CombinationMerge:
    """Sum of w_i W_i, divided by the sum of w_i when normalized (model soups, arXiv 2203.05482)."""
    return CombinationMerge(coefficients=Weights(), weights=weight, normalize=normalize)


@merge_method(base="listed", most=1)
def passthrough(*, scale: Annotated[PerModel[float], Means("factor of the model itself")] = (1.0,)) -> CombinationMerge:
    """scale * W; with a scale of 1, W's own bytes."""
    return CombinationMerge(coefficients=Weights(), weights=scale, copies=True)
