"""Select, calculate, erase: SCE of FuseChat (arXiv 2408.07990)."""

from __future__ import annotations

from .stages import All, TaskVectorMerge, Variance


def sce(*, select_topk: float, lambda_: float) -> TaskVectorMerge:
    """Keep where models differ most, weigh each by the energy of what it keeps, average what agrees in sign."""
    selection = Variance(float(select_topk)) if select_topk < 1 else All()
    return TaskVectorMerge(selection, "none", "ties", normalize=True, lambda_=lambda_, weighting="energy")
