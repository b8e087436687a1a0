"""Sums of task vectors with given weights (arXiv 2212.04089)."""

from __future__ import annotations

from .parameters import Enlarge, Lambda, Normalize, Weight
from .schema import merge_method
from .stages import All, TaskVectorMerge


@merge_method()
def task_arithmetic(
    *,
    weight: Weight = (1.0,),
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
    rescale: Enlarge = False,  # noqa: ARG001 (mergekit's recipes may say it; where nothing is dropped it has no effect)
) -> TaskVectorMerge[All]:
    """W0 + lambda * sum of w_i (W_i - W0) (arXiv 2212.04089)."""
    return TaskVectorMerge(selection=All(), weights=weight, normalize=normalize, lambda_=lambda_)
