"""Methods that tell elements of one model from those of several: RAM (arXiv 2601.13572), consensus (2405.07813)."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from .parameters import Lambda, Share, Weight
from .schema import MOST_COUNTED, Means, PerModel, Range, merge_method
from .stages import Agreement, Beyond, Sharing, TaskVectorMerge

Change: TypeAlias = Annotated[Share, Means("a change no larger than this counts as none")]


@merge_method()
def ram(*, epsilon: Change = 1e-5) -> TaskVectorMerge[Beyond]:
    """W0 + t_i where one model alone changes an element, the mean where several do (RAM, arXiv 2601.13572)."""
    return TaskVectorMerge(selection=Beyond(epsilon), sharing=Sharing())


@merge_method()
def ramplus_tl(
    *,
    epsilon: Change = 1e-5,
    r: Annotated[
        float,
        Means("how much a model's own elements are strengthened for those that it shares with others; 0 not at all"),
    ] = 0.1,
    alpha: Annotated[float, Means("the most that the ratio of shared to own elements counts")] = 0.2,
) -> TaskVectorMerge[Beyond]:
    """RAM (arXiv 2601.13572), with a model's own elements strengthened for those that it shares, tensor by tensor."""
    return TaskVectorMerge(selection=Beyond(epsilon), sharing=Sharing(r, alpha))


@merge_method()
def consensus_ta(
    *,
    weight: Weight = (1.0,),
    lambda_mask: Annotated[
        PerModel[Annotated[float, Range(0, 100)]],
        Means("how large a change must be, as a share of what the other models change together, to be its model's own"),
    ] = (0.4,),
    consensus: Annotated[int, Range(1, MOST_COUNTED), Means("models that must claim an element for it to be kept")] = 2,
    lambda_: Lambda = 1.0,
) -> TaskVectorMerge[Agreement]:
    """W0 + lambda * sum of w_i t_i, where at least `consensus` models claim the element.

    Consensus Task Arithmetic (arXiv 2405.07813).
    """
    return TaskVectorMerge(selection=Agreement(lambda_mask, consensus), weights=weight, lambda_=lambda_)
