"""Methods that tell elements of one model from those that several change: RAM (arXiv 2601.13572)."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from .parameters import Share
from .schema import Means, merge_method
from .stages import Beyond, Sharing, TaskVectorMerge

Change: TypeAlias = Annotated[Share, Means("a change no larger than this counts as none")]


@merge_method()
def ram(*, epsilon: Change = 1e-5) -> TaskVectorMerge[Beyond]:
    """W0 + t_i where one model alone changes an element, the mean of the changes where several do."""
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
    """The same, with a model's own elements strengthened for those that it shares, tensor by tensor."""
    return TaskVectorMerge(selection=Beyond(epsilon), sharing=Sharing(r, alpha))
