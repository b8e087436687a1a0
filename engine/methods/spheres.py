"""Methods whose coefficients follow from angles between tensors: spherical interpolation, means on the sphere."""

from __future__ import annotations

from typing import Literal

from .coefficients import Karcher, ModelStock, MultiSlerp, NuSlerp, Slerp
from .stages import CombinationMerge


def slerp(*, t: float) -> CombinationMerge:
    """From the base (t = 0) to the model (t = 1) along the arc between the flattened tensors."""
    return CombinationMerge(Slerp(t), "base")


def nuslerp(*, has_base: bool, nuslerp_flatten: bool, nuslerp_row_wise: bool) -> CombinationMerge:
    """From the first model to the second by their weights; with a base, between the differences to it.

    In mergekit, whose keys these are, `row_wise` means that a vector runs through all rows, so it is a column.
    """
    vectors: Literal["tensor", "rows", "columns"]
    vectors = "tensor" if nuslerp_flatten else "columns" if nuslerp_row_wise else "rows"
    return CombinationMerge(NuSlerp(), "differences" if has_base else "models", vectors=vectors)


def multislerp(*, has_base: bool, normalize_weights: bool, eps: float) -> CombinationMerge:
    """The weighted mean direction of all models, with their mean norm; with a base, of the differences to it."""
    return CombinationMerge(MultiSlerp(normalize_weights, eps), "differences" if has_base else "models")


def karcher(*, max_iter: int, tol: float) -> CombinationMerge:
    """The Riemannian mean of the models' directions, with their mean norm (arXiv 2603.04972)."""
    return CombinationMerge(Karcher(max_iter, tol))


def model_stock(*, filter_wise: bool) -> CombinationMerge:
    """Between the base and the mean of the models, closer to the mean the more they agree (arXiv 2403.19522)."""
    return CombinationMerge(ModelStock(), "differences", vectors="rows" if filter_wise else "tensor")
