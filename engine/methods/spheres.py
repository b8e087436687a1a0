"""Methods whose coefficients follow from angles between tensors: spherical interpolation, means on the sphere."""

from __future__ import annotations

from typing import Annotated, Literal

from .coefficients import Karcher, ModelStock, MultiSlerp, NuSlerp, Slerp
from .parameters import Share, Weight
from .schema import HasBase, Means, Range, merge_method
from .stages import CombinationMerge


@merge_method(differences=False, most=1)
def slerp(*, t: Annotated[float, Means("the place between the base (0) and the model (1)")]) -> CombinationMerge:
    """From the base (t = 0) to the model (t = 1) along the arc between the flattened tensors."""
    return CombinationMerge(coefficients=Slerp(t), of="base")


@merge_method(base="optional", fewest=2, most=2)
def nuslerp(
    *,
    has_base: HasBase,
    weight: Weight = (1.0,),
    nuslerp_flatten: Annotated[
        bool, Means("a tensor is one vector; else each row of its last dimension is one")
    ] = True,
    nuslerp_row_wise: Annotated[
        bool,
        Means(
            "when `nuslerp_flatten` is false, each column is a vector: the elements of a tensor that differ in the "
            "first dimension only"
        ),
    ] = False,
) -> CombinationMerge:
    """From the first model to the second by their weights; with a base, between the differences to it.

    In mergekit, whose keys these are, `row_wise` means that a vector runs through all rows, so it is a column.
    """
    vectors: Literal["tensor", "rows", "columns"]
    vectors = "tensor" if nuslerp_flatten else "columns" if nuslerp_row_wise else "rows"
    return CombinationMerge(
        coefficients=NuSlerp(), weights=weight, of="differences" if has_base else "models", vectors=vectors
    )


@merge_method(base="optional")
def multislerp(
    *,
    has_base: HasBase,
    weight: Weight = (1.0,),
    normalize_weights: Annotated[bool, Means("divide weights by their sum, which must not be 0")] = True,
    eps: Annotated[Share, Means("added to the length of a tensor before dividing by it")] = 1e-8,
) -> CombinationMerge:
    """The weighted mean direction of all models, with their mean norm; with a base, of the differences to it."""
    coefficients = MultiSlerp(normalize_weights, eps)
    return CombinationMerge(coefficients=coefficients, weights=weight, of="differences" if has_base else "models")


@merge_method(base="listed")
def karcher(
    *,
    max_iter: Annotated[
        int, Range(0, 10**12), Means("steps of an iteration at most; after 1,000 it ends in any case")
    ] = 10,
    tol: Annotated[
        Share, Means("an iteration stops when its step is shorter; tensors no longer than this have no direction")
    ] = 1e-5,
) -> CombinationMerge:
    """The Riemannian mean of the models' directions, with their mean norm (arXiv 2603.04972)."""
    return CombinationMerge(coefficients=Karcher(max_iter, tol))


@merge_method(fewest=2)
def model_stock(
    *,
    filter_wise: Annotated[bool, Means("each row of the last dimension has its own share")] = False,
) -> CombinationMerge:
    """Between the base and the mean of the models, closer to the mean the more they agree (arXiv 2403.19522)."""
    vectors: Literal["tensor", "rows"] = "rows" if filter_wise else "tensor"
    return CombinationMerge(coefficients=ModelStock(), of="differences", vectors=vectors)
