"""Select, calculate, erase: SCE of FuseChat (arXiv 2408.07990)."""

from __future__ import annotations

from typing import Annotated

from .parameters import Lambda, Share
from .schema import Means, merge_method
from .stages import All, TaskVectorMerge, Variance


@merge_method()
def sce(
    *,
    select_topk: Annotated[
        Share,
        Means(
            "of the elements in which the models differ, the share with the largest variance to keep; 1 keeps all "
            "elements"
        ),
    ] = 1.0,
    lambda_: Lambda = 1.0,
) -> TaskVectorMerge[All | Variance]:
    """Keep where models differ most, weigh each by the energy of what it keeps, average what agrees in sign.

    The merge of FuseChat (arXiv 2408.07990).
    """
    return TaskVectorMerge(
        selection=Variance(select_topk) if select_topk < 1 else All(),
        consensus="ties",
        normalize=True,
        lambda_=lambda_,
        weighting="energy",
    )
