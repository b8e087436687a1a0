"""Methods of a base and one model that decide element by element."""

from __future__ import annotations

from .stages import Fusion, NearSwap


def nearswap(*, t: float) -> NearSwap:
    """The model's value where it is within t of the base's, and t nearer to it elsewhere (mergekit's nearswap)."""
    return NearSwap(t)


def arcee_fusion() -> Fusion:
    """The model's value where change times divergence of the row's softmax stands out (mergekit's arcee_fusion)."""
    return Fusion()
