"""Methods of a base and one model that decide element by element."""

from __future__ import annotations

from typing import Annotated

from .schema import Means, merge_method
from .stages import Fusion, NearSwap


@merge_method(most=1)
def nearswap(*, t: Annotated[float, Means("how far a value may move")]) -> NearSwap:
    """The model's value where it is within t of the base's, and t nearer to it elsewhere (mergekit's nearswap)."""
    return NearSwap(t)


@merge_method(differences=False, most=1)
def arcee_fusion() -> Fusion:
    """The model's value where change times divergence of the row's softmax stands out (mergekit's arcee_fusion)."""
    return Fusion()
