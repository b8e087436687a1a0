"""Methods that tell elements of one model from those that several change: RAM (arXiv 2601.13572)."""

from __future__ import annotations

from .stages import Beyond, Sharing, TaskVectorMerge


def ram(*, epsilon: float) -> TaskVectorMerge:
    """W0 + t_i where one model alone changes an element, the mean of the changes where several do."""
    return TaskVectorMerge(Beyond(epsilon), sharing=Sharing())


def ramplus_tl(*, epsilon: float, r: float, alpha: float) -> TaskVectorMerge:
    """The same, with a model's own elements strengthened for those that it shares, tensor by tensor."""
    return TaskVectorMerge(Beyond(epsilon), sharing=Sharing(r, alpha))
